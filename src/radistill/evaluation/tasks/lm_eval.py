"""`lm-eval:NAME`: any task of the Language Model Evaluation Harness that says right or wrong of each example."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from radistill.errors import RadistillError
from radistill.evaluation.results import Row
from radistill.evaluation.tasks.interface import Measured, TaskSettings
from radistill.models.checkpoint import one_line
from radistill.models.loading import Model
from radistill.processes import Processes

_METRICS = ("acc", "exact_match", "exact_match,none", "em")


def task(name: str) -> Measured:
    """The task `lm-eval:NAME`; a folder given as its data is searched for task definitions of one's own.

    Raises:
        RadistillError: if lm-eval is not installed.
    """
    harness = _harness()

    def measure(
        model: Model, settings: TaskSettings, keep: Callable[[Row], None], cache: Path, processes: Processes
    ) -> None:
        # The harness knows of no other processes of ours.
        for row in _rows(_evaluate(harness, name, model, settings, cache), name) if processes.is_main else ():
            keep(row)

    return Measured(f"lm-eval:{name}", measure, data_names=(f"lm-eval:{name}",))


def _harness() -> Any:
    # Before it is imported: it logs the whole configuration of a task otherwise.
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "error")
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise RadistillError(f"lm-eval is not installed ({error}): pip install 'radistill[lm-eval]'") from None
    return lm_eval


def _evaluate(
    harness: Any, name: str, model: Model, settings: TaskSettings, cache: Path
) -> dict[str, list[dict[str, Any]]]:
    own = settings.data.get(f"lm-eval:{name}")
    manager = harness.tasks.TaskManager(include_path=None if own is None else str(own))
    if name not in manager.all_tasks:
        raise RadistillError(f"lm-eval:{name}: lm-eval has no such task; `lm-eval ls tasks` lists them")
    wrapped = harness.models.huggingface.HFLM(
        pretrained=model.network, tokenizer=model.tokenizer, batch_size=settings.batch_size
    )
    generation = {} if settings.max_new_tokens is None else {"gen_kwargs": {"max_gen_toks": settings.max_new_tokens}}
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = harness.simple_evaluate(
            wrapped,
            tasks=[name],
            limit=settings.limit,
            task_manager=manager,
            bootstrap_iters=0,
            # The harness keeps every answer there, in a database of its own. Its key is the question, not the model.
            use_cache=str(cache.with_suffix(f".{model.fingerprint[:12]}")),
            **generation,
        )
    except Exception as error:  # a task's data may be missing in any of the ways of the library that loads it
        raise RadistillError(f"lm-eval:{name}: {one_line(error)}") from error
    samples: dict[str, list[dict[str, Any]]] = result["samples"]
    return samples


def _rows(samples: dict[str, list[dict[str, Any]]], name: str) -> list[Row]:
    rows = []
    for subtask, examples in samples.items():
        filters = {example["filter"] for example in examples}
        for example in examples:
            metric = next((metric for metric in _METRICS if metric in example["metrics"]), None)
            if metric is None:
                raise RadistillError(
                    f"lm-eval:{name}: says neither right nor wrong of an example; "
                    f"its metrics are {', '.join(example['metrics'])}"
                )
            parts = [subtask] if len(samples) > 1 else []
            parts += [example["filter"]] if len(filters) > 1 else []
            rows.append(
                {
                    "id": " ".join([*parts, str(example["doc_id"])]),
                    "key": f"{subtask} {example['filter']} {example['doc_hash'][:16]} {example['prompt_hash'][:16]}",
                    "group": " ".join(parts) or None,
                    "correct": bool(example[metric] == 1),
                    "expected": str(example["target"]),
                    "response": str(example["filtered_resps"]),
                }
            )
    return rows
