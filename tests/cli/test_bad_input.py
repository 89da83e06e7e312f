"""What a new user gets wrong: each ends with one line that says what to do, and with exit code 2."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tiny
from radistill.cli import main
from radistill.files import hash_file


class Shell:
    """Runs `radistill` in this process, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Exit code and the last line on standard error."""
        self._monkeypatch.setattr(sys, "argv", ["radistill", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        lines = self._capsys.readouterr().err.strip().splitlines()
        code = leaving.value.code
        return (code if isinstance(code, int) else 0), (lines[-1] if lines else "")

    def recipe(self, **changes: object) -> str:
        """Write a small recipe that works, with some sections changed."""
        rows = [{"prompt": f"What is {n} + {n}?", "response": f"It is {2 * n}."} for n in range(12)]
        data = self.folder / "data.jsonl"
        if not data.exists():
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = {
            "model": str(self.folder / "model"),
            "threads": 1,
            "data": {"kind": "jsonl", "path": str(data), "train": 6, "calibration": 2, "heldout": 3},
            "diagnose": {"budget": 2, "by": "redundancy", "selector": "uniform"},
            "align": {"steps": 2},
            "distill": {"steps": 2},
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**recipe, **changes}))
        return str(path)

    def text(self, text: str) -> str:
        """Write a recipe as it stands."""
        path = self.folder / "text.yaml"
        path.write_text(text)
        return str(path)

    def run(self, *arguments: str, **changes: object) -> tuple[int, str]:
        """`radistill run` of the small recipe."""
        return self("run", self.recipe(**changes), "--out", str(self.folder / "out"), *arguments)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    tiny.save("llama", tmp_path / "model")
    return Shell(tmp_path, monkeypatch, capsys)


def data_row(shell: Shell, text: str) -> dict[str, object]:
    (shell.folder / "bad.jsonl").write_text(text)
    return {"kind": "jsonl", "path": str(shell.folder / "bad.jsonl"), "train": 6, "calibration": 2, "heldout": 3}


def broken_model(shell: Shell, breaking: Callable[[Path], object], family: str = "llama") -> str:
    folder = tiny.save(family, shell.folder / "broken")
    breaking(folder)
    return str(folder)


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def with_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))


CASES: dict[str, tuple[Callable[[Shell], tuple[int, str]], str]] = {
    # ---- recipes ----
    "recipe missing": (lambda s: s("run", "nowhere.yaml"), "nowhere.yaml: no such file"),
    "recipe is a folder": (lambda s: s("run", str(s.folder)), "is a folder, not a file"),
    "no recipe and no run": (lambda s: s("report", "--out", str(s.folder / "none")), "no such recipe; name one"),
    "not YAML": (lambda s: s("run", s.text("a: [")), "not valid YAML"),
    "empty recipe": (lambda s: s("run", s.text("")), "a recipe is a mapping of fields"),
    "too many threads": (lambda s: s.run(threads=10**6), "threads: must be at most 1024, not 1000000"),
    "unknown field": (lambda s: s.run(modle="x"), "modle: unknown field; did you mean 'model'?"),
    "unknown nested field": (lambda s: s.run("--set", "distill.stepz=3"), "distill.stepz: unknown field"),
    "wrong type": (lambda s: s.run("--set", "distill.steps=many"), "distill.steps: "),
    "out of range": (lambda s: s.run("--set", "distill.steps=0"), "distill.steps: "),
    "unknown selector": (lambda s: s.run("--set", "diagnose.selector=best"), "diagnose.selector: "),
    "unknown initialisation": (
        lambda s: s.run("--set", "convert.init=magic"),
        "convert.init: must be one of fitted, random, transfer, zero, not 'magic'",
    ),
    "unknown target": (lambda s: s.run("--set", "convert.target=zamba"), "convert.target"),
    "unknown objective": (lambda s: s.run("--set", "diagnose.objective=speed"), "diagnose.objective: must be one of"),
    "override without a value": (lambda s: s.run("--set", "distill.steps"), "write it as field=value"),
    "required field missing": (lambda s: s.run(diagnose={}), "diagnose.budget: is required"),
    # ---- models ----
    "model missing": (lambda s: s.run(model=str(s.folder / "nowhere")), "nowhere"),
    "folder that is no model": (lambda s: s.run(model=str(s.folder)), "config.json"),
    "truncated weights": (lambda s: s.run(model=broken_model(s, truncate)), "model.safetensors"),
    "NaN weights": (lambda s: s.run(model=broken_model(s, with_nan)), "model.norm.weight holds NaN"),
    "QK-norm": (lambda s: s.run(model=broken_model(s, lambda _: None, "olmo2")), "QK-norm"),
    "mixture of experts": (lambda s: s.run(model=broken_model(s, lambda _: None, "mixtral")), "mixture of experts"),
    "sliding window": (lambda s: s.run(model=broken_model(s, lambda _: None, "mistral-window")), "sliding"),
    "inspecting nothing": (lambda s: s("inspect", str(s.folder / "nowhere")), "nowhere"),
    "budget of all layers": (
        lambda s: s.run("--set", "diagnose.budget=4"),
        "diagnose.budget is 4, but this model has 4 attention layers: it must be from 1 to 3",
    ),
    "swaps without fitted blocks": (
        lambda s: s.run("--by", "replaceability", "--set", "align=null"),
        "diagnose.by is replaceability, which needs fitted blocks, but align is null; give it a section, or set "
        "diagnose.by: redundancy",
    ),
    "restoring layers of no student": (
        lambda s: s.run("--set", "diagnose.selector=kl-guided"),
        "diagnose.by is redundancy, but diagnose.selector is kl-guided, which compares fitted blocks; change that, or "
        "set diagnose.by to replaceability",
    ),
    "unknown way to judge": (
        lambda s: s("diagnose", s.recipe(), "--out", str(s.folder / "out"), "--by", "luck"),
        "diagnose.by: must be 'redundancy' or 'replaceability', not 'luck'",
    ),
    "unknown way to judge, of a whole run": (
        lambda s: s.run("--by", "luck"),
        "diagnose.by: must be 'redundancy' or 'replaceability', not 'luck'",
    ),
    "workers for a search of one process": (
        lambda s: s("diagnose", s.recipe(), "--out", str(s.folder / "out"), "--workers", "2"),
        "diagnose.selector is uniform, which searches in one process",
    ),
    "negative penalty": (lambda s: s.run("--set", "diagnose.penalty=-1"), "diagnose.penalty: "),
    "budget of none": (lambda s: s.run("--set", "diagnose.budget=0"), "diagnose.budget is 0"),
    "transfer into one group": (lambda s: s.run("--set", "convert.init=transfer"), "groups"),
    "teacher with another vocabulary": (lambda s: s.run(teacher=broken_model(s, other_vocabulary)), "token"),
    # ---- data ----
    "data missing": (lambda s: s.run("--set", "data.path=nowhere.jsonl"), "nowhere.jsonl"),
    "data empty": (lambda s: s.run(data=data_row(s, "")), "bad.jsonl"),
    "row without a known key": (lambda s: s.run(data=data_row(s, '{"question": "?"}\n')), "bad.jsonl"),
    "row that is no JSON": (lambda s: s.run(data=data_row(s, '{"prompt": "a"}\n{"prom')), "bad.jsonl"),
    "too few rows": (lambda s: s.run("--set", "data.train=1000"), "1000"),
    "unknown task": (
        lambda s: s.run(data={"kind": "reasoning-gym", "tasks": ["gsm_symbolik"], "train": 40}),
        "gsm_symbolic",
    ),
    # ---- run folders ----
    "out is a file": (lambda s: s("run", s.recipe(), "--out", s.recipe()), "is a file"),
    "out is below a file": (lambda s: s("run", s.recipe(), "--out", f"{s.recipe()}/x"), "no folder can be made there"),
    "out is too long": (lambda s: s("run", s.recipe(), "--out", "x" * 256), "no folder can be made there"),
    "stage before its turn": (
        lambda s: s("diagnose", s.recipe(), "--out", str(s.folder / "out")),
        "run `radistill data` first",
    ),
    "GPU that is not there": (lambda s: s.run("--set", "device=cuda"), "cuda"),
    "unknown command line option": (lambda s: s("run", "--fast"), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_code_2(name: str, shell: Shell) -> None:
    if name == "GPU that is not there" and torch.cuda.is_available():
        return
    action, message = CASES[name]
    code, line = action(shell)
    assert code == 2, line
    assert message in line
    if message:
        assert line.startswith("error: ")
        assert len(line) < 600


def test_a_plan_edited_by_hand_is_checked(shell: Shell) -> None:
    recipe, out = shell.recipe(), shell.folder / "out"
    for stage in ("data", "diagnose"):
        assert shell(stage, recipe, "--out", str(out))[0] == 0
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, "replace": [1, 30]}))
    code, line = shell("convert", recipe, "--out", str(out))
    assert code == 2
    assert "plan.json: replace[1] is 30, but this model has layers 0 to 3" in line


@pytest.mark.parametrize("known", [False, True], ids=["of other bytes", "of the bytes on record"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: {**row, "tokens": [999, *row["tokens"][1:]]}, "has a token that the model does not have"),
        (lambda row: {**row, "tokens": 7}, "calibration.jsonl, line 1: tokens: Input should be a valid array"),
        (lambda row: {**row, "response_start": 99}, "line 1: response_start is 99, but there are"),
    ],
)
def test_damaged_data_is_named_with_the_command_that_makes_it(
    shell: Shell, damage: Callable[[dict[str, object]], dict[str, object]], message: str, known: bool
) -> None:
    recipe, out = shell.recipe(), shell.folder / "out"
    assert shell("data", recipe, "--out", str(out))[0] == 0
    path, record = out / "data" / "calibration.jsonl", out / "run.json"
    before = hash_file(path)
    first, *others = path.read_text().splitlines()
    path.write_text("".join(f"{row}\n" for row in [json.dumps(damage(json.loads(first))), *others]))
    if known:
        assert before in record.read_text()
        record.write_text(record.read_text().replace(before, hash_file(path)))
    code, line = shell("diagnose", recipe, "--out", str(out))
    assert code == 2
    if known:
        assert message in line
        assert "without this file, `radistill" in line
    else:
        assert f"{out / 'data'}: what `data` has left there is" in line
        assert "damaged or unfinished; run `radistill data`" in line


def test_a_record_that_is_no_record(shell: Shell) -> None:
    (shell.folder / "out").mkdir()
    (shell.folder / "out" / "run.json").write_text("[]")
    code, line = shell.run()
    assert code == 2
    assert "run.json: not a record of a run" in line


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(shell: Shell) -> None:
    """A limit on the size of files stands in for a disk without room: both make a write fail half-way."""
    recipe, out = shell.recipe(), shell.folder / "out"
    for stage in ("data", "diagnose"):
        assert shell(stage, recipe, "--out", str(out))[0] == 0
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from radistill.cli import main\n"
        f"sys.argv = ['radistill', 'convert', {recipe!r}, '--out', {str(out)!r}]\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (out / "start").exists()
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    assert shell("convert", recipe, "--out", str(out))[0] == 0  # room was made


def test_two_runs_in_one_folder_are_refused(shell: Shell) -> None:
    recipe, out = shell.recipe(), shell.folder / "out"
    out.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, time; f = open({str(out / '.lock')!r}, 'a+'); "
         "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        code, line = shell("run", recipe, "--out", str(out))
        assert code == 2
        assert "is using this folder" in line
    finally:
        holder.kill()
        holder.wait()
    shutil.rmtree(out)
    assert shell("data", recipe, "--out", str(out))[0] == 0
