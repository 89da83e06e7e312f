"""A run with another teacher: when it is loaded, that it is gone when the student trains, and what it passes on."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_estimate import text
from test_run import write_recipe
from transformers import AutoTokenizer

import tiny
from fake_server import Fake, serving
from radistill.distillation.teacher_store.read import HEADER
from radistill.errors import RadistillError
from radistill.files import read_json
from radistill.models.loading import Model, load
from radistill.pipeline import context, training
from radistill.pipeline.estimate import estimate
from radistill.pipeline.run import run
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

STORED = ["evaluate.exact_match=false", "align.steps=2", "distill.steps=4", "distill.teacher_store.top_k=8"]
BEFORE_EVALUATION = ["data", "diagnose", "convert", "distill"]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """References to the models that a run loads, by the name of their folder; `NAME, bare` without weights."""
    found: dict[str, list[Any]] = {}

    def watched(original: Callable[..., Model], suffix: str) -> Callable[..., Model]:
        def loading(source: str | Path, *arguments: Any, **keywords: Any) -> Model:
            model = original(source, *arguments, **keywords)
            found.setdefault(f"{Path(source).name}{suffix}", []).append(weakref.ref(model.network))
            return model

        return loading

    monkeypatch.setattr(context, "load", watched(context.load, ""))
    monkeypatch.setattr(context, "load_without_weights", watched(context.load_without_weights, ", bare"))
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with another teacher."""
    tiny.save("llama", tmp_path / "model")
    tiny.save("llama", tmp_path / "other", layers=2, seed=3)
    diagnose = {"budget": 2, "by": "redundancy", "selector": "uniform"}
    return write_recipe(tmp_path, teacher=str(tmp_path / "other"), diagnose=diagnose)


