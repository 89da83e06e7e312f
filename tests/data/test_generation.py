"""Batched generation against a naive loop, and what a kill leaves of its cache."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

import tiny
from radistill.errors import RadistillError
from radistill.models import generation
from radistill.models.endings import end_tokens
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.speculation.masks import ComponentMask, masked

PROMPTS = [[5], [7, 8, 9], list(range(40)), [3] * 17, [200, 100], [9, 8, 7]]


def naive(model: Model, prompt: list[int], max_new_tokens: int, stops: frozenset[int]) -> list[int]:
    """One prompt, no padding, no cache: the whole sequence again for every token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_new_tokens:
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "qwen2", "granitemoehybrid"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_greedy_is_the_naive_loop(family: str, batch_size: int) -> None:
    model = tiny.model(family)
    stops = end_tokens(model)
    expected = [naive(model, prompt, 12, stops) for prompt in PROMPTS]
    assert generate(model, PROMPTS, max_new_tokens=12, batch_size=batch_size) == expected


@pytest.mark.parametrize(
    ("family", "skipped"),
    [
        ("llama", (0,)),
        ("llama", (1, 3)),
        ("llama", (0, 1, 2, 3)),
        ("granitemoehybrid", (1,)),
        ("granitemoehybrid", (1, 3)),
    ],
)
def test_a_masked_model_generates_as_its_naive_loop(family: str, skipped: tuple[int, ...]) -> None:
    """Also where the layer is skipped off which transformers reads the length of its cache."""
    model = tiny.model(family)
    with masked(model, ComponentMask.attention(skipped)):
        expected = [naive(model, prompt, 8, end_tokens(model)) for prompt in PROMPTS]
        assert generate(model, PROMPTS, max_new_tokens=8, batch_size=3) == expected


def test_responses_stop_at_the_first_end_token_and_keep_it() -> None:
    model = tiny.model("llama")
    free = naive(model, PROMPTS[2], 12, frozenset())
    stop = free[4]
    model.network.generation_config.eos_token_id = [stop, 259]
    [response] = generate(model, [PROMPTS[2]], max_new_tokens=12)
    assert response == free[: free.index(stop) + 1]


def test_an_end_token_at_once_is_a_response_of_one_token() -> None:
    model = tiny.model("llama")
    first = naive(model, [5, 6], 1, frozenset())[0]
    model.network.generation_config.eos_token_id = first
    # In a batch with a longer one, the rest of the row is padding, which must not be returned.
    responses = generate(model, [[5, 6], [9] * 30], max_new_tokens=6)
    assert responses[0] == [first]


def test_the_checkpoints_own_generation_settings_do_not_count() -> None:
    model = tiny.model("llama")
    expected = generate(model, PROMPTS, max_new_tokens=10)
    own = GenerationConfig(
        do_sample=True, temperature=3.0, top_k=5, repetition_penalty=5.0, no_repeat_ngram_size=1, eos_token_id=259
    )
    model.network.generation_config = own
    assert generate(model, PROMPTS, max_new_tokens=10) == expected
    assert model.network.generation_config is own


def test_the_models_mode_and_the_random_state_are_given_back() -> None:
    model = tiny.model("llama", attention_dropout=0.5)
    expected = generate(model, PROMPTS, max_new_tokens=6, temperature=1.0)
    model.network.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert generate(model, PROMPTS, max_new_tokens=6, temperature=1.0) == expected
    assert model.network.training
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_draws_from_the_whole_distribution() -> None:
    """Frequencies of the first token are the model's probabilities; a top-k of 50 would cut half of them off."""
    model = tiny.model("llama")
    with torch.no_grad():
        p = model.network(input_ids=torch.tensor([[5, 6]])).logits[0, -1].div(2.0).softmax(-1)
    drawn = generate(model, [[5, 6]] * 4000, max_new_tokens=1, temperature=2.0, batch_size=2000)
    frequency = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(p)) / 4000
    tail = p.sort().indices[:150]
    assert frequency[tail].sum() == pytest.approx(float(p[tail].sum()), abs=0.03)
    assert (frequency - p).abs().sum() < 0.3


def test_top_p_leaves_the_unlikely_out() -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        p = model.network(input_ids=torch.tensor([[5, 6]])).logits[0, -1].softmax(-1)
    ranked = p.sort(descending=True)
    nucleus = ranked.indices[: int((ranked.values.cumsum(0) < 0.3).sum()) + 1].tolist()
    drawn = generate(model, [[5, 6]] * 300, max_new_tokens=1, temperature=1.0, top_p=0.3, batch_size=300)
    assert {tokens[0] for tokens in drawn} <= set(nucleus)


