"""Where the curve of a run goes besides distill.json, by transformers' own callbacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from transformers import TrainerCallback, integrations

from radistill.errors import RadistillError

Tracker = Literal["auto", "none", "tensorboard", "wandb", "trackio"]


def check_tracker(name: Tracker, section: str) -> None:
    """Refuse a tracker that is not installed; `section` of the recipe names it.

    Raises:
        RadistillError: naming the extra to install.
    """
    if name in ("auto", "none") or _installed(name):
        return
    raise RadistillError(f"{section}.report_to is '{name}', which needs the extra: pip install 'radistill[{name}]'")


@contextmanager
def tracked(name: Tracker, folder: Path | None, done: int) -> Iterator[TrainerCallback | None]:
    """The callback that a tracker needs, or None, for the time of a training.

    Args:
        name: which one; "auto" is TensorBoard where it is installed and there is a folder.
        folder: TensorBoard writes to `tensorboard/` in it.
        done: steps that an earlier, killed part of the run has reported and kept.
    """
    if name == "tensorboard" or (name == "auto" and folder is not None and _installed("tensorboard")):
        assert folder is not None
        yield _tensorboard(folder, done)
    elif name == "wandb":
        import wandb

        try:
            yield integrations.WandbCallback()
        finally:
            wandb.finish()  # which the callback does not, and the next training would report to the same run
    elif name == "trackio":
        yield integrations.TrackioCallback()
    else:
        yield None


def _tensorboard(folder: Path, done: int) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides what a run that died had written after its last checkpoint.
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
    return integrations.TensorBoardCallback(writer)


def _installed(name: str) -> bool:
    return bool(getattr(integrations, f"is_{name}_available")())
