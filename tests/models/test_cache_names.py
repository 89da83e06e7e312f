"""The name of the cache's argument, whatever version of transformers is installed."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import radistill
import tiny
from radistill.models.cache_names import cache_argument, cache_of


@pytest.mark.parametrize("family", ["llama", "qwen2", "granitemoehybrid", "falcon_h1", "jamba", "qwen3_next"])
def test_the_cache_is_read_without_a_warning(family: str) -> None:
    network = tiny.build(family)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad(), warnings.catch_warnings():
        whole = network(input_ids=ids, use_cache=False).logits[:, -1]
        cache = cache_of(network(input_ids=ids[:, :-1], use_cache=True))
        warnings.simplefilter("error", FutureWarning)
        stepped = network(input_ids=ids[:, -1:], use_cache=True, **{cache_argument(network): cache}).logits[:, -1]
    torch.testing.assert_close(stepped, whole, rtol=1e-4, atol=1e-4)


def test_no_module_but_one_spells_the_name_that_goes_away() -> None:
    package = Path(radistill.__file__).parent
    spelled = [path.name for path in package.rglob("*.py") if "past_key_values" in path.read_text(encoding="utf-8")]
    assert spelled == ["cache_names.py"]


def test_outputs_of_old_and_new_versions_are_read() -> None:
    assert cache_of(SimpleNamespace(past_key_values="old")) == "old"
    assert cache_of(SimpleNamespace(cache="new")) == "new"
    assert cache_of(SimpleNamespace(cache=None)) is None
