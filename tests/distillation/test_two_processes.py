"""Two processes, with DDP and with FSDP2, compute what one does."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_case import HELDOUT, REPLACED, TRAIN, lasting, run, store_of, weights
from safetensors.torch import load_file
from torch import Tensor
from two_processes_case import OWN, STORED, TUNING, TWENTY, tied_models

import tiny
from radistill.conversion import new_parameters
from radistill.distillation.distill import finetune
from radistill.distillation.settings import DistillSettings
from radistill.errors import RadistillError
from radistill.files import read_json
from radistill.pipeline.run import run as run_recipe
from radistill.processes import Processes, join
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

pytestmark = pytest.mark.slow

CASE = Path(__file__).with_name("two_processes_case.py")
LAUNCHERS = {
    "ddp": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "fsdp2": [
        *("accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--use_fsdp", "--fsdp_version", "2"),
    ],
}


def launch(how: str, *program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in two processes on this machine."""
    path = os.pathsep.join([str(CASE.parents[1]), os.environ.get("PYTHONPATH", "")])
    given = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path, **environment}
    command = [sys.executable, "-m", *LAUNCHERS[how], *program]
    with tempfile.TemporaryDirectory() as place:  # the launcher leaves its logs there
        given["TMPDIR"] = place
        return subprocess.run(command, capture_output=True, text=True, env=given, timeout=150)


def begin_run(folder: Path) -> None:
    """The run `folder/run`, up to its last stage before distillation, and a copy of it in `folder/alone`."""
    tiny.save("llama", folder / "model")
    recipe = small_recipe(
        folder,
        {"source": "data"},
        diagnose={"budget": 2, "by": "redundancy", "selector": "uniform"},
        align={"steps": 3},
        distill={
            "steps": 5,
            "tokens_per_batch": 100,
            "gradient_accumulation": 2,
            "new_block_learning_rate": 1e-3,
        },
    )
    run_recipe(load_recipe(recipe), folder / "run", ["data", "diagnose", "convert"])
    shutil.copytree(folder / "run", folder / "alone")


