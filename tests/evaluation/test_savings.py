"""Savings: what the figures are made of, and that a second call goes on where the first was."""

import functools
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from radistill.conversion import convert
from radistill.errors import RadistillError
from radistill.evaluation.savings import measure
from radistill.evaluation.savings.measure import Room, SavingsSettings, measure_savings
from radistill.evaluation.savings.memory import peak_memory
from radistill.evaluation.savings.speed import Pass, timed_pass
from radistill.evaluation.sentences import tokens_of_text
from radistill.models.loading import Model
from radistill.report.savings import savings_note

SETTINGS = SavingsSettings(contexts=(48, 96), decode_tokens=6, repeats=2)


@pytest.fixture(scope="module")
def base() -> Model:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def hybrid(base: Model) -> Model:
    return convert(base, [1, 2], init="random")


def test_both_models_are_measured_at_every_context(base: Model, hybrid: Model, tmp_path: Path) -> None:
    started = time.perf_counter()
    found = measure_savings(base, hybrid, SETTINGS, tmp_path / "savings.json")
    elapsed = time.perf_counter() - started
    assert found == json.loads((tmp_path / "savings.json").read_text())
    assert [row["context"] for row in found["contexts"]] == [48, 96]
    spent = 0.0
    for row in found["contexts"]:
        for name, model in (("base", base), ("hybrid", hybrid)):
            figures, length = row[name], row["context"]
            held = model.anatomy.kv_bytes(length, 4) + model.anatomy.ssm_state_bytes()
            assert figures["cache_bytes"] == held
            # A median of two passes is at most what both took, and both are among the seconds of the whole.
            spent += length / figures["prefill_tokens_per_second"]
            spent += SETTINGS.decode_tokens / 2 / figures["decode_tokens_per_second"]
            assert 0 <= figures["self_speculation"]["acceptance_rate"] <= 1
        # The ratio of two medians of two passes each lies between the ratios of the passes.
        middle, least, most = row["ratios"]["prefill"]
        assert least <= middle <= most
        assert least <= row["base"]["first_token_seconds"] / row["hybrid"]["first_token_seconds"] <= most
    assert 0 < spent < elapsed
    sizes = found["models"]
    # Two of four layers keep their cache: 2 (keys, values) x 2 heads x 8 numbers x 4 bytes a layer.
    assert (sizes["base"]["kv_bytes_per_token"], sizes["hybrid"]["kv_bytes_per_token"]) == (512, 256)
    assert sizes["base"]["cache_bytes"] == {"4096": 2**21, "32768": 2**24, "131072": 2**26}
    assert sizes["hybrid"]["cache_bytes"]["131072"] == 2**25 + sizes["hybrid"]["state_bytes"]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_cache_that_is_stated_is_the_cache_that_is_held(base: Model, hybrid: Model, batch: int) -> None:
    for model in (base, hybrid):
        context = torch.tensor([tokens_of_text(model, 64)] * batch)
        anatomy = model.anatomy
        assert timed_pass(model, context, 2).cache_bytes == batch * (
            anatomy.kv_bytes(64, 4) + anatomy.ssm_state_bytes()
        )


