"""`radistill generate` in this process, on a tiny model."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import tiny
from radistill.cli import main
from radistill.conversion import convert
from radistill.diagnosis.plan import Plan
from radistill.models.generation import generate
from radistill.models.loading import load
from radistill.speculation.branching import process
from radistill.texts import readable
from same_process import draft_here


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
    assert "proposed (" in err
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
        (["--skip", "1", "--branches", "3"], "--branches needs --draft MODEL"),
        (["--draft", "FOLDER", "--length", "hrad.safetensors"], "--length needs --branches"),
        (["--draft", "FOLDER", "--branches", "3", "--draft-cache", "shared"], "branches have a cache of their own"),
        (["--draft", "FOLDER", "--branches", "3", "--length", "none"], "none: no such file; `radistill drafter train"),
        (["--draft", "OTHER", "--branches", "3"], "has another tokenizer than the target"),
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


def test_a_drafter_that_is_larger_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tiny.save("llama", tmp_path / "small", layers=2)
    arguments = ["--prompt", "Hello", "--max-new-tokens", "2"]
    assert run(monkeypatch, str(small), "--draft", str(folder), *arguments) == 0
    assert "53,792 weights, more than the 35,232 of the target" in " ".join(capsys.readouterr().err.split())
    assert run(monkeypatch, str(folder), "--draft", str(small), *arguments) == 0
    assert "weights" not in capsys.readouterr().err


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


def test_branches_are_drafted_meanwhile(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "draft_process", draft_here)
    model = load(folder)
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=False
    )
    [response] = generate(model, [prompt], max_new_tokens=12, description=None)
    padded = tiny.save("qwen2", tmp_path / "padded", layers=2, vocab_size=320)
    arguments = ["--prompt", "Hello", "--draft", str(padded), "--max-new-tokens", "12", "--branches", "4", "--compare"]
    assert run(monkeypatch, str(folder), *arguments) == 0
    out, err = capsys.readouterr()
    assert out.strip() == model.tokenizer.decode(response, skip_special_tokens=True).strip()
    assert re.search(r"rollback share \d+% of \d+ drafted, all branches counted", err)
    assert f"drafting and verifying in turn: {len(response)} tokens in" in err
    assert "both texts are the same" in err


@pytest.mark.slow
@pytest.mark.parametrize("end", ["interrupt", "kill", "kill the draft process"])
def test_no_process_is_left_behind(folder: Path, end: str) -> None:
    """Real processes: Ctrl-C to the whole group as a terminal sends it, kill -9 of the command or of its helper."""
    long = tiny.save("llama", folder.parent / "long", max_position_embeddings=2**16, eos_token_id=None)
    # Where tests run in the background, Ctrl-C may be ignored, and the command would inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", program + "from radistill.cli import main; main()", "generate", str(long)]
    command += ["--draft", str(long), "--branches", "3", "--prompt", "x", "--max-new-tokens", "60000"]
    running = subprocess.Popen(
        [*command, "--temperature", "9"],  # so that there are spaces, at which text is written
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    assert running.stdout.read(1)  # in the middle of the text
    children = psutil.Process(running.pid).children(recursive=True)
    [drafting] = [one for one in children if "spawn_main" in " ".join(one.cmdline())]
    if end == "interrupt":
        os.killpg(running.pid, signal.SIGINT)
    else:
        os.kill(running.pid if end == "kill" else drafting.pid, signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("[transformers]")]
    if end == "interrupt":
        assert running.returncode == 130
        assert lines == ["interrupted; nothing was changed, and the same command starts again"]
    elif end == "kill":
        assert running.returncode == -signal.SIGKILL
    else:
        assert running.returncode == 2
        assert [line.startswith("error: draft process: it was ended by signal 9") for line in lines] == [True]
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
