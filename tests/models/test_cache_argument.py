"""The name of the cache's argument, whatever version of transformers is installed."""

import warnings

import pytest
import torch

import tiny
from radistill.models.generation import cache_argument


@pytest.mark.parametrize("family", ["llama", "qwen2", "granitemoehybrid", "falcon_h1", "jamba", "qwen3_next"])
def test_the_cache_is_read_without_a_warning(family: str) -> None:
    network = tiny.build(family)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad(), warnings.catch_warnings():
        whole = network(input_ids=ids, use_cache=False).logits[:, -1]
        cache = network(input_ids=ids[:, :-1], use_cache=True).past_key_values
        warnings.simplefilter("error", FutureWarning)
        stepped = network(input_ids=ids[:, -1:], use_cache=True, **{cache_argument(network): cache}).logits[:, -1]
    torch.testing.assert_close(stepped, whole, rtol=1e-4, atol=1e-4)
