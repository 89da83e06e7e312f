"""What all tests share: no hub, one thread, and the one real model."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

# Before transformers is imported: no test may wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is imported, here or in a process of a test: threads that wait actively starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

if TYPE_CHECKING:  # torch takes seconds, and the process that hands the tests to the workers has no use for it
    from radistill.models.loading import Model


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """Sums of floats depend on the number of threads, and there are as many workers as cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Tests kill processes, but none cuts the power: what is written need not have reached the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def imported() -> None:
    """No collection has to look at the objects of the imported modules: some hundred thousand, and none is garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """SmolLM2-135M-Instruct, read only: a test that changes a weight must put it back."""
    from radistill.errors import RadistillError
    from radistill.models.loading import load

    try:
        return load("smollm2-135m")
    except RadistillError as error:
        pytest.fail(f"the tests marked `real` need SmolLM2: {error}")