@pytest.fixture(scope="module")
def one_process() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Curve and weights of the same distillation in this process alone."""
    teacher, student = tied_models()
    return lasting(run(student, teacher, TWENTY)), weights(student)


@pytest.fixture(scope="module", params=LAUNCHERS)
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes have left."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "fsdp2":
        begin_run(folder)
    ended = launch(request.param, str(CASE), str(folder))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("distill: 20 steps, ") == 4  # each of the four calls says so once, not twice
    return folder


def test_twenty_steps_have_the_losses_of_one_process(
    launched: Path, one_process: tuple[dict[str, Any], dict[str, Tensor]]
) -> None:
    found, expected = read_json(launched / "whole-0.json"), one_process[0]
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [row[name] for row in found["curve"]] == pytest.approx(
            [row[name] for row in expected["curve"]], rel=1e-4, abs=1e-5
        )
    for name in ("kl", "agreement"):
        assert [row[name] for row in found["evaluations"]] == pytest.approx(
            [row[name] for row in expected["evaluations"]], rel=1e-4
        )
    for row, of_one in zip(found["curve"], expected["curve"], strict=True):
        assert (row["step"], row["tokens"]) == (of_one["step"], of_one["tokens"])
    assert found["response_tokens"] == expected["response_tokens"]


def test_both_end_with_the_weights_of_one_process(
    launched: Path, one_process: tuple[dict[str, Any], dict[str, Tensor]]
) -> None:
    first, second = (load_file(launched / f"whole-{index}.safetensors") for index in (0, 1))
    assert first.keys() == one_process[1].keys()
    for name, tensor in one_process[1].items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=2e-4)


def test_stopped_by_one_of_them_they_go_on_bit_for_bit(launched: Path) -> None:
    assert read_json(launched / "interrupted-0.json") == read_json(launched / "whole-0.json")
    whole, interrupted = (load_file(launched / f"{name}-0.safetensors") for name in ("whole", "interrupted"))
    assert all(torch.equal(interrupted[name], tensor) for name, tensor in whole.items())


def test_with_a_stored_teacher_they_compute_what_one_does(launched: Path, tmp_path: Path) -> None:
    """Each writes every second shard."""
    teacher, student = tied_models()
    expected = run(student, store_of(teacher, tmp_path, STORED), STORED)
    first, second = (read_json(launched / f"stored-{index}.json") for index in (0, 1))
    assert first == second
    assert len(list(launched.glob("store/*/*.safetensors"))) > 2
    for name, figure in (("curve", "loss"), ("evaluations", "kl"), ("evaluations", "agreement")):
        of_one = [row[figure] for row in getattr(expected, name)]
        assert [row[figure] for row in first[name]] == pytest.approx(of_one, rel=1e-4)


@pytest.mark.parametrize("launched", ["fsdp2"], indirect=True)
def test_they_distil_a_run_as_one_process_does(launched: Path) -> None:
    run_recipe(load_recipe(launched / "recipe.yaml"), launched / "alone", ["distill"])
    found, expected = (read_json(launched / name / "distill.json") for name in ("run", "alone"))
    for name, figure in (("curve", "loss"), ("evaluations", "kl")):
        assert [row[figure] for row in found[name]] == pytest.approx([row[figure] for row in expected[name]], rel=1e-4)
    students = (load_file(launched / name / "student" / "model.safetensors") for name in ("run", "alone"))
    torch.testing.assert_close(*students, rtol=0, atol=1e-4)
    assert not (launched / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "dtype", "changes"),
    [
        ("bfloat16", torch.float32, {"precision": "bfloat16", "gradient_checkpointing": True}),
        ("loaded", torch.bfloat16, {"other_learning_rate": 0.0}),  # float32 beside frozen bfloat16 in one layer
    ],
)
@pytest.mark.parametrize("launched", ["fsdp2"], indirect=True)
def test_in_bfloat16_they_are_near_to_one_process(
    launched: Path, name: str, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    """The layers of a sharded model have bfloat16 weights; in one process, products alone are in bfloat16."""
    teacher, student = tied_models()
    for model in (teacher, student):
        model.network.to(dtype)
    expected = run(student, teacher, TWENTY.model_copy(update={"steps": 3, **changes})).curve
    found = read_json(launched / f"{name}-0.json")["curve"]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=0.02)
    first, second = (load_file(launched / f"{name}-{index}.safetensors") for index in (0, 1))
    assert {tensor.dtype for tensor in first.values()} == {dtype}
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_they_fine_tune_as_one_process_does(launched: Path) -> None:
    teacher, student = tied_models()
    new = new_parameters(student, REPLACED)
    expected = finetune(student, teacher, TRAIN, HELDOUT, TUNING, new_parameters=new)
    first, second = (read_json(launched / f"finetuned-{index}.json") for index in (0, 1))
    assert first == second
    assert [row["loss"] for row in first["curve"]] == pytest.approx([row["loss"] for row in expected.curve], rel=1e-4)
    for measure in ("kl", "cross_entropy"):
        assert [row[measure] for row in first["evaluations"]] == pytest.approx(
            [row[measure] for row in expected.evaluations], rel=1e-4
        )


@pytest.mark.parametrize("launched", ["ddp"], indirect=True)
def test_each_writes_its_own_batches_as_one_process_would(launched: Path) -> None:
    teacher, student = tied_models()
    expected = lasting(run(student, teacher, OWN))
    first, second = (read_json(launched / f"own-{index}.json") for index in (0, 1))
    assert first == second
    for name in ("step", "tokens", "on_policy"):
        assert [row[name] for row in first["curve"]] == [row[name] for row in expected["curve"]]
    assert [row["loss"] for row in first["curve"]] == pytest.approx(
        [row["loss"] for row in expected["curve"]], rel=1e-4, abs=1e-5
    )
    assert 0 < sum(row["on_policy"] for row in first["curve"]) < 6


@pytest.mark.parametrize("launched", ["fsdp2"], indirect=True)
def test_a_split_student_that_is_to_write_is_refused(launched: Path) -> None:
    messages = {(launched / f"own-{index}.txt").read_text() for index in (0, 1)}
    assert messages == {
        "distill.on_policy needs the whole student in every process, and FSDP2 splits it; launch without --use_fsdp, "
        "or set it to null"
    }


def test_a_loss_that_is_not_finite_in_one_stops_both(launched: Path) -> None:
    first, second = ((launched / f"poisoned-{index}.txt").read_text() for index in (0, 1))
    assert first == second
    assert "the loss is nan at step" in first
    named = {document["id"] for document in read_json(launched / "poisoned" / "failed_batch.json")["documents"]}
    assert "poisoned" in named
    assert all(name in first for name in named)


def test_a_step_that_cannot_be_shared_is_refused() -> None:
    settings = DistillSettings(gradient_accumulation=3)
    settings.check_processes(3)
    with pytest.raises(RadistillError, match=r"gradient_accumulation is 3, which 2 processes .* multiple of 2"):
        settings.check_processes(2)


@pytest.mark.parametrize(
    ("variable", "value", "way_out"),
    [
        ("FSDP_VERSION", "1", "--fsdp_version 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "no --fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "distill.gradient_checkpointing"),
    ],
)
def test_another_kind_of_sharding_is_refused(
    variable: str, value: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RadistillError, match=f"{variable} is {value}; launch with {way_out}"):
        join.__wrapped__("cpu")


def test_one_process_alone_has_nobody_to_ask() -> None:
    alone = Processes()
    alone.wait()
    assert alone.is_main
    assert alone.decide(lambda: 3) == 3
    assert alone.collect("a") == ["a"]
    assert alone.add(torch.ones(2)).tolist() == [1, 1]
