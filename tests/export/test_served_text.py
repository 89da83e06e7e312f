"""Text by a real server, llama.cpp's: the tokens that the built-in generation writes, and nothing lost when it goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import torch

import tiny
from radistill.data.documents import prompt_tokens
from radistill.data.examples import Example
from radistill.errors import RadistillError
from radistill.export.engines.llama_cpp import LlamaCpp, as_gguf
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.server import client
from radistill.models.server.served import Server
from radistill.models.server.settings import ServerSettings

PROMPTS = [[5, 6, 7], [39] * 30, [71, 72], [200, 100, 3, 4], [88], [77, 78, 79]]


def opened(engine: LlamaCpp, model: Model, requests: int) -> Server:
    return Server(ServerSettings(url=engine.address, requests=requests, retries=0), model.tokenizer)


def test_llama_cpp_writes_the_tokens_of_the_built_in_generation(tmp_path: Path) -> None:
    """Of a tiny model, past its own end token, in a few slots at once."""
    model = small.model("llama", hidden_size=64)
    engine = LlamaCpp(as_gguf(model, tmp_path / "m.gguf", "float32"), context=256, slots=3)
    server = opened(engine, model, requests=3)
    free = generate(model, PROMPTS, max_new_tokens=12, stops=frozenset(), vocabulary=small.TOKENS)
    for stops in (frozenset[int](), frozenset({free[1][0], free[3][5]})):
        expected = generate(model, PROMPTS, max_new_tokens=12, stops=stops, vocabulary=small.TOKENS)
        found = generate(model, PROMPTS, max_new_tokens=12, stops=stops, vocabulary=small.TOKENS, server=server)
        assert found == expected
    sampled = [
        generate(model, PROMPTS, max_new_tokens=12, temperature=1.0, seed=seed, server=server) for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(RadistillError, match="its context ends after 256 tokens, prompt included; give"):
        generate(model, [[5] * 250], max_new_tokens=20, stops=frozenset(), server=server)
    other = small.model("llama", pre="qwen2", hidden_size=64)
    with pytest.raises(RadistillError, match="has another tokenizer"):
        opened(engine, other, requests=1)
    other = tiny.model("llama")
    with pytest.raises(RadistillError, match="has another tokenizer"):
        opened(engine, other, requests=1)


def test_draws_follow_the_distribution(tmp_path: Path) -> None:
    """Temperature before top-p, as in transformers, and no other sampler."""
    model = small.model("llama", hidden_size=64)
    engine = LlamaCpp(as_gguf(model, tmp_path / "m.gguf", "float32"), context=64, slots=4)
    drawn = generate(
        model, [[5, 6]] * 400, max_new_tokens=1, temperature=0.7, top_p=0.5, server=opened(engine, model, requests=4)
    )
    with torch.no_grad():
        chances = (model.network(torch.tensor([[5, 6]])).logits[0, -1] / 0.7).softmax(-1)
    order = chances.argsort(descending=True)
    kept = order[: int((chances[order].cumsum(0) < 0.5).sum()) + 1]
    assert {token for (token,) in drawn} <= set(kept.tolist())
    share = sum(token == int(order[0]) for (token,) in drawn) / len(drawn)
    assert share == pytest.approx(float(chances[order[0]] / chances[kept].sum()), abs=0.1)


SERVE = """
import sys, time
from pathlib import Path
from radistill.export.engines.llama_cpp import LlamaCpp
engine = LlamaCpp(Path(sys.argv[1]), context=256, slots=2)
print(engine.address, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with -9 among the responses; another one, at another address, goes on."""
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.1)
    model = small.model("llama", hidden_size=64)
    file, cache = as_gguf(model, tmp_path / "m.gguf", "float32"), tmp_path / "responses.jsonl"
    prompts = [[5 + at, 6, 7] for at in range(40)]
    expected = generate(model, prompts, max_new_tokens=60, stops=frozenset(), vocabulary=small.TOKENS)

    def served(die_after: int | None) -> list[list[int]]:
        command = [sys.executable, "-c", SERVE, str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            server = Server(ServerSettings(url=address, requests=2, retries=1), model.tokenizer)
            told: list[int] = []

            def tell(at: int, tokens: list[int]) -> None:
                told.append(at)
                if len(told) == die_after:
                    os.kill(process.pid, signal.SIGKILL)
                    time.sleep(0.2)

            try:
                return generate(
                    model, prompts, max_new_tokens=60, stops=frozenset(), vocabulary=small.TOKENS,
                    cache=cache, server=server, on_response=tell,
                )  # fmt: skip
            finally:
                process.kill()

    with pytest.raises(RadistillError, match="cannot be reached"):
        served(die_after=5)
    kept = len(cache.read_text().splitlines())
    assert 5 <= kept < len(prompts)
    assert served(die_after=None) == expected
    assert len(cache.read_text().splitlines()) == len(prompts)


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_by_a_server_writes_what_it_writes_here(smollm2: Model, tmp_path: Path) -> None:
    """Equal texts, but where the two likeliest tokens are all but equal."""
    engine = LlamaCpp(as_gguf(smollm2, tmp_path / "m.gguf", "float32"), context=256, slots=3)
    questions = ["What is the capital of France?", "Name three rivers, and an emoji 🙂 for each.", "Hi", "2 + 2 = ?"]
    prompts = [prompt_tokens(Example.of_user("", text), smollm2.tokenizer) for text in questions]
    ours = generate(smollm2, prompts, max_new_tokens=40)
    theirs = generate(smollm2, prompts, max_new_tokens=40, server=opened(engine, smollm2, requests=3))
    for prompt, one, two in zip(prompts, ours, theirs, strict=True):
        if one == two:
            continue
        at = next(at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
        with torch.no_grad():
            logits = smollm2.network(torch.tensor([[*prompt, *one[:at]]])).logits[0, -1]
        assert abs(float(logits[one[at]] - logits[two[at]])) < 1e-3
    assert sum(map(len, theirs)) > 60
