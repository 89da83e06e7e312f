"""`radistill generate` in this process, on a tiny model."""

import sys
from pathlib import Path

import pytest

import tiny
from radistill.cli import main
from radistill.conversion import convert
from radistill.diagnosis.plan import Plan
from radistill.models.generation import generate
from radistill.models.loading import load
from radistill.texts import readable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save("llama", tmp_path / "model")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["radistill", "generate", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(str(leaving.value.code))


def plan_of(path: Path, replace: list[int], layers: int = 4) -> Path:
    Plan(
        model="tiny",
        model_fingerprint="",
        num_layers=layers,
        replace=replace,
        scores=None,
        score_kind=None,
        objective={"name": "acceptance", "value": 0.5},
        acceptance_rate=0.5,
        mean_accepted_length={},
        kl=0.1,
        selector={"kind": "uniform"},
        search=[],
        seconds=0,
        forward_tokens=0,
        calibration_hash="",
        seed=0,
        versions={},
    ).save(path)
    return path


def test_the_text_is_streamed_and_compared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path / "plan.json", [1, 3])
    arguments = ["--plan", str(plan), "--prompt", "Hello", "--max-new-tokens", "12", "--draft-length", "2", "--compare"]
    assert run(monkeypatch, str(folder), *arguments) == 0
    out, err = capsys.readouterr()
    model = load(folder)
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=False
    )
    [response] = generate(model, [prompt], max_new_tokens=12)
    assert out.strip() == model.tokenizer.decode(response, skip_special_tokens=True).strip()
    assert f"{len(response)} tokens in" in err
    assert "drafted (" in err
    assert "a round in" in err
    assert "both texts are the same" in err
    assert "fitted blocks" not in err


def test_a_text_commands_no_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This model writes bytes at random. A file that the text is sent to gets all of them."""
    arguments = [str(folder), "--skip", "1", "--prompt", "x", "--max-new-tokens", "60", "--temperature", "9"]
    assert run(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == readable(text) != text


def test_a_plan_that_was_not_made_for_skipping_is_used_with_a_word(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = plan_of(tmp_path / "plan.json", [1])
    Plan.load(path).model_copy(update={"by": "replaceability"}).save(path)
    assert run(monkeypatch, str(folder), "--plan", str(path), "--prompt", "Hello", "--max-new-tokens", "2") == 0
    assert "`radistill diagnose --by redundancy` finds layers that" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what drafts, with one of --draft, --plan and --skip"),
        (["--skip", "9"], "layer 9 does not exist"),
        (["--skip", "1", "--plan", "plan.json"], "one of --draft, --plan and --skip"),
        (["--skip", "1", "--draft", "model"], "one of --draft, --plan and --skip"),
        (["--draft", "/nowhere"], "/nowhere: no such"),
        (["--draft", "FOLDER", "--draft-length", "0"], "draft_length is 0"),
        (["--draft", "FOLDER", "--draft-cache", "shared"], "another model cannot read the target's cache"),
        (["--draft", "OTHER"], "has another tokenizer than the target: token 260 is '<|extra|>' in the drafter"),
        (["--skip", "1", "--draft-length", "0"], "draft_length is 0"),
        (["--skip", "1", "--draft-cache", "none"], "draft_cache is 'none'"),
        (["--skip", "ssm-off"], "no layer of this model has ssm"),
    ],
)
def test_bad_input_ends_with_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    other = tiny.save("llama", folder.parent / "other", vocab_size=tiny.VOCAB_SIZE + 1)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained(other)
    arguments = [{"FOLDER": str(folder), "OTHER": str(other)}.get(word, word) for word in arguments]
    assert run(monkeypatch, str(folder), "--prompt", "Hello", *arguments) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert error.count("error: ") == 1


def test_another_model_drafts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A padded one, and a hybrid as a run folder has it: the text is that of `generate`."""
    model = load(folder)
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=False
    )
    [response] = generate(model, [prompt], max_new_tokens=12)
    padded = tiny.save("qwen2", tmp_path / "padded", layers=2, vocab_size=320)
    hybrid = tmp_path / "hybrid"
    convert(model, [1, 2], init="random").save(hybrid)
    for draft in (padded, hybrid, folder):
        arguments = ["--prompt", "Hello", "--draft", str(draft), "--max-new-tokens", "12", "--compare"]
        assert run(monkeypatch, str(folder), *arguments) == 0
        out, err = capsys.readouterr()
        assert out.strip() == model.tokenizer.decode(response, skip_special_tokens=True).strip()
        assert "both texts are the same" in err
    assert "(100%)" in err


def test_a_plan_of_another_model_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path / "plan.json", [1], layers=6)
    assert run(monkeypatch, str(folder), "--prompt", "Hello", "--plan", str(plan)) == 2
    assert "made for a model of 6 layers" in " ".join(capsys.readouterr().err.split())


def test_sampling_by_a_mask_in_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prompt", "Hello", "--skip", "exit:3", "--temperature", "1.0", "--top-p", "0.9", "--seed", "4"]
    arguments += ["--max-new-tokens", "5", "--confidence", "0.1", "--draft-cache", "shared"]
    texts = []
    for _ in range(2):
        assert run(monkeypatch, str(folder), *arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
