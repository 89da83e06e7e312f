"""What all tests share: no hub, two threads, and the one real model."""

import os

# Before transformers is imported: no test may wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is imported: threads that wait actively starve each other where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from radistill.errors import RadistillError
from radistill.models.loading import Model, load


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """Sums of floats depend on the number of threads, so it is the same everywhere."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """SmolLM2-135M-Instruct, read only: a test that changes a weight must put it back."""
    try:
        return load("smollm2-135m")
    except RadistillError as error:
        pytest.fail(f"the tests marked `real` need SmolLM2: {error}")
