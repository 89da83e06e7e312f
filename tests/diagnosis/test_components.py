"""The component-aware table, against one document and one token at a time."""

import itertools
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import tiny
from radistill.cli import main
from radistill.diagnosis.components import ALPHA_LENGTHS, ComponentTable, measure_drafts
from radistill.diagnosis.draft_tally import DraftTally
from radistill.diagnosis.latency import Latencies
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.models.logits import ResponseLogits
from radistill.models.sequences import Document
from radistill.report.component_table import component_tables
from radistill.speculation.acceptance import rounds_of
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.payoff import Estimate
from radistill.speculation.presets import default_masks, parse_mask


def documents(count: int = 4, length: int = 12) -> list[Document]:
    generator = torch.Generator().manual_seed(5)
    return [
        Document(str(n), tuple(torch.randint(4, 60, (length + n,), generator=generator).tolist()), length // 2)
        for n in range(count)
    ]


def log_probabilities(model: Model, mask: ComponentMask) -> list[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Of each document: its response tokens, and both models' log-probabilities of them, in float64."""
    found = []
    for document in documents():
        ids = torch.tensor([document.tokens])
        with torch.no_grad():
            full = model.network(input_ids=ids).logits[0].double().log_softmax(-1)
            with masked(model, mask):
                draft = model.network(input_ids=ids).logits[0].double().log_softmax(-1)
        start = document.response_start
        found.append((list(document.tokens[start:]), full[start - 1 : -1], draft[start - 1 : -1]))
    return found


def alpha_of(courses: list[tuple[float, list[bool]]], draft_length: int) -> float:
    """Accepted over drafted tokens of many courses of decoding, each with its weight."""
    accepted, drafted = 0.0, 0.0
    for weight, course in courses:
        position = 0
        for count in rounds_of(course, draft_length):
            accepted += weight * count
            drafted += weight * min(draft_length, len(course) - position)
            position += count + 1
    return accepted / drafted


@pytest.mark.parametrize("family", tiny.usual_first(["granitemoehybrid-experts", *tiny.ARCHITECTURES]))
def test_the_table_equals_the_naive_one(family: str) -> None:
    model = tiny.model(family)
    some = f"attention:{model.anatomy.attention_layers[-1]} mlp:3"
    masks = default_masks(model) | {"some": parse_mask(some, model)}
    measured = measure_drafts(model, {0.0: documents()}, masks, tokens_per_batch=30)
    assert [draft.name for draft in measured.drafts] == [
        "attention-off",
        *(["ssm-off"] if model.anatomy.ssm_layers else []),
        "mlp-off",
        "layer-skip:33%",
        "exit:2",
        "exit:3",
        "some",
    ]
    for draft in measured.drafts:
        assert parse_mask(draft.mask, model) == masks[draft.name]
        texts = log_probabilities(model, masks[draft.name])
        tokens = sum(len(response) for response, _, _ in texts)
        agreements = [(full.argmax(-1) == off.argmax(-1)).tolist() for _, full, off in texts]
        [greedy] = draft.temperatures
        assert greedy.rate.value == pytest.approx(sum(map(sum, agreements)) / tokens)
        for length in ALPHA_LENGTHS:
            assert greedy.alpha[length].value == pytest.approx(alpha_of([(1, one) for one in agreements], length))
        more, tv, kl = 0.0, 0.0, 0.0
        for response, full, off in texts:
            more += sum(float(full[t, token] - off[t, token]) for t, token in enumerate(response))
            tv += float((full.exp() - off.exp()).abs().sum()) / 2
            kl += float((full.exp() * (full - off)).sum())
        assert draft.perplexity_ratio is not None
        assert draft.kl is not None
        assert draft.perplexity_ratio.value == pytest.approx(math.exp(more / tokens), rel=1e-3)
        assert draft.tv.value == pytest.approx(tv / tokens, abs=1e-4)
        assert draft.kl.value == pytest.approx(kl / tokens, rel=1e-3, abs=1e-5)
        for one in (greedy.rate, *greedy.alpha.values(), draft.tv, draft.kl, draft.perplexity_ratio):
            assert one.interval[0] <= one.value + 1e-9
            assert one.value <= one.interval[1] + 1e-9


@pytest.mark.parametrize("family", ["falcon_h1", "qwen3_5_text", "qwen2"])
def test_sampled_rounds_and_speeds_are_those_of_every_course(family: str) -> None:
    """Each way in which tokens can be accepted or not, played out with its probability and its seconds."""
    model = tiny.model(family)
    mask = parse_mask("mlp:1,2", model)
    parts = {(layer, component): 0.5 for layer in range(4) for component in (Component.ATTENTION, Component.MLP)}
    latencies = Latencies(64, parts, 1.0, 0.5, {1: 5.5, 2: 5.6, 3: 5.7, 5: 5.9, 9: 6.3, 17: 7.1})
    measured = measure_drafts(
        model, {0.6: documents()[:2], 0.0: documents()}, {"some": mask}, latencies=latencies, tokens_per_batch=30
    )
    [draft] = measured.drafts
    sampled, greedy = draft.temperatures
    assert (sampled.rule, greedy.rule) == ("sampled", "greedy")
    assert draft.step_seconds == 4.5
    texts = log_probabilities(model, mask)
    assert measured.n_tokens == sum(len(response) for response, _, _ in texts[:2])
    courses = []
    for _, full, off in texts[:2]:
        p, q = ((logits / 0.6).softmax(-1) for logits in (full, off))
        chances = torch.minimum(p, q).sum(-1).tolist()
        for course in itertools.product([False, True], repeat=len(chances)):
            weights = [one if accepted else 1 - one for one, accepted in zip(chances, course, strict=True)]
            courses.append((math.prod(weights), list(course)))
    for length in ALPHA_LENGTHS:
        assert sampled.alpha[length].value == pytest.approx(alpha_of(courses, length), abs=1e-4)

    agreements = [(full.argmax(-1) == off.argmax(-1)).tolist() for _, full, off in texts]
    speeds = {}
    for length in (1, 2, 4, 8):
        seconds = 0.0
        for course in agreements:
            position = 0
            for count in rounds_of(course, length):
                drafted = min(length, len(course) - position)
                # A step that reads the last drafted token follows if all were accepted.
                seconds += latencies.step(mask) * (drafted + (count == drafted)) + latencies.verify(drafted + 1)
                position += count + 1
        speeds[length] = 5.5 * sum(map(len, agreements)) / seconds
    assert greedy.payoff is not None
    assert {length: greedy.payoff.by_length[length] for length in speeds} == pytest.approx(speeds)


def test_hostile_logits_are_tallied_as_they_are_defined() -> None:
    generator = torch.Generator().manual_seed(3)
    full, draft = (torch.randn(7, 40, generator=generator) * 30 for _ in range(2))
    draft[1] = full[1]
    draft[2, 5] = float("nan")
    draft[3, full[3].argmax()] = float("-inf")
    draft[4] = 0.0
    rows = torch.tensor([0, 0, 1, 2, 2, 3, 3])
    targets = torch.arange(7)
    tally = DraftTally({0.0: None, 0.5: None})
    outputs = [ResponseLogits(logits, targets, rows) for logits in (full, draft)]
    tally.compare(*outputs)
    tally.accept(*outputs, 0.0)
    tally.accept(*outputs, 0.5)
    p, q = (logits.double().softmax(-1) for logits in (full, draft))
    tv = (p - q).abs().sum(-1) / 2
    kl = torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)
    overlap = torch.minimum((full.double() / 0.5).softmax(-1), (draft.double() / 0.5).softmax(-1)).sum(-1)
    tv[2], overlap[2] = 1.0, 0.0  # nothing is proposed
    assert tally.tokens == [2, 1, 2, 2]
    for sums, figure in ((tally.tv, tv), (tally.kl, kl)):
        expected = [float(figure[rows == row].sum()) for row in range(4)]
        assert sums == pytest.approx(expected, nan_ok=True, abs=1e-12)
    assert math.isnan(tally.kl[1])
    assert tally.kl[2] == math.inf
    assert [*itertools.chain(*tally.accepted[0.5])] == pytest.approx(overlap.tolist(), abs=1e-12)
    agree = full.argmax(-1) == draft.argmax(-1)
    agree[2] = False
    assert [*itertools.chain(*tally.accepted[0.0])] == agree.tolist()


@pytest.mark.parametrize("family", ["llama", "granitemoehybrid", "falcon_h1", "zamba2", "olmo3", "lfm2", "kimi_linear"])
def test_what_a_draft_leaves_out(family: str) -> None:
    model = tiny.model(family)
    measured = measure_drafts(
        model, {0.0: documents(1)}, default_masks(model) | {"one": parse_mask("attention:1", model)}
    )
    drafts = {draft.name: draft for draft in measured.drafts}
    counts = model.anatomy.parameters(model.network)
    assert drafts["attention-off"].parameters == counts["attention"]
    assert drafts["attention-off"].kv_bytes_per_token == model.anatomy.kv_bytes_per_token()
    assert drafts["attention-off"].ssm_state_bytes == 0
    assert drafts["mlp-off"].parameters == counts["mlp"]
    assert drafts["mlp-off"].kv_bytes_per_token == drafts["mlp-off"].ssm_state_bytes == 0
    if model.anatomy.ssm_layers:
        assert drafts["ssm-off"].parameters == counts["ssm"]
        assert drafts["ssm-off"].ssm_state_bytes == model.anatomy.ssm_state_bytes()
    share = len(model.anatomy.attention_layers)
    # Zamba2's layers share the weights of their attention, so one of them alone spares none.
    assert drafts["one"].parameters == (0 if family == "zamba2" else counts["attention"] // share)
    assert drafts["one"].kv_bytes_per_token == model.anatomy.kv_bytes_per_token() // share


def test_bad_input() -> None:
    model = tiny.model("llama")
    for nothing in ({}, {0.0: []}, {0.0: documents(), 0.6: []}):
        with pytest.raises(RadistillError, match="no documents to measure on"):
            measure_drafts(model, nothing)
    with pytest.raises(RadistillError, match="layer 9 does not exist"):
        measure_drafts(model, {0.0: documents()}, {"x": ComponentMask.attention([9])})
    one = measure_drafts(tiny.model("llama", layers=1), {0.0: [Document("a", (5, 6), 1)]})
    assert [draft.name for draft in one.drafts] == ["attention-off", "mlp-off"]
    assert one.n_tokens == 1
    with torch.no_grad():
        model.network.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RadistillError, match="NaN or infinite on these documents"):
        measure_drafts(model, {0.0: documents()})


@pytest.mark.parametrize("family", ["llama", "falcon_h1"])
def test_a_draft_that_skips_nothing_is_the_model(family: str) -> None:
    model = tiny.model(family)
    texts = {0.0: documents(), 0.6: documents()}
    [nothing] = measure_drafts(model, texts, {"nothing": ComponentMask()}, latencies=LATENCIES).drafts
    sure, none = Estimate(1.0, (1.0, 1.0)), Estimate(0.0, (0.0, 0.0))
    assert (nothing.perplexity_ratio, nothing.tv, nothing.kl, nothing.parameters) == (sure, none, none, 0)
    for one in nothing.temperatures:
        assert one.rate == sure
        assert one.alpha == dict.fromkeys(ALPHA_LENGTHS, sure)
        assert one.payoff is not None
        assert one.payoff.speedup.above_one == "no"  # its steps cost what those of the model do


def test_a_draft_without_a_finite_perplexity_has_no_ratio() -> None:
    model = tiny.model("llama")
    with torch.no_grad():  # likelihoods of e^-1e4 and less: a difference of two that no float holds the exponential of
        model.network.lm_head.weight.mul_(1e4)
    measured = measure_drafts(model, {0.0: documents()})
    assert measured.perplexity is None
    assert any(draft.perplexity_ratio is None for draft in measured.drafts)
    assert " inf " in printed(measured)
    json.dumps(measured.to_json(), allow_nan=False)


LATENCIES = Latencies(64, {}, 0.0015, 0.0005, dict.fromkeys((1, 2, 3, 5, 9, 17), 0.002))


def printed(measured: ComponentTable, width: int = 80) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(component_tables(measured))
    return capture.get()


def test_the_tables_fit_into_80_columns() -> None:
    model = tiny.model("falcon_h1")
    long = "attention:0-2 mlp:1,3"
    masks = default_masks(model) | {long: parse_mask(long, model), "nothing": ComponentMask()}
    texts = {0.0: documents(), 0.6: documents()}
    measured = measure_drafts(model, texts, masks, latencies=LATENCIES)
    text = printed(measured)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "7.00\u00a0KiB" in text
    assert "100 (100–100)" in text  # the widest that there can be
    for draft in ("attention-off", "ssm-off", "mlp-off", "layer-skip:33%", "exit:2", "exit:3"):
        assert len(re.findall(rf"^ {draft} ", text, flags=re.MULTILINE)) == 3
    assert re.search(r"The fastest, [\w:%-]+ at temperature 0(\.6)?: (yes|no|perhaps): ", text)
    without = printed(replace(measured, latencies=None))
    assert "pays" not in without
    assert "α of 8" in without


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["radistill", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return leaving.value.code if isinstance(leaving.value.code, int) else 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny.save("bamba", tmp_path / "model"))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}?", "response": f"It is {n}."}) + "\n" for n in range(4)))
    arguments = ["components", model, "--data", str(data), "--count", "3", "--no-timing"]
    more = ["--timing", "--context", "16", "--mask", "attention:1", "--json", str(tmp_path / "out.json")]
    assert cli(monkeypatch, *arguments, *more) == 0
    table = capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["n_documents"] == 3
    assert [draft["name"] for draft in written["drafts"]] == [
        "attention-off", "ssm-off", "mlp-off", "layer-skip:33%", "exit:2", "exit:3", "attention:1"
    ]  # fmt: skip
    assert all(draft["name"] in table for draft in written["drafts"])
    off = Latencies.from_json(written["latencies"])
    for draft in written["drafts"]:
        assert draft["step_seconds"] == off.step(parse_mask(draft["mask"], tiny.model("bamba")))
        assert [one["temperature"] for one in draft["temperatures"]] == [0.0, 0.6]
        assert all("times plain decoding" in one["payoff"]["verdict"] for one in draft["temperatures"])
    for wrong, message in [
        (["--search", "2"], "--search looks for speed, which --no-timing leaves out"),
        (["--timing", "--context", "16", "--search", "99"], "--search is 99, but this model has 8 parts"),
        (["--temperature", "warm"], "--temperature 'warm': must be different numbers"),
        (["--timing", "--context", "513"], "--context is 513, but this model takes from 1 to 512 tokens"),
        (["--mask", "attention:0"], "error: mask: layer 0 has no attention"),
        (["--mask", "magic"], "error: mask: 'magic' means nothing"),
        (["--plan", str(tmp_path / "none.json")], "none.json: no such file"),
        (["--data", "nowhere"], "'nowhere' is not a source"),
    ]:
        assert cli(monkeypatch, *arguments, *wrong) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert message in line


def test_the_command_searches_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny.save("falcon_h1", tmp_path / "model"))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}?", "response": f"It is {n}."}) + "\n" for n in range(6)))
    arguments = ["components", model, "--data", str(data), "--count", "3", "--context", "16", "--temperature", "0"]
    assert cli(monkeypatch, *arguments, "--search", "4", "--passes", "30", "--json", str(tmp_path / "out.json")) == 0
    shown = capsys.readouterr()
    [found] = [draft for draft in json.loads((tmp_path / "out.json").read_text())["drafts"] if draft["name"] == "found"]
    assert f"which `generate --skip` takes: {found['mask']}; " in shown.err
    assert 1 <= len(parse_mask(found["mask"], tiny.model("falcon_h1")).skipped) <= 4
    assert re.search(r"^ found ", shown.out, flags=re.MULTILINE)
    assert cli(monkeypatch, *arguments, "--count", "4", "--search", "4") == 2  # eight documents are not there
    capsys.readouterr()
    assert cli(monkeypatch, *arguments, "--search", "4", "--passes", "1") == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "--passes is 1, but the selector greedy had judged no set of 4 parts by then" in line
