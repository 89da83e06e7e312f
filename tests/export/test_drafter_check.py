"""A target and its drafter in every engine: the same text, and the engine's own acceptance."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from test_plain_gguf import cache as cache  # every test here writes GGUF files

import tiny
from radistill.cli import main
from radistill.errors import RadistillError
from radistill.export import drafter_check
from radistill.export.check_table import check_table
from radistill.export.drafter_check import DrafterCheck, Served, check_engines
from radistill.models.anatomy import anatomy_of
from radistill.models.loading import Model

PROMPTS = [[20, 30, 40], [50, 60, 70, 80, 90, 100], [200, 210, 5]]


def by_engine(found: DrafterCheck) -> dict[str, Served]:
    return {served.engine: served for served in found.engines}


def near(target: Model, noise: float, rows: int = small.ROWS) -> Model:
    """A drafter that nearly says what the target does, with an embedding of so many rows."""
    draft = small.model("llama")
    draft.network.resize_token_embeddings(rows)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for ours, theirs in zip(draft.network.parameters(), target.network.parameters(), strict=True):
            shape = theirs.shape
            ours[: len(theirs)] = theirs + noise * theirs.std() * torch.randn(shape, generator=generator)
    return dataclasses.replace(draft, anatomy=anatomy_of(draft.network))


def test_every_engine_writes_the_targets_text() -> None:
    target = small.model("llama")
    found = by_engine(check_engines(target, near(target, 0.02), PROMPTS, draft_length=3, max_new_tokens=32))
    assert list(found) == ["radistill", "transformers", "llama.cpp", "vllm"]
    for name in ("radistill", "transformers", "llama.cpp"):
        served = found[name]
        assert served.obstacle is None
        assert (served.different, served.near_ties) == (0, 0)
        assert served.equal == served.tokens
        assert 0 < served.accepted < served.drafted
        assert served.rounds + served.accepted == pytest.approx(served.tokens, abs=len(PROMPTS))
        assert min(served.plain_tokens_per_second or 0, served.tokens_per_second or 0) > 0
    # Each has its own way to end a text; in between, all accept the same tokens.
    rates = [found[name].accepted / found[name].rounds for name in ("radistill", "transformers", "llama.cpp")]
    assert max(rates) - min(rates) < 0.15
    assert (found["vllm"].obstacle, found["vllm"].ran) == (None, False)


def test_an_identical_drafter_is_always_right() -> None:
    target = small.model("llama")
    found = by_engine(check_engines(target, small.model("llama"), PROMPTS[1:2], draft_length=4, max_new_tokens=21))
    for name in ("radistill", "transformers", "llama.cpp"):
        assert found[name].acceptance_rate == 1.0, name


def test_padded_vocabularies() -> None:
    target = small.model("llama")
    found = by_engine(check_engines(target, near(target, 0.02, small.ROWS + 12), PROMPTS, max_new_tokens=16))
    for name in ("radistill", "transformers", "llama.cpp"):
        assert (found[name].obstacle, found[name].different) == (None, 0), name
    assert found["vllm"].obstacle == f"vocab_size differs: {small.ROWS} and {small.ROWS + 12}"
    wide = near(target, 0.02, small.ROWS + 400)
    assert "more than 128 apart" in str(by_engine(check_engines(target, wide, PROMPTS[:1]))["llama.cpp"].obstacle)


def test_hybrids() -> None:
    hybrid = small.model()
    found = by_engine(check_engines(hybrid, hybrid, PROMPTS[:1], max_new_tokens=8))
    assert found["transformers"].obstacle == "assisted generation takes no hybrid as target"
    assert found["vllm"].obstacle == "a hybrid does not draft"
    assert found["radistill"].different == 0


def test_an_engine_that_changes_the_text_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(drafter_check.LlamaCpp):
        drafts = False

        def __init__(self, path: Path, context: int, draft: Path | None, draft_length: int, **options: Any) -> None:
            super().__init__(path, context, draft, draft_length, **options)
            self.drafts = draft is not None

        def greedy(self, prompt: Any, count: int, **options: Any) -> dict[str, Any]:
            answer = super().greedy(prompt, count, **options)
            return {**answer, "tokens": [*answer["tokens"][:3], 7, *answer["tokens"][4:]]} if self.drafts else answer

    monkeypatch.setattr(drafter_check, "LlamaCpp", Wrong)
    target = small.model("llama")
    served = by_engine(check_engines(target, near(target, 0.02), PROMPTS, max_new_tokens=8))["llama.cpp"]
    assert (served.different, served.equal) == (3, 9)


def test_where_the_engine_ends_a_text_by_itself_the_drafter_is_not_to_blame() -> None:
    """llama.cpp takes a token called <|endoftext|> for an end, though this model has another."""
    target = small.model("llama")
    padding = target.tokenizer.convert_tokens_to_ids(tiny.PAD)
    assert tiny.PAD == "<|endoftext|>"
    with torch.no_grad():
        target.network.lm_head.weight[padding] = 3 * target.network.lm_head.weight[414]  # which it writes at first
    served = by_engine(check_engines(target, target, PROMPTS[:1], max_new_tokens=8))["llama.cpp"]
    assert (served.peculiar, served.different) == (1, 0)
    assert served.equal < served.tokens


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    target = small.save(tmp_path / "target", "llama")
    near(target, 0.02).save(tmp_path / "eagle-draft")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Say 12."}\n{"prompt": "And 7 * 8?"}\n', encoding="utf-8")
    command = ["drafter", "check", str(tmp_path / "target"), str(tmp_path / "eagle-draft")]
    command += ["--data", str(tmp_path / "p.jsonl"), "--count", "2", "--max-new-tokens", "8"]
    monkeypatch.setattr(sys, "argv", ["radistill", *command, "--json", str(tmp_path / "check.json")])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert "'eagle-' in the drafter's path stands for another way to draft; rename the folder" in shown
    figures = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert [engine["engine"] for engine in figures["engines"]] == ["radistill", "transformers", "llama.cpp", "vllm"]
    assert figures["versions"]["torch"]


def test_the_command_refuses_swapped_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small.save(tmp_path / "target", "llama")
    small.save(tmp_path / "draft", "llama", layers=2)
    command = ["radistill", "drafter", "check", str(tmp_path / "draft"), str(tmp_path / "target")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "are the two swapped?" in capsys.readouterr().err


def test_one_token_has_no_speed_in_llama_cpp() -> None:
    """It takes the first token with the prompt, and times none of it."""
    target = small.model("llama")
    found = check_engines(target, target, PROMPTS[:1], max_new_tokens=1)
    assert by_engine(found)["llama.cpp"].tokens_per_second is None
    check_table(found)


def test_a_model_without_a_gguf_is_named() -> None:
    target = tiny.model("llama")
    obstacle = by_engine(check_engines(target, target, [[20, 30]], max_new_tokens=2))["llama.cpp"].obstacle
    assert str(obstacle).startswith("tiny llama: the tokenizer has no merges")


def test_bad_input() -> None:
    target, other = small.model("llama"), small.model("llama", pre="gpt-2")
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(RadistillError, match=r"drafter .* has another tokenizer than the target"):
        check_engines(target, other, PROMPTS)
    with pytest.raises(RadistillError, match="no prompts"):
        check_engines(target, target, [])
    with pytest.raises(RadistillError, match="draft_length is 0"):
        check_engines(target, target, PROMPTS, draft_length=0)
