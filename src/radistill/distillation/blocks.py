"""A fitted block for every attention of a model: what a search by replaceability swaps in."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from radistill.conversion import convert
from radistill.conversion.targets import TARGETS, TargetSettings, target_for
from radistill.distillation.align import AlignSettings, align
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.processes import ALONE, Processes
from radistill.speculation.substitutes import Substitutes


def fit_blocks(
    base: Model,
    documents: Sequence[Document],
    settings: AlignSettings | None = None,
    *,
    target: TargetSettings | str | None = None,
    init: str = "fitted",
    seed: int = 0,
    folder: Path | None = None,
    processes: Processes = ALONE,
) -> Substitutes:
    """Fit a block to each attention of a model, as if it were to be replaced.

    A block is the one that `align` gives a student whatever other layers it replaces, so what lies in `folder` serves
    the students of every plan.

    Args:
        base: the model; unchanged afterwards.
        documents: text that the blocks are fitted on.
        settings: of the fit; None takes those of `AlignSettings`.
        target, init, seed: as in `convert`.
        folder, processes: as in `align`.

    Raises:
        RadistillError: as `convert` and `align`.
    """
    blocks: dict[int, nn.Module] = {}
    chosen = target_for(base.network.config, base.source, target)
    for layers in TARGETS[chosen.kind].students(base.anatomy.attention_layers):
        student = convert(base, layers, target=chosen, init=init, seed=seed)
        align(student, base, documents, settings, replace=layers, seed=seed, folder=folder, processes=processes)
        blocks |= {layer: student.anatomy.mixer(student.network, layer) for layer in layers}
    return Substitutes(blocks)
