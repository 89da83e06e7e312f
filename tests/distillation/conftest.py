"""What the tests of distillation share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread(threads: None) -> Iterator[None]:
    """Tiny models are no faster on two threads, and far slower where the second core is busy.

    The resumed runs must also have as many threads as the killed ones, to be equal bit for bit.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