def test_decoding_is_the_models_own(base: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    context = torch.tensor([tokens_of_text(base, 40)])
    read: list[torch.Tensor] = []
    forward = type(base.network).forward

    @functools.wraps(forward)  # its signature says what the cache is called
    def watched(network: Any, *arguments: Any, **named: Any) -> Any:
        read.append(named["input_ids"])
        return forward(network, *arguments, **named)

    plain = base.network.generate(context, max_new_tokens=5, do_sample=False, eos_token_id=None)
    monkeypatch.setattr(type(base.network), "forward", watched)
    assert len(timed_pass(base, context, 5).step_seconds) == 5
    assert torch.equal(torch.cat(read, dim=1), plain)


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(base: Model, hybrid: Model, tmp_path: Path) -> None:
    path = tmp_path / "savings.json"
    first = measure_savings(base, hybrid, SavingsSettings(contexts=(48,), decode_tokens=6, repeats=2), path)
    both = measure_savings(base, hybrid, SETTINGS, path)
    assert [row["context"] for row in both["contexts"]] == [48, 96]
    assert both["contexts"][0] == first["contexts"][0]  # seconds are never the same twice
    with pytest.raises(RadistillError, match=r"savings\.json: was measured with other settings; remove it, or choose"):
        measure_savings(base, hybrid, replace(SETTINGS, decode_tokens=5), path)
    with pytest.raises(RadistillError, match="was measured with other fingerprints"):
        measure_savings(hybrid, base, SETTINGS, path)
    for junk in ('{"contexts": 3}', '{"contexts": [3]}', '{"contexts": [{}]}', "[]", "{"):
        path.write_text(junk)
        with pytest.raises(RadistillError, match=r"savings\.json: .*; remove it, or choose another file with --out"):
            measure_savings(base, hybrid, SETTINGS, path)
    path.write_text("{}")
    with pytest.raises(RadistillError, match="holds no savings"):
        measure_savings(base, hybrid, SETTINGS, path)


def test_contexts_that_a_model_cannot_hold_are_refused(base: Model, hybrid: Model, tmp_path: Path) -> None:
    with pytest.raises(RadistillError, match="a context of 510 tokens and 11 more are beyond the 512 tokens"):
        measure_savings(base, hybrid, SavingsSettings(contexts=(510,), decode_tokens=6), tmp_path / "s.json")


def test_self_speculation_can_be_left_out(base: Model, hybrid: Model, tmp_path: Path) -> None:
    settings = SavingsSettings(contexts=(48,), decode_tokens=2, repeats=1, draft_length=None)
    [row] = measure_savings(base, hybrid, settings, tmp_path / "s.json")["contexts"]
    assert row["base"]["self_speculation"] is row["hybrid"]["self_speculation"] is None


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    for _ in range(2):  # memory that was freed before is seen again
        with peak_memory(torch.device("cpu")) as peak:
            held = torch.ones(2**25)  # 128 MiB
            del held
        assert peak.bytes is not None
        assert 0.9 * 2**27 < peak.bytes < 1.6 * 2**27
    with peak_memory(torch.device("meta")) as peak:
        pass
    assert peak.bytes is None


def test_a_text_has_as_many_tokens_as_are_asked_for(base: Model) -> None:
    assert [len(tokens_of_text(base, count)) for count in (1, 100, 20_000)] == [1, 100, 20_000]
    assert tokens_of_text(base, 100) == tokens_of_text(base, 20_000)[:100]


def test_contexts_beyond_the_model_are_timed_if_that_is_asked_for(base: Model, hybrid: Model, tmp_path: Path) -> None:
    settings = SavingsSettings((600,), decode_tokens=2, repeats=2, draft_length=None, beyond_context=True)
    [row] = measure_savings(base, hybrid, settings, tmp_path / "s.json")["contexts"]
    low, high = row["hybrid"]["decode_range"]
    assert 0 < low <= row["hybrid"]["decode_tokens_per_second"] <= high
    assert row["base"]["first_token_seconds"] == pytest.approx(600 / row["base"]["prefill_tokens_per_second"])


class Counting:
    """An engine that does nothing; its passes take 1, 2, 3… seconds. It is stopped before the pass after `passes`."""

    name, dtype = "counting", "float32"

    def __init__(self, passes: float = math.inf) -> None:
        self.read: list[int] = []
        self.passes = passes

    @contextmanager
    def reading(self, model: Model, room: Room, batch_size: int) -> Iterator[Any]:
        """As any engine."""

        def passed(tokens: Sequence[int]) -> Pass:
            if len(self.read) >= self.passes:
                raise KeyboardInterrupt
            self.read.append(len(tokens))
            return Pass(float(len(self.read)), [0.1 * len(self.read)] * room.steps, 8)

        yield passed


COUNTED = SavingsSettings(contexts=(32,), repeats=2, decode_tokens=2, draft_length=None)


def test_a_turn_that_is_finished_is_not_lost(tmp_path: Path, base: Model, hybrid: Model) -> None:
    """Stopped in the second turn, the first one counts; more turns than before are added to those that are there."""
    path = tmp_path / "savings.json"
    engine = Counting(passes=5)  # two to warm up, a turn, and one of the second
    with pytest.raises(KeyboardInterrupt):
        measure_savings(base, hybrid, COUNTED, path, engine)
    [row] = json.loads(path.read_text())["contexts"]
    assert [one["prefill_seconds"] for one in row["base"]["passes"]] == [3]
    engine = Counting()
    [row] = measure_savings(base, hybrid, COUNTED, path, engine)["contexts"]
    assert len(engine.read) == 4
    assert [[one["prefill_seconds"] for one in row[name]["passes"]] for name in ("base", "hybrid")] == [[3, 3], [4, 4]]
    [row] = measure_savings(base, hybrid, replace(COUNTED, repeats=3), path, Counting())["contexts"]
    assert [one["prefill_seconds"] for one in row["hybrid"]["passes"]] == [4, 4, 4]
    assert row["ratios"]["decode"] == pytest.approx([0.75] * 3)
    assert row["base"]["first_token_seconds"] == 3
    engine = Counting()
    again = measure_savings(base, hybrid, COUNTED, path, engine)
    assert again["contexts"] == [row]
    assert not engine.read
    assert "Medians of 3 passes" in savings_note(again)


def test_contexts_may_have_different_numbers_of_turns(tmp_path: Path, base: Model, hybrid: Model) -> None:
    path = tmp_path / "savings.json"
    measure_savings(base, hybrid, COUNTED, path, Counting())
    found = measure_savings(base, hybrid, replace(COUNTED, contexts=(48,), repeats=1), path, Counting())
    assert [len(row["hybrid"]["passes"]) for row in found["contexts"]] == [2, 1]
    assert "Medians of 1 to 2 passes" in savings_note(found)


@pytest.mark.parametrize(
    "damage", [{"prefill_seconds": 0}, {"step_seconds": []}, {"step_seconds": [-1]}, {"cache_bytes": None}]
)
def test_a_damaged_pass_is_refused(tmp_path: Path, base: Model, hybrid: Model, damage: dict[str, Any]) -> None:
    path = tmp_path / "savings.json"
    found = measure_savings(base, hybrid, COUNTED, path, Counting())
    found["contexts"][0]["base"]["passes"][1] |= damage
    path.write_text(json.dumps(found))
    with pytest.raises(RadistillError, match=rf"savings\.json: .*{next(iter(damage))}.*; remove it"):
        measure_savings(base, hybrid, COUNTED, path, Counting())


def test_a_long_context_is_timed_from_its_first_pass_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes minutes; the memory is watched in that pass too."""
    monkeypatch.setattr(measure, "LONG", 48)
    engine, model = Counting(), tiny.model("llama")
    settings = replace(COUNTED, contexts=(32, 48))
    found = measure_savings(model, model, settings, tmp_path / "savings.json", engine)
    assert [engine.read.count(32), engine.read.count(48)] == [6, 4]
    # Medians of the passes 3 and 5, and, of the long context, 7 and 9.
    assert [row["base"]["prefill_tokens_per_second"] for row in found["contexts"]] == [32 / 4, 48 / 8]
    assert all(row[name]["peak_bytes"] is not None for row in found["contexts"] for name in ("base", "hybrid"))
