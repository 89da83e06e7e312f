"""Every command and snippet of README, tutorial and how-to pages runs, on tiny models.

A block of code runs if its fence says `bash` or `python`. One that cannot run here has a comment before it that says
why: `<!-- not run: … -->`. The blocks of a page run in their order, in one folder.
"""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import tiny
from export.small import ROWS, tokenizer
from radistill.cli import main
from radistill.pipeline.run import run
from radistill.recipes import shipped_recipes
from radistill.runs.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+?) -->\n)?```(?P<kind>[a-z]*)\n(?P<code>.*?)```", re.DOTALL)
# What a page names and no test may fetch: a tiny model stands for it.
MODELS = re.compile(r"Qwen/Qwen2\.5-(0\.5|7)B-Instruct|smollm2-135m(?![.-])")
# A run of the defaults takes too long, whatever its model.
QUICK = [
    *("align.steps=1", "distill.steps=1", "distill.eval_steps=1", "data.responses.max_new_tokens=4"),
    *("evaluate.max_new_tokens=4", "diagnose.selector=leave-one-out", "threads=1"),
]
DEMO = [
    *("model=model", "arms={}", "data.train=6", "data.calibration=2", "data.heldout=2", "diagnose.budget=2"),
    *("evaluate.limit=2", "evaluate.contexts=[256]"),
]


def blocks(page: Path) -> list[tuple[str, str, str | None]]:
    """Kind, code, and why it is not run, of each fenced block."""
    return [(found["kind"], found["code"], found["why"]) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has before: a model, data, and the quick start's run."""
    folder = tmp_path_factory.mktemp("reader")
    # As many layers as the pages speak of, and a tokenizer that llama.cpp takes.
    tiny.save("llama", folder / "model", layers=30, max_position_embeddings=16384, vocab_size=ROWS)
    tokenizer().save_pretrained(folder / "model")
    prompts = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    problems = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(3)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    texts = [{"text": f"The harbour froze in the winter of 18{n}."} for n in range(10, 13)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = load_recipe(shipped_recipes()["quickstart"], [*QUICK, *DEMO])
        run(recipe, folder / "runs/quickstart")
        for other in ("other", "skipped", "mine"):
            shutil.copytree(folder / "runs/quickstart", folder / "runs" / other)
    return folder


@pytest.fixture
def reader(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where the test is."""
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "radistill", f"{line}: only radistill's commands can be run here; say why it is not run"
    if words[1] in ("run", "demo") and "--dry-run" not in words:
        overrides = QUICK + (DEMO if words[1] == "demo" or words[2] in shipped_recipes() else [])
        words[2:] = [*words[2:], *(word for override in overrides for word in ("--set", override))]
    if words[1:3] == ["drafter", "train"] and "--dry-run" not in words:  # no block is fitted
        overrides = [
            one for one in QUICK + DEMO if not one.startswith(("align", "evaluate.limit", "evaluate.contexts"))
        ]
        words += [word for override in overrides for word in ("--set", override)]
    if words[1] == "run" and "--model" in words:
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    if words[1] == "export":
        words.append("--force")
    if "--tasks" in words:  # of an option that is given twice, the last one counts
        words += ["--limit", "1"]
    if words[1:3] in (["drafter", "measure"], ["drafter", "check"]):
        words += ["--count", "2", "--max-new-tokens", "4"]
    if words[1:3] == ["drafter", "train-length"]:
        words += ["--count", "8", "--max-new-tokens", "8"]
    if words[1:3] == ["drafter", "measure"]:
        words += ["--temperature", "0,1", "--context", "32"]
    if words[1] == "tradeoff":
        words += ["--set", "diagnose.passes=40"]
    if words[1] == "savings":
        words += ["--contexts", "256,512", "--repeats", "1", "--decode-tokens", "2"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (0, None), line


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_snippet_runs(page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, code, why in blocks(page):
        code = MODELS.sub("model", code)
        if why is not None:
            continue
        if kind == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    run_command(line, monkeypatch)
        elif kind == "python":
            code = code.replace("limit=10", "limit=1").replace("max_new_tokens=64", "max_new_tokens=8")
            code = code.replace('out="runs/mine")', f'out="runs/python", overrides={QUICK})')
            exec(compile(code, str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is_and_every_exception_why(page: Path) -> None:
    for kind, code, why in blocks(page):
        assert kind in ("bash", "python", "json", "yaml", "text"), f"{page.name}: say what this is:\n{code}"
        assert why is None or len(why.split()) > 3, f"{page.name}: {why!r} is no reason"
    # A command in an indented block would not be run.
    assert not re.search(r"^    radistill ", page.read_text(encoding="utf-8"), re.MULTILINE), page.name
