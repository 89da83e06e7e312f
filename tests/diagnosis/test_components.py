"""The component-aware table, against one document and one token at a time."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import tiny
from radistill.cli import main
from radistill.diagnosis.components import ComponentTable, DraftFigures, default_masks, measure_drafts
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.report.component_table import component_table
from radistill.speculation.acceptance import DRAFT_LENGTHS, rounds_of
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.presets import parse_mask


def documents(count: int = 4, length: int = 12) -> list[Document]:
    generator = torch.Generator().manual_seed(5)
    return [
        Document(str(n), tuple(torch.randint(4, 60, (length + n,), generator=generator).tolist()), length // 2)
        for n in range(count)
    ]


def naive(model: Model, mask: ComponentMask) -> tuple[list[list[bool]], float]:
    """Agreement of each response token, and log perplexity of draft less full, in float64."""
    agreements, difference, tokens = [], 0.0, 0
    for document in documents():
        ids = torch.tensor([document.tokens])
        with torch.no_grad():
            full = model.network(input_ids=ids).logits[0].double().log_softmax(-1)
            with masked(model, mask):
                draft = model.network(input_ids=ids).logits[0].double().log_softmax(-1)
        positions = range(document.response_start - 1, len(document.tokens) - 1)
        agreements.append([int(full[t].argmax()) == int(draft[t].argmax()) for t in positions])
        for t in positions:
            difference += float(full[t, document.tokens[t + 1]] - draft[t, document.tokens[t + 1]])
            tokens += 1
    return agreements, difference / tokens


@pytest.mark.parametrize("family", ["granitemoehybrid-experts", *tiny.ARCHITECTURES])
def test_the_table_equals_the_naive_one(family: str) -> None:
    model = tiny.model(family)
    some = f"attention:{model.anatomy.attention_layers[-1]} mlp:3"
    masks = default_masks(model) | {"some": parse_mask(some, model)}
    measured = measure_drafts(model, documents(), masks, tokens_per_batch=30)
    assert [draft.name for draft in measured.drafts] == [
        "attention-off",
        *(["ssm-off"] if model.anatomy.ssm_layers else []),
        "mlp-off",
        "exit:2",
        "exit:3",
        "some",
    ]
    for draft in measured.drafts:
        agreements, difference = naive(model, masks[draft.name])
        flat = [agree for agreement in agreements for agree in agreement]
        assert draft.acceptance_rate == pytest.approx(sum(flat) / len(flat))
        assert draft.perplexity_ratio == pytest.approx(math.exp(difference), rel=1e-3)
        for length, mean in draft.mean_accepted_length.items():
            rounds = [accepted for agreement in agreements for accepted in rounds_of(agreement, length)]
            assert mean == pytest.approx(sum(rounds) / len(rounds))
        assert parse_mask(draft.mask, model) == masks[draft.name]


@pytest.mark.parametrize("family", ["llama", "granitemoehybrid", "falcon_h1", "zamba2", "olmo3", "lfm2", "kimi_linear"])
def test_what_a_draft_leaves_out(family: str) -> None:
    model = tiny.model(family)
    measured = measure_drafts(model, documents(1), default_masks(model) | {"one": parse_mask("attention:1", model)})
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
    with pytest.raises(RadistillError, match="no documents to measure on"):
        measure_drafts(model, [])
    with pytest.raises(RadistillError, match="layer 9 does not exist"):
        measure_drafts(model, documents(), {"x": ComponentMask.attention([9])})
    one = measure_drafts(tiny.model("llama", layers=1), [Document("a", (5, 6), 1)])
    assert [draft.name for draft in one.drafts] == ["attention-off", "mlp-off"]
    assert one.n_tokens == 1
    nothing = measure_drafts(model, documents(), {"nothing": ComponentMask()}).drafts[0]
    assert (nothing.acceptance_rate, nothing.perplexity_ratio, nothing.parameters) == (1.0, 1.0, 0)
    with torch.no_grad():
        model.network.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RadistillError, match="NaN or infinite on these documents"):
        measure_drafts(model, documents())


def test_a_draft_without_a_finite_perplexity_has_no_ratio() -> None:
    draft = DraftFigures("mlp-off", "mlp:0", 0.0, dict.fromkeys(DRAFT_LENGTHS, 0.0), None, 1, 0, 0)
    assert " inf " in printed(ComponentTable("m", 1, 1, None, 1, 0, 0, [draft]))
    model = tiny.model("llama")
    with torch.no_grad():  # likelihoods of e^-1e4 and less: a difference of two that no float holds the exponential of
        model.network.lm_head.weight.mul_(1e4)
    measured = measure_drafts(model, documents())
    assert measured.perplexity is None
    assert all(draft.perplexity_ratio is None or draft.perplexity_ratio >= 0 for draft in measured.drafts)
    json.dumps(measured.to_json(), allow_nan=False)


def printed(measured: ComponentTable, width: int = 80) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(component_table(measured))
    return capture.get()


def test_the_table_fits_into_80_columns() -> None:
    model = tiny.model("falcon_h1")
    text = printed(
        measure_drafts(
            model,
            documents(),
            default_masks(model) | {"attention:0-2 mlp:1,3": parse_mask("attention:0-2 mlp:1,3", model)},
        )
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "7.00\u00a0KiB" in text  # the last column
    for draft in ("attention-off", "ssm-off", "mlp-off", "exit:2", "exit:3"):
        assert re.search(rf"^{draft} ", text, flags=re.MULTILINE)


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["radistill", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return leaving.value.code if isinstance(leaving.value.code, int) else 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny.save("bamba", tmp_path / "model"))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}?", "response": f"It is {n}."}) + "\n" for n in range(4)))
    arguments = ["components", model, "--data", str(data), "--count", "3"]
    assert cli(monkeypatch, *arguments, "--mask", "attention:1", "--json", str(tmp_path / "out.json")) == 0
    table = capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["n_documents"] == 3
    assert [draft["name"] for draft in written["drafts"]] == [
        "attention-off", "ssm-off", "mlp-off", "exit:2", "exit:3", "attention:1"
    ]  # fmt: skip
    assert all(draft["name"] in table for draft in written["drafts"])
    for wrong, message in [
        (["--mask", "attention:0"], "error: mask: layer 0 has no attention"),
        (["--mask", "magic"], "error: mask: 'magic' means nothing"),
        (["--plan", str(tmp_path / "none.json")], "none.json: no such file"),
        (["--data", "nowhere"], "'nowhere' is not a source"),
    ]:
        assert cli(monkeypatch, *arguments, *wrong) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert message in line
