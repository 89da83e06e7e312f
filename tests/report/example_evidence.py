"""Invented results of tasks and savings, for a run folder that `example_run` has written."""

import json
from pathlib import Path
from typing import Any


def write_example_evidence(folder: Path) -> Path:
    """Add what `radistill evaluate FOLDER --tasks` and `radistill savings FOLDER` leave, and return the folder."""
    write_tasks(folder, "base", 30)
    write_tasks(folder, "hybrid", 12)
    (folder / "savings.json").write_text(json.dumps(savings()), encoding="utf-8")
    return folder


def write_tasks(folder: Path, name: str, right: int, **fields: Any) -> None:
    """Results of 40 word problems, `right` of them right, and of recall at three lengths."""
    out = folder / "tasks" / name
    out.mkdir(parents=True, exist_ok=True)
    problems = [
        {
            "number": n,
            "key": f"g{n}",
            "group": None,
            "correct": n < right,
            "finished": n % 10 > 0,
            "prompt": [{"role": "user", "content": f"What is {n} + {n}? <b>&</b>"}],
            "response": f"{name} says <script>alert({n})</script>: {2 * n}",
        }
        | fields
        for n in range(40)
    ]
    recall = [
        {
            "number": n,
            "key": f"{kind} {context} {n}",
            "group": f"{kind} {context:,}",
            "correct": n < right / 2 * 512 / context,
            "finished": True,
            "prompt": "a: 1\na:",
            "response": " 1",
        }
        for kind in ("key-value", "needle")
        for context in (512, 1024, 4096)
        for n in range(20)
    ]
    texts = [{"number": n, "key": f"t{n}", "nats": 60.0 - right, "bytes": 100, "tokens": 25} for n in range(20)]
    tasks = {"gsm8k": problems, "recall": recall, "perplexity": texts}
    settings = {"max_new_tokens": 512, "batch_size": 16, "seed": 0}
    more = {"gsm8k": {"data": "my test.jsonl", "data_sha256": "0123456789abcdef"}, "recall": {"contexts": [512, 1024]}}
    summary = {task: {"n": len(rows), "settings": settings | more.get(task, {})} for task, rows in tasks.items()}
    (out / "tasks.json").write_text(json.dumps({"model": f"models/{name}", "tasks": summary}), encoding="utf-8")
    for task, rows in tasks.items():
        (out / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def savings() -> dict[str, Any]:
    def size(kv: int, state: int) -> dict[str, Any]:
        return {
            "weight_bytes": 538_060_032,
            "kv_bytes_per_token": kv,
            "cache_bytes": {str(length): kv * length + state for length in (4096, 32_768, 131_072)},
        }

    def at(context: int, factor: float) -> dict[str, Any]:
        return {
            "prefill_tokens_per_second": 520.0 * factor,
            "decode_tokens_per_second": 20.0 * factor - context / 1000,
            "peak_bytes": int(context * 50_000 / factor),
            "cache_bytes": 1,
            "self_speculation": {"tokens_per_second": 9.5, "acceptance_rate": 0.61} if context < 4096 else None,
        }

    return {
        "settings": {"batch_size": 1, "decode_tokens": 32, "repeats": 3, "draft_length": 4},
        "device": "cpu",
        "dtype": "float32",
        "machine": {"processor": "Example CPU @ 2.50GHz", "threads": 2, "accelerators": []},
        "models": {"base": size(46_080, 0), "hybrid": size(30_720, 1_474_560)},
        "contexts": [
            {"context": context, "base": at(context, 1.0), "hybrid": at(context, 1.25)} for context in (512, 1024, 4096)
        ],
    }
