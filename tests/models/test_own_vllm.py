"""vLLM that is started for a block: when and with what, and that it is gone afterwards. Ours stands in for it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import tiny
from fake_server import vllm_stands_in
from radistill.errors import RadistillError
from radistill.models.generation import generate
from radistill.models.loading import load, load_without_weights
from radistill.models.server import vllm
from radistill.models.server.settings import ServerSettings

PROMPTS = [[5, 6, 7], [9] * 30, [8]]
VLLM = ServerSettings(url="vllm", requests=2)


def test_it_writes_what_the_network_writes_and_is_started_only_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, cache = vllm_stands_in(monkeypatch), tmp_path / "cache"
    folder = tiny.save("llama", tmp_path / "model")
    for dtype, seed, times in (("float32", 0, 1), ("float32", 0, 1), ("bfloat16", 0, 2), ("bfloat16", 1, 3)):
        tiny.save("llama", folder, seed=seed)
        with vllm.opened(VLLM, load_without_weights(folder, dtype=dtype)) as server:
            assert server is not None
            server.make_room(34)
            for most in (3, 4):  # another setting, the same server
                expected = generate(load(folder, dtype=dtype), PROMPTS, max_new_tokens=most)
                without = load_without_weights(folder, dtype=dtype)
                assert generate(without, PROMPTS, max_new_tokens=most, cache=cache, server=server) == expected
        # What it wrote is known again, but not of other weights or in another number format.
        assert len(started) == times
        assert [fake.address for fake in started] == [""] * times
    assert started[0].context == 34
    assert [str(fake.model.network.dtype) for fake in started[:2]] == ["torch.float32", "torch.bfloat16"]


def test_it_ends_with_an_error_and_with_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = vllm_stands_in(monkeypatch, dies_after=1)
    model = load(tiny.save("llama", tmp_path / "model"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def write(at_once: Any) -> None:
        with vllm.opened(VLLM, model) as server:
            assert server is not None
            server.make_room(40)
            generate(model, PROMPTS, max_new_tokens=3, server=server, on_response=at_once)

    for at_once, error in ((None, RadistillError), (stop, KeyboardInterrupt)):
        with pytest.raises(error):
            write(at_once)
        assert started.pop().address == ""


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    monkeypatch.setenv(vllm.PYTHON, "/nowhere/python")
    way_out = "vLLM: /nowhere/python has none; install it there, or name the Python of .* in RADISTILL_VLLM"
    with pytest.raises(RadistillError, match=way_out), vllm.opened(VLLM, model):
        pass
    monkeypatch.setenv(vllm.PYTHON, "true")
    model = load(tiny.save("qwen3_5_text", tmp_path / "model"))
    with pytest.raises(RadistillError, match="model: on a CPU, vLLM computes Gated DeltaNet in bfloat16 alone"):
        vllm.opened(VLLM, model).__enter__()
    with vllm.opened(VLLM, load(tmp_path / "model", dtype="bfloat16")):
        pass
    with pytest.raises(ValidationError, match="model is for a server that has several"):
        ServerSettings(url="vllm", model="other")
