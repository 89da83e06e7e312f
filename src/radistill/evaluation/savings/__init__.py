"""What a hybrid saves: cache, speed and memory over context length, beside its base and in one run."""