@pytest.mark.slow
def test_another_teacher_is_gone_before_the_student_trains(
    recipe: Path, tmp_path: Path, loaded: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, alive = training.distill, []

    def distilling(*arguments: Any, **keywords: Any) -> Any:
        alive.append([reference() is not None for reference in loaded["other"]])
        return original(*arguments, **keywords)

    monkeypatch.setattr(training, "distill", distilling)
    out = run(load_recipe(recipe, STORED), tmp_path / "out", BEFORE_EVALUATION)
    assert alive == [[False], [False]]  # of both hybrids; it was loaded once, in the first stage
    assert len(list(out.glob(f"teacher_store/*/{HEADER}"))) == 1
    assert read_json(out / "distill.json")["heldout_kl"] == "top-k"
    assert len([step for step in read_json(out / "run.json")["stages"] if step.startswith("teacher-store:")]) == 1


@pytest.mark.slow
def test_another_teacher_is_gone_if_only_an_earlier_stage_needed_it(
    recipe: Path, tmp_path: Path, loaded: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that was lost is written again by the teacher, and is what its store was made of."""
    out = run(load_recipe(recipe, STORED), tmp_path / "out", BEFORE_EVALUATION)
    (out / "data" / "calibration.jsonl").unlink()
    loaded.clear()
    original, alive = training.distill, []

    def distilling(*arguments: Any, **keywords: Any) -> Any:
        alive.append([reference() is not None for reference in loaded["other"]])
        return original(*arguments, **keywords)

    monkeypatch.setattr(training, "distill", distilling)
    run(load_recipe(recipe, [*STORED, "distill.steps=5"]), out, BEFORE_EVALUATION)
    assert alive[0] == [False]


@pytest.mark.slow
def test_a_complete_store_is_enough(
    recipe: Path, tmp_path: Path, loaded: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in training, it goes on without the teacher; what is missing of the store brings it back."""
    original = training.distill
    monkeypatch.setattr(training, "distill", lambda *arguments, **keywords: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(load_recipe(recipe, STORED), tmp_path / "out", BEFORE_EVALUATION)
    monkeypatch.setattr(training, "distill", original)
    loaded.clear()
    run(load_recipe(recipe, STORED), tmp_path / "out", ["distill"])
    assert "other" not in loaded
    (header,) = tmp_path.glob(f"out/teacher_store/*/{HEADER}")
    header.unlink()
    run(load_recipe(recipe, [*STORED, "distill.steps=5"]), tmp_path / "out", ["distill"])
    assert len(loaded["other"]) == 1
    run(load_recipe(recipe, [*STORED, "distill.teacher_store.top_k=9"]), tmp_path / "out", ["distill"])
    assert len(loaded["other"]) == 2


@pytest.mark.slow
def test_a_folder_of_ones_own_is_shared_by_runs(recipe: Path, tmp_path: Path, loaded: dict[str, list[Any]]) -> None:
    own = [*STORED, f"distill.teacher_store.folder={tmp_path / 'stores'}", "arms={}"]
    for name in ("first", "second"):
        out = run(load_recipe(recipe, own), tmp_path / name, BEFORE_EVALUATION)
        assert not (out / "teacher_store").exists()
    assert len(list((tmp_path / "stores").iterdir())) == 1


@pytest.mark.parametrize("compared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_teacher_that_is_served_is_never_loaded(
    compared: bool, recipe: Path, tmp_path: Path, loaded: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the responses and fills the store, and the student learns as from the model itself."""
    monkeypatch.setenv("RADISTILL_SERVER_KEY", "secret")
    own = [*STORED, "arms={}", "finetune=null"]
    if compared:
        expected = run(load_recipe(recipe, own), tmp_path / "here", BEFORE_EVALUATION)
        assert "other" in loaded
        assert "other, bare" not in loaded  # who writes the data is read once, with its weights
        loaded.clear()
    with serving(Fake(load(tmp_path / "other"), key="secret")) as fake:
        own += [f"{field}.server={fake.address}/v1" for field in ("data.responses", "distill.teacher_store")]
        out = run(load_recipe(recipe, own), tmp_path / "served", BEFORE_EVALUATION)
        asked = len(fake.asked)
        assert len(loaded["other, bare"]) == 1
        run(load_recipe(recipe, own), tmp_path / "served", BEFORE_EVALUATION)
        assert len(fake.asked) == asked
    assert "other" not in loaded
    if compared:
        for split in ("train", "heldout"):
            assert (out / "data" / f"{split}.jsonl").read_bytes() == (expected / "data" / f"{split}.jsonl").read_bytes()
        found, wanted = (read_json(folder / "distill.json")["curve"] for folder in (out, expected))
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-3)
    files = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert not any(b"secret" in content for content in files)
    told = estimate(load_recipe(recipe, own))
    assert "store" not in told.memory
    assert not any("teacher weights" in terms for terms in told.memory.values())
    assert [line.partition(":")[0] for line in told.warnings if line.endswith("is not asked by a dry run")] == [
        "distill.teacher_store.server",
        "data.responses.server",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.on_policy.share=0.5", "distill.on_policy needs the teacher itself"),
        ("distill.hidden.kind=mse", "distill.hidden needs the teacher's hidden states"),
        ("distill.loss={kind: jsd, temperature: 2}", "distill.loss.temperature is 2, but distill.teacher_store"),
    ],
)
def test_contradictions_are_refused_when_the_recipe_is_read(override: str, message: str, recipe: Path) -> None:
    with pytest.raises(RadistillError, match=message):
        load_recipe(recipe, [*STORED, override])


@pytest.mark.slow
def test_the_estimate_has_no_teacher_beside_the_student(recipe: Path) -> None:
    without = ["data.max_length=64", "finetune=null"]
    beside = estimate(load_recipe(recipe, without))
    stored = estimate(load_recipe(recipe, [*STORED, *without]))
    teacher = beside.memory["distill"]["teacher weights"]
    assert stored.memory["store"]["teacher weights"] == teacher
    assert stored.memory["store"]["base weights"] == beside.memory["distill"]["base weights"]
    for stage in ("align", "distill", "evaluate"):
        assert "teacher weights" not in stored.memory[stage]
        assert beside.memory[stage]["teacher weights"] == teacher
    # 14 documents of at most 12 response tokens, 8 x 6 + 8 bytes each.
    assert stored.disk - beside.disk == 14 * 12 * 56
    assert [("the stored teacher" in text(found, width=200)) for found in (stored, beside)] == [True, False]


@pytest.mark.slow
def test_the_teacher_is_back_for_fine_tuning(recipe: Path, tmp_path: Path, loaded: dict[str, list[Any]]) -> None:
    own = load_recipe(recipe, [*STORED, "data.max_length=64", "arms={}"])
    memory = estimate(own).memory
    assert [stage for stage, terms in memory.items() if "teacher weights" not in terms] == ["align", "distill"]
    out = run(own, tmp_path / "out", [*BEFORE_EVALUATION, "finetune"])
    assert len(loaded["other"]) == 2
    tuned, before = (read_json(out / f"{stage}.json") for stage in ("finetune", "distill"))
    assert (tuned["heldout_kl"], before["heldout_kl"]) == ("full", "top-k")
    assert tuned["evaluations"][0]["cross_entropy"] == pytest.approx(before["evaluations"][-1]["cross_entropy"])
    assert tuned["evaluations"][0]["kl"] >= before["evaluations"][-1]["kl"]


def taught(folder: Path, **sections: Any) -> Path:
    """A run of seconds on the model in `folder`/model; its student."""
    quick = {
        "diagnose": {"budget": 1, "by": "redundancy", "selector": "uniform"},
        "convert": {"init": "random"},
        "align": None,
        "distill": None,
        "finetune": {"steps": 1},
        "evaluate": {"exact_match": False},
    }
    recipe = small_recipe(folder, {"source": "data"}, **{**quick, **sections})
    run(load_recipe(recipe), folder / "out", ["data", "diagnose", "convert", "distill", "finetune"])
    return folder / "out" / "student"


def save_base(folder: Path, template: str | None) -> None:
    """A base that has another end token than the chats of its family, and perhaps no template."""
    model = tiny.model("llama")
    model.tokenizer.eos_token = tiny.PAD
    model.tokenizer.chat_template = template
    model.network.config.eos_token_id = model.network.generation_config.eos_token_id = 256
    model.save(folder / "model")


def test_the_template_of_the_teacher_comes_along(tmp_path: Path) -> None:
    save_base(tmp_path, None)
    tiny.save("llama", tmp_path / "chat", seed=1)
    student = taught(tmp_path, teacher=str(tmp_path / "chat"))
    tokenizer = AutoTokenizer.from_pretrained(student)
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert tokenizer.eos_token == tiny.END
    for name in ("config.json", "generation_config.json"):
        assert read_json(student / name)["eos_token_id"] == [259, 256]


def test_a_student_that_learns_no_template_keeps_its_own(tmp_path: Path) -> None:
    own = tiny.CHAT_TEMPLATE.replace("assistant", "model")
    save_base(tmp_path, own)
    assert AutoTokenizer.from_pretrained(taught(tmp_path)).chat_template == own


def test_a_student_that_does_not_stop_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_base(tmp_path, None)
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "model" / name
        path.write_text(json.dumps({**read_json(path), "eos_token_id": None}))
    rows = [{"text": f"The sum of {n} and {n} is {2 * n}."} for n in range(20)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "jsonl", "path": str(tmp_path / "texts.jsonl"), "train": 10, "calibration": 3, "heldout": 4}
    student = taught(tmp_path, data=data)
    assert "neither the base nor the data has an end token" in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(student).chat_template is None