def test_seeds() -> None:
    model = tiny.model("llama")
    one = generate(model, PROMPTS, max_new_tokens=8, temperature=1.0, seed=1)
    assert generate(model, PROMPTS, max_new_tokens=8, temperature=1.0, seed=1) == one
    assert generate(model, PROMPTS, max_new_tokens=8, temperature=1.0, seed=2) != one
    assert generate(model, PROMPTS, max_new_tokens=8, seed=1) == generate(model, PROMPTS, max_new_tokens=8, seed=2)
    # Batches have seeds of their own: two batches with the same prompts do not get the same responses.
    twice = generate(model, [[5, 6]] * 8, max_new_tokens=8, temperature=1.0, batch_size=4)
    assert twice[:4] != twice[4:]


class Killed(Exception):
    pass


def count_runs(monkeypatch: pytest.MonkeyPatch, die_after: int = 1000) -> list[int]:
    """Record the size of each batch that really runs; die before the one after `die_after`."""
    run, sizes = generation._run, []

    def counted(prompts: list[list[int]], *arguments: object) -> list[list[int]]:
        if len(sizes) == die_after:
            raise Killed
        sizes.append(len(prompts))
        return run(prompts, *arguments)

    monkeypatch.setattr(generation, "_run", counted)
    return sizes


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("torn", [0, 1, 30])
def test_a_killed_run_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, torn: int
) -> None:
    model = tiny.model("llama")
    arguments = {"max_new_tokens": 6, "temperature": temperature, "batch_size": 2}
    whole = generate(model, PROMPTS, **arguments)
    cache = tmp_path / "deep" / "responses.jsonl"
    with monkeypatch.context() as patch:
        count_runs(patch, die_after=2)
        with pytest.raises(Killed):
            generate(model, PROMPTS, **arguments, cache=cache)
    if torn:  # a kill in the middle of a write
        cache.write_bytes(cache.read_bytes()[:-torn])
    sizes = count_runs(monkeypatch)
    assert generate(model, PROMPTS, **arguments, cache=cache) == whole
    # Without its line break, a whole line still counts; a cut one runs again.
    assert len(sizes) == (2 if torn == 30 else 1)
    sizes.clear()
    assert generate(model, PROMPTS, **arguments, cache=cache) == whole
    assert sizes == []


def test_a_cache_survives_rubbish(tmp_path: Path) -> None:
    model = tiny.model("llama")
    cache = tmp_path / "cache.jsonl"
    cache.write_bytes(b'\xff\x00rubbish\n[]\n{"key": 1}\nnull\n"text"\n\n{"key": "a", "respo')
    whole = generate(model, PROMPTS, max_new_tokens=4)
    assert generate(model, PROMPTS, max_new_tokens=4, cache=cache) == whole
    entry = json.loads(cache.read_text(errors="replace").splitlines()[-1])
    for damaged in ([[0]], [], 7, [[token + 1 for token in tokens] for tokens in entry["value"]]):
        cache.write_text(json.dumps({**entry, "value": damaged}))
        assert generate(model, PROMPTS, max_new_tokens=4, cache=cache) == whole


def test_the_cache_tells_models_masks_and_settings_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny.model("llama"), tiny.model("llama", seed=1)
    cache = tmp_path / "cache.jsonl"
    sizes = count_runs(monkeypatch)
    base = generate(model, PROMPTS, max_new_tokens=5, cache=cache)
    assert generate(model, PROMPTS, max_new_tokens=5, cache=cache, network=other.network) != base
    with masked(model, ComponentMask.attention([1, 2])):
        assert generate(model, PROMPTS, max_new_tokens=5, cache=cache) != base
    generate(model, PROMPTS, max_new_tokens=6, cache=cache)
    generate(model, PROMPTS, max_new_tokens=5, temperature=0.7, cache=cache)
    generate(model, PROMPTS, max_new_tokens=5, temperature=0.7, seed=1, cache=cache)
    assert len(sizes) == 6
    assert generate(model, PROMPTS, max_new_tokens=5, cache=cache) == base
    assert generate(model, PROMPTS, max_new_tokens=5, seed=4, cache=cache) == base
    assert len(sizes) == 6


def test_a_student_runs_with_the_teachers_tokenizer() -> None:
    teacher, student = tiny.model("llama"), tiny.model("granitemoehybrid")
    expected = generate(student, PROMPTS, max_new_tokens=5)
    assert generate(teacher, PROMPTS, max_new_tokens=5, network=student.network) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 has no tokens"),
        ({"prompts": [[1, 260]]}, r"prompt 0 has a token outside the model's vocabulary \(0 to 259\)"),
        ({"prompts": [[-1]]}, "prompt 0 has a token outside"),
        ({"max_new_tokens": 0}, "start at 1"),
        ({"batch_size": 0}, "start at 1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-45}, "temperature is 1e-45"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(RadistillError, match=message):
        generate(tiny.model("llama"), **({"prompts": [[1]], "max_new_tokens": 2} | arguments))


def test_no_prompts() -> None:
    assert generate(tiny.model("llama"), [], max_new_tokens=2) == []
