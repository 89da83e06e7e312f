"""Where the curve of a run goes besides its log: TensorBoard, Weights & Biases or trackio."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from radistill.errors import RadistillError

Tracker = Literal["auto", "none", "tensorboard", "wandb", "trackio"]

Report = Callable[[Mapping[str, float], int], None]
"""Takes figures by name, such as "train/loss", and the step that they belong to."""

_PROJECT = "radistill"


def check_tracker(name: Tracker, section: str) -> None:
    """Refuse a tracker that is not installed; `section` of the recipe names it.

    Raises:
        RadistillError: naming the extra to install.
    """
    if name in ("auto", "none") or find_spec(name):
        return
    raise RadistillError(f"{section}.report_to is '{name}', which needs the extra: pip install 'radistill[{name}]'")


@contextmanager
def tracked(name: Tracker, folder: Path | None, done: int, settings: dict[str, Any]) -> Iterator[Report]:
    """For the time of a training, what hands its figures on to a tracker.

    Args:
        name: which one; "auto" is TensorBoard where it is installed and there is a folder.
        folder: TensorBoard writes to `tensorboard/` in it; the others call the run by its name.
        done: steps that an earlier, killed part of the run has reported and kept.
        settings: of the training, to be shown beside the curve.
    """
    if name == "tensorboard" or (name == "auto" and folder is not None and find_spec("tensorboard")):
        assert folder is not None
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a run that died had written after its last checkpoint.
        with SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1) as writer:

            def report(figures: Mapping[str, float], step: int) -> None:
                for figure, value in figures.items():
                    writer.add_scalar(figure, value, step)
                writer.flush()

            yield report
    elif name in ("wandb", "trackio"):
        service: Any = import_module(name)
        about = {"name": folder.resolve().name if folder else None, "config": settings}
        if name == "wandb":
            service.init(project=os.environ.get("WANDB_PROJECT", _PROJECT), **about)
            # A resumed run goes on at the step of its checkpoint.
            service.define_metric("*", step_metric="train/global_step")
        else:
            service.init(project=_PROJECT, resume="allow", **about)
        try:
            yield lambda figures, step: service.log({**figures, "train/global_step": step})
        finally:
            service.finish()
    else:
        yield lambda figures, step: None
