"""A run folder of tiny models, as far as an evaluation looks at it: record, plan, student, and its base beside it."""

import json
from pathlib import Path
from typing import Any

import tiny
from radistill.conversion import convert
from radistill.diagnosis.plan import Plan
from radistill.models.loading import load

REPLACED = [1, 2]


def write_plan(path: Path, model: str, **changes: Any) -> None:
    """A plan that replaces `REPLACED` of four layers, unless `changes` say otherwise."""
    plan = Plan(
        model=model,
        model_fingerprint="f" * 64,
        num_layers=4,
        replace=REPLACED,
        scores=None,
        score_kind=None,
        objective={"name": "acceptance", "value": 0.5},
        acceptance_rate=0.5,
        mean_accepted_length={4: 1.0},
        kl=0.1,
        selector={"kind": "uniform"},
        search=[],
        seconds=0.0,
        forward_tokens=0,
        calibration_hash="c" * 64,
        seed=0,
        versions={},
    )
    Plan.model_validate(plan.model_dump() | changes).save(path)


def small_run(folder: Path) -> Path:
    """The run folder `folder/run`, with its base in `folder/base`."""
    run = folder / "run"
    run.mkdir(parents=True)
    base = tiny.save("llama", folder / "base")
    (run / "run.json").write_text(json.dumps({"stages": {}}))
    write_plan(run / "plan.json", str(base))
    convert(load(base), REPLACED, init="zero").save(run / "student")
    return run
