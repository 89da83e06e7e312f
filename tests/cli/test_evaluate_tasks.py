"""`radistill evaluate --tasks` and `radistill compare`, as they are typed."""

import json
import sys
from pathlib import Path

import pytest

import tiny
from fake_server import Fake, serving, vllm_stands_in
from radistill.cli import main
from radistill.locks import locked
from radistill.models.loading import load
from small_run import small_run


class Shell:
    """Runs `radistill` in this process, in a folder of its own that holds two models and a file of word problems."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        monkeypatch.chdir(folder)
        tiny.save("llama", folder / "base")
        tiny.save("llama", folder / "other", seed=1)
        rows = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(6)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path("texts.jsonl").write_text("".join(json.dumps({"text": f"a text {n} " * 9}) + "\n" for n in range(9)))

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output, the last line on standard error."""
        self.monkeypatch.setattr(sys, "argv", ["radistill", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        printed = self.capsys.readouterr()
        code = leaving.value.code
        lines = printed.err.strip().splitlines()
        return (code if isinstance(code, int) else 0), printed.out, (lines[-1] if lines else "")

    def evaluate(self, model: str) -> tuple[int, str, str]:
        data = ("--data", "gsm8k=rows.jsonl", "--data", "perplexity=texts.jsonl")
        return self("evaluate", model, "--tasks", "gsm8k, perplexity", *data, "--max-new-tokens", "5")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_evaluate_and_compare(shell: Shell) -> None:
    code, out, _ = shell.evaluate("base")
    assert code == 0
    assert "gsm8k" in out
    assert "nats/byte" in out
    assert len(Path("evaluations/base/gsm8k.jsonl").read_text().splitlines()) == 6
    assert shell.evaluate("other")[0] == 0
    code, out, _ = shell("compare", "base", "other", "--json", "figures.json")
    assert code == 0
    assert "other" in out
    figures = json.loads(Path("figures.json").read_text())
    assert figures["models"] == ["base", "other"]
    by_task = {line["task"]: line for line in figures["lines"]}
    assert by_task["gsm8k"]["figures"][0]["n"] == 6
    assert by_task["perplexity"]["differences"][0]["n"] == 9
    assert by_task["perplexity"]["real"] == [True]


def test_a_run_is_its_base_and_its_hybrid(shell: Shell, tmp_path: Path) -> None:
    run = str(small_run(tmp_path / "small"))
    code, out, _ = shell.evaluate(run)
    assert code == 0
    assert "McNemar" in out  # both were evaluated and are set side by side
    assert Path(run, "tasks", "base", "tasks.json").is_file()
    assert Path(run, "tasks", "hybrid", "gsm8k.jsonl").is_file()
    code, out, _ = shell("compare", run)
    assert code == 0
    assert "hybrid" in out


def test_by_a_server(shell: Shell, tmp_path: Path) -> None:
    asked = ("--tasks", "gsm8k", "--data", "gsm8k=rows.jsonl", "--max-new-tokens", "5")
    assert shell("evaluate", "base", *asked, "--out", "here")[0] == 0
    with serving(Fake(load("base"))) as fake:
        server = ("--server", fake.address, "--batch-size", "3")
        Path("base/model.safetensors").rename("away.safetensors")  # its weights are not read
        code, out, _ = shell("evaluate", "base", *asked, *server, "--out", "served")
        Path("away.safetensors").rename("base/model.safetensors")
        assert (code, "gsm8k" in out) == (0, True)
        assert fake.together <= 3
        assert Path("served/gsm8k.jsonl").read_bytes() == Path("here/gsm8k.jsonl").read_bytes()
        for wrong, message in (
            ((*asked, "--server", "host"), "--server: must be an address, such as http://127.0.0.1:8000"),
            (
                (*asked, "--server-model", "tiny"),
                "evaluate: --server-model names a model of --server, which is",
            ),
            ((*asked, *server, "--dtype", "bfloat16"), "evaluate: --dtype is for a model that is loaded; a server has"),
            ((*asked, *server, "--server-model", "big"), f"server {fake.address}: has no model big; name one of its"),
            (("--tasks", "perplexity", *server), "perplexity: does more than let a model write, so a server cannot be"),
            (server, "evaluate: --batch-size, --server need --tasks; a run is evaluated as its recipe says"),
        ):
            code, _, last = shell("evaluate", "base", *wrong)
            assert (code, last.startswith(f"error: {message}")) == (2, True), last
        run = str(small_run(tmp_path / "small"))
        code, _, last = shell("evaluate", run, *asked, *server)
        assert (code, "is a run of several models, and --server serves one; name that" in last) == (2, True)


def test_by_vllm(shell: Shell, tmp_path: Path) -> None:
    """Of a run, base and hybrid, each for itself; in the number format that is asked for."""
    started, run = vllm_stands_in(shell.monkeypatch), str(small_run(tmp_path / "small"))
    asked = ("--tasks", "gsm8k", "--data", "gsm8k=rows.jsonl", "--max-new-tokens", "5", "--dtype", "bfloat16")
    assert shell("evaluate", run, *asked, "--out", "here")[0] == 0
    code, out, _ = shell("evaluate", run, *asked, "--server", "vllm", "--out", "served")
    assert (code, "McNemar" in out) == (0, True)
    assert [(fake.texts, str(fake.model.network.dtype), fake.address) for fake in started] == [
        (6, "torch.bfloat16", "")
    ] * 2
    for name in ("base", "hybrid"):
        assert Path("served", name, "gsm8k.jsonl").read_bytes() == Path("here", name, "gsm8k.jsonl").read_bytes()
    summary = json.loads(Path("served/hybrid/tasks.json").read_text())
    assert (summary["dtype"], Path(summary["server_model"]).name) == ("bfloat16", "student")
    shell.monkeypatch.setenv("RADISTILL_VLLM", "/nowhere")
    for wrong, message in (
        ((), "vLLM: /nowhere has none; install it there, or name the Python of an environment that has it in"),
        (("--server-model", "m"), "--server: model is for a server that has several"),
        (("--device", "cpu"), "evaluate: --device is for a model that is loaded; a server has its own"),
    ):
        code, _, last = shell("evaluate", "base", *asked, "--server", "vllm", *wrong)
        assert (code, last.startswith(f"error: {message}")) == (2, True), last


@pytest.mark.slow
def test_savings_of_a_run(shell: Shell, tmp_path: Path) -> None:
    run = small_run(tmp_path / "small")
    options = ("--contexts", "32", "--decode-tokens", "4", "--repeats", "1")
    code, out, _ = shell("savings", str(run), *options)
    assert code == 0
    assert "hybrid / base" in out
    figures = json.loads((run / "savings.json").read_text())
    assert figures["models"]["hybrid"]["kv_bytes_per_token"] == figures["models"]["base"]["kv_bytes_per_token"] / 2
    code, _, _ = shell("savings", str(tmp_path / "small" / "base"), str(run / "student"), *options, "--out", "s.json")
    assert code == 0
    assert json.loads(Path("s.json").read_text())["fingerprints"] == figures["fingerprints"]
    assert not Path(".lock").exists()


def test_two_at_once_in_one_folder_are_refused(shell: Shell, tmp_path: Path) -> None:
    run = small_run(tmp_path / "small")
    for folder in (Path("evaluations/base"), run):
        with locked(folder):
            code, _, line = shell.evaluate("base") if folder is not run else shell("savings", str(run))
        assert code == 2
        assert line.startswith(f"error: {folder}: another run (process ")
    assert shell.evaluate("base")[0] == 0


def test_a_folder_that_goes_by_dots_has_a_name(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("base")
    assert shell("evaluate", ".", "--tasks", "recall", "--limit", "1", "--contexts", "400")[0] == 0
    assert Path("evaluations/base/tasks.json").is_file()


WRONG = {
    "no such task": (("evaluate", "base", "--tasks", "gsm9k"), "no task 'gsm9k'; did you mean gsm8k"),
    "no tasks": (("evaluate", "base", "--tasks", ","), "--tasks: names no task"),
    "no model": (("evaluate", "--tasks", "recall"), "evaluate: name the model"),
    "option without tasks": (("evaluate", "--limit", "3"), "--limit need --tasks"),
    "a recipe's option": (("evaluate", "base", "--tasks", "recall", "--set", "seed=1"), "--set changes a recipe"),
    "data without a file": (("evaluate", "base", "--tasks", "gsm8k", "--data", "rows.jsonl"), "must be TASK=PATH"),
    "data of another task": (("evaluate", "base", "--tasks", "svamp", "--data", "gsm8k=rows.jsonl"), "reads it"),
    "a file that is not there": (
        ("evaluate", "base", "--tasks", "svamp", "--data", "svamp=no.json"),
        "no.json: no such file",
    ),
    "contexts": (("evaluate", "base", "--tasks", "recall", "--contexts", "1k"), "--contexts '1k': must be"),
    "too long a context": (("evaluate", "base", "--tasks", "recall", "--contexts", "4096"), "beyond the 512 tokens"),
    "results of nothing": (("compare", "base", "other"), "base: has no results of tasks"),
    "savings of one model": (("savings", "base"), "savings: name a run folder alone, or a base model and a hybrid"),
    "savings beyond the context": (("savings", "base", "other", "--contexts", "512"), "beyond the 512 tokens"),
    "one model": (("compare", "base"), "compare: name at least two models"),
    "twice the same": (("compare", "base", "base"), "compare: name at least two models, each of them once"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_line_and_exit_code_2(name: str, shell: Shell) -> None:
    arguments, message = WRONG[name]
    code, _, line = shell(*arguments)
    assert code == 2, line
    assert line.startswith("error: ")
    assert message in line
