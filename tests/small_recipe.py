"""A recipe of a run that takes seconds: a tiny model in `folder/model`, and twenty sums as its data."""

import json
from pathlib import Path
from typing import Any

import yaml


def small_recipe(folder: Path, responses: dict[str, Any], **sections: Any) -> Path:
    """Write `folder/recipe.yaml` and the data that it names; `responses` says whose, `sections` is the rest of it."""
    rows = [{"prompt": f"What is {n} + {n}?", "response": f"The sum of both is {2 * n}."} for n in range(20)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "kind": "jsonl",
        "path": str(folder / "data.jsonl"),
        "train": 10,
        "calibration": 3,
        "heldout": 4,
        "responses": responses,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": str(folder / "model"), "threads": 1, "data": data, **sections}))
    return path
