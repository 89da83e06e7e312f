"""Radistill turns a Transformer into a hybrid: it finds the attention layers that the model can do without, replaces
them with state-space layers, and distils the result. `docs/how-to/python.md` shows the whole way in fifteen lines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radistill.conversion import convert as convert
    from radistill.conversion import new_parameters as new_parameters
    from radistill.data.prepare import load_data as load_data
    from radistill.diagnosis.diagnose import diagnose as diagnose
    from radistill.distillation.align import align as align
    from radistill.distillation.blocks import fit_blocks as fit_blocks
    from radistill.distillation.distill import distill as distill
    from radistill.distillation.distill import finetune as finetune
    from radistill.errors import RadistillError as RadistillError
    from radistill.evaluation.evaluate import evaluate as evaluate
    from radistill.models.loading import load as load
    from radistill.pipeline.run import hybridize as hybridize

_HOMES = {
    "RadistillError": "radistill.errors",
    "align": "radistill.distillation.align",
    "convert": "radistill.conversion",
    "diagnose": "radistill.diagnosis.diagnose",
    "distill": "radistill.distillation.distill",
    "evaluate": "radistill.evaluation.evaluate",
    "finetune": "radistill.distillation.distill",
    "fit_blocks": "radistill.distillation.blocks",
    "hybridize": "radistill.pipeline.run",
    "load": "radistill.models.loading",
    "load_data": "radistill.data.prepare",
    "new_parameters": "radistill.conversion",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; `radistill --help` should not wait for them.
    if name not in _HOMES:
        raise AttributeError(f"module 'radistill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
