"""Rolling rows back by different numbers of tokens, against reading what is left from the start."""

import pytest
import torch

import tiny
from radistill.mixers import use_fast_paths
from radistill.models.architectures import ARCHITECTURES
from radistill.models.loading import Model
from radistill.speculation.caches import RowCache, read_prompts, read_tokens, verifying
from radistill.speculation.states import stored

HYBRIDS = [family for family in tiny.ARCHITECTURES if ARCHITECTURES[(tiny.FAMILIES | tiny.REFUSED)[family][0]].ssm]


def tokens_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(4, 250, (length,), generator=generator).tolist() for length in lengths]


def fresh(model: Model, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma4_text", *HYBRIDS])
def test_reading_rolling_back_and_reading_on_is_reading_at_once(family: str) -> None:
    model = tiny.model(family)
    use_fast_paths(model.network)  # as `load` does, and whatever other tests have left in this process
    prompts, new = tokens_of(6, 0, 11, 3), tokens_of(4, 4, 4, 4)
    cache = RowCache(model.network.config, 4)
    read_prompts(model, cache, prompts)
    with verifying(model, cache) as history:
        logits = read_tokens(model, cache, torch.tensor(new))
    for row, (prompt, drafted) in enumerate(zip(prompts, new, strict=True)):
        torch.testing.assert_close(logits[row], fresh(model, prompt + drafted)[-4:], rtol=1e-3, atol=1e-4)

    dropped = [3, 0, 1, 2]
    cache.roll_back(dropped, history)
    texts = [prompt + drafted[: 4 - drop] for prompt, drafted, drop in zip(prompts, new, dropped, strict=True)]
    assert cache.lengths == [len(text) for text in texts]
    assert cache.width == max(cache.lengths)

    rows = [2, 0, 1]
    cache.select(rows)
    texts = [texts[row] for row in rows]
    twin = cache.fork()
    for reader in (twin, cache):  # what the fork read must not be seen by the original
        logits = read_tokens(model, reader, torch.tensor([[7]] * 3))
        for row, text in enumerate(texts):
            torch.testing.assert_close(logits[row, -1], fresh(model, [*text, 7])[-1], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_the_longest_row_takes_its_padding_along() -> None:
    model = tiny.model("llama")
    cache = RowCache(model.network.config, 2)
    read_prompts(model, cache, tokens_of(30, 2))
    cache.select([1])
    assert cache.width == 2
    assert {layer.get_seq_length() for layer in cache.layers} == {2}


@torch.inference_mode()
def test_empty_prompts_read_nothing() -> None:
    model = tiny.model("granitemoehybrid")
    cache = RowCache(model.network.config, 2)
    read_prompts(model, cache, [[], []])
    assert cache.width == 0
    assert not any(map(stored, cache.layers))


@torch.inference_mode()
@pytest.mark.parametrize("family", HYBRIDS)
def test_a_column_of_padding_does_not_reach_a_state(family: str) -> None:
    """transformers takes a single column for a token, whatever the attention mask says."""
    model = tiny.model(family)
    cache = RowCache(model.network.config, 2)
    read_prompts(model, cache, [[9], []])
    logits = read_tokens(model, cache, torch.tensor([[5], [6]]))
    torch.testing.assert_close(logits[1, -1], fresh(model, [6])[-1], rtol=1e-3, atol=1e-4)
