"""The pipeline: a recipe in, a run folder out."""
