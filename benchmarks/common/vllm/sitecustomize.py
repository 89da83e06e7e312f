"""Lets torchvision be imported beside a torch whose build it does not match; Python imports this file at its start.

vLLM's module of Qwen3.5 imports torchvision for images, which no text model uses. Package indices have torchvision for
CUDA, whose operators do not load beside a CPU build of torch, and its import then fails at the two operators that it
takes for granted. Here these are declared, not defined: whoever called one would get an error.
"""

import importlib.abc
import importlib.metadata
import sys
from collections.abc import Sequence
from types import ModuleType


class _Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None and "+cpu" not in importlib.metadata.version("torchvision"):
            for operator in ("nms", "qnms"):
                form = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", form)


sys.meta_path.insert(0, _Declare())
