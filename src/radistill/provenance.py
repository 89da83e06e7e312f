"""How an artefact was made: versions, machine, seed. Torch, which takes seconds to import, is so where it is needed."""

import importlib.metadata
import os
import platform
import random
from typing import Any

import numpy as np
import psutil

_LIBRARIES = ("radistill", "torch", "transformers", "accelerate", "optuna", "datasets", "safetensors")


def versions() -> dict[str, str]:
    """Version of Python and of each library that influences a result."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, accelerators: what a timing depends on."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerators": gpus,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def seed_everything(seed: int, threads: int | None = None) -> None:
    """Seed Python, NumPy and torch, and fix torch's thread count: float sums depend on it."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
