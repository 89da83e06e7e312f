"""Run tasks on a model: rows and a summary after each task, and nothing twice after a kill."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.data.documents import prompt_tokens, with_kept_date
from radistill.data.examples import Example
from radistill.errors import RadistillError
from radistill.evaluation.results import SUMMARY, Figures, Row, figures_of, file_name
from radistill.evaluation.tasks import task_of
from radistill.evaluation.tasks.interface import Generated, Task, TaskSettings
from radistill.files import hash_file, hash_json, read_json, write_json, write_text
from radistill.models.endings import end_tokens
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.server.served import Server
from radistill.processes import ALONE, Processes
from radistill.provenance import machine, versions


def tasks_of(names: Sequence[str], settings: TaskSettings) -> list[Task]:
    """The tasks of these names; what can be wrong without a model is found here.

    Raises:
        RadistillError: for an unknown task, one that is named twice, or settings that none of them reads.
    """
    if not names:
        raise RadistillError("--tasks: names no task; for example --tasks gsm8k,recall")
    if repeated := [name for name in names if list(names).count(name) > 1]:
        raise RadistillError(f"--tasks: {repeated[0]} is named twice")
    tasks = [task_of(name) for name in names]
    for name, path in settings.data.items():
        if not any(name in task.data_names for task in tasks):
            raise RadistillError(f"--data {name}=…: none of the tasks ({', '.join(names)}) reads it")
        if not path.exists():
            raise RadistillError(f"--data {name}={path}: no such file")
    if settings.contexts is not None and not any(_has_contexts(task) for task in tasks):
        raise RadistillError("--contexts is for the task recall, which is not among --tasks")
    return tasks


def check_written(tasks: Sequence[Task]) -> None:
    """Refuse a task that does more than let a model write, which is all that a server does here.

    Raises:
        RadistillError: naming the task.
    """
    for task in tasks:
        if not isinstance(task, Generated):
            raise RadistillError(
                f"{task.name}: does more than let a model write, so a server cannot be asked; run it without --server"
            )


def _has_contexts(task: Task) -> bool:
    return isinstance(task, Generated) and task.has_contexts


def run_tasks(
    model: Model,
    tasks: Sequence[Task],
    settings: TaskSettings,
    folder: Path,
    *,
    replace: bool = False,
    server: Server | None = None,
    processes: Processes = ALONE,
) -> dict[str, Figures]:
    """Evaluate a model on tasks, one after the other.

    For each there is `TASK.jsonl` (one example a line, with all that the model said), and in `tasks.json` its figures.
    Both are written when the task has ended: until then, what an earlier call has left there stays. What the model made
    of each batch is kept in `answers/` as it comes: after a kill, the same call goes on with the batch that was
    running, and ends with the same figures.

    Args:
        model: the model.
        tasks: from `tasks_of`.
        settings: how they are run.
        folder: where the results go; those of other tasks on the same model stay. The caller holds it (`locks.locked`).
        replace: remove what the folder holds of another model, instead of refusing it.
        server: writes in place of the model; other tasks need its weights still.
        processes: who share the batches; all must call this together, and all get the figures.

    Returns:
        The figures of each task, by its name.

    Raises:
        RadistillError: if the folder holds results of another model, or a task cannot be run. The examples of all tasks
            are read before the first one is answered.
    """
    if model.network.device.type == "meta":
        check_written(tasks)
    summary = processes.decide(lambda: _opened(folder, model, server, replace))
    generated = [task for task in tasks if isinstance(task, Generated)]
    examples = processes.decide(lambda: {task.name: _examples(task, model, settings, folder) for task in generated})
    if server is not None:
        longest = [max(map(len, examples[task.name][1])) + task.longest_answer(settings) for task in generated]
        server.make_room(max(longest, default=1))
    asked = {task.name: _settings(task, settings) for task in tasks}
    for task in tasks:
        own: list[Row] = []
        cache = folder / "answers" / f"{file_name(task.name)}.jsonl"
        if isinstance(task, Generated):
            _answer(task, model, settings, *examples[task.name], own.append, cache, server, processes)
        else:
            task.measure(model, settings, own.append, cache, processes)
        rows = list(chain.from_iterable(processes.collect(own)))
        rows.sort(key=lambda row: row.get("number", 0))
        write = partial(_written, folder, summary, task.name, rows, asked[task.name])
        summary["tasks"][task.name] = processes.decide(write)
    return {task.name: summary["tasks"][task.name] for task in tasks}


def _written(
    folder: Path, summary: dict[str, Any], name: str, rows: Sequence[Row], asked: dict[str, Any]
) -> dict[str, Any]:
    """Write the rows of a task, and its figures, which are returned, into the summary."""
    others = {task: figures for task, figures in summary["tasks"].items() if task != name}
    if name in summary["tasks"]:  # a kill in between must not leave new rows with old figures
        write_json(folder / SUMMARY, summary | {"tasks": others})
    write_text(folder / f"{file_name(name)}.jsonl", "".join(map(_line, rows)))
    found = figures_of(rows) | {"settings": asked}
    write_json(folder / SUMMARY, summary | {"tasks": others | {name: found}})
    return found


def _examples(
    task: Generated, model: Model, settings: TaskSettings, folder: Path
) -> tuple[list[Example], list[list[int]]]:
    """The examples, and the tokens of their prompts, which leave room for an answer."""
    examples = task.read(model, settings)
    tokenizer = with_kept_date(model.tokenizer, folder)
    prompts = [prompt_tokens(example, tokenizer) for example in examples]
    _check_room(task.name, model, examples, prompts, task.longest_answer(settings))
    return examples, prompts


def _answer(
    task: Generated,
    model: Model,
    settings: TaskSettings,
    examples: Sequence[Example],
    prompts: Sequence[list[int]],
    keep: Callable[[Row], None],
    cache: Path,
    server: Server | None,
    processes: Processes,
) -> None:
    """Let the model answer the examples, longest prompts first, and judge each answer when its batch is done."""
    ends = end_tokens(model)

    def judge(index: int, tokens: list[int]) -> None:
        example = examples[index]
        response = str(model.tokenizer.decode(tokens, skip_special_tokens=True))
        answer, stopped = task.answer_in(response)
        verdict = task.judge(example, answer)
        verifier = example.verifier or {}
        keep(
            {
                "number": index,
                "id": example.id,
                "key": hash_json([example.prompt, verifier.get("answer")])[:16],
                "group": verifier.get("group"),
                "correct": verdict.correct,
                "answer": verdict.answer,
                "expected": verifier.get("answer"),
                "finished": stopped or tokens[-1] in ends,
                "prompt": example.text if example.text is not None else list(example.messages or ()),
                "response": response,
                "prompt_tokens": len(prompts[index]),
                "response_tokens": len(tokens),
            }
        )

    generate(
        model,
        prompts,
        max_new_tokens=task.longest_answer(settings),
        batch_size=settings.batch_size,
        cache=cache,
        description=task.name,
        on_response=judge,
        server=server,
        processes=processes,
    )


def _check_room(
    name: str, model: Model, examples: Sequence[Example], prompts: Sequence[Sequence[int]], most: int
) -> None:
    context = model.context_length
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    if context is not None and len(prompts[longest]) + most > context:
        raise RadistillError(
            f"{name}: {examples[longest].id} has a prompt of {len(prompts[longest])} tokens; with an answer of {most} "
            f"it is beyond the model's context of {context}; lower --max-new-tokens or leave it out"
        )


def _opened(folder: Path, model: Model, server: Server | None, replace: bool) -> dict[str, Any]:
    """The summary that is there already, if it is of this model; else a new one."""
    path = folder / SUMMARY
    fresh = {
        "model": model.source,
        **_shown(model, server),
        "versions": versions(),
        "machine": machine(),
        "tasks": {},
    }
    if not path.exists():
        return fresh
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        raise RadistillError(f"{path}: not a summary of tasks; remove it, or choose another folder with --out")
    if found.get("fingerprint") != fresh["fingerprint"]:
        if replace:
            note(f"{folder}: removes the results of another model ({', '.join(found['tasks']) or 'none'})")
            path.unlink()
            for name in found["tasks"]:
                (folder / f"{file_name(name)}.jsonl").unlink(missing_ok=True)
            return fresh
        raise RadistillError(
            f"{path}: has results of another model ({found.get('model')}); choose another folder with --out"
        )
    return fresh | {"tasks": found["tasks"]}


def _shown(model: Model, server: Server | None) -> dict[str, str]:
    """What tells the weights apart; of those of a server only what it says itself is known."""
    if server is not None:
        return {"fingerprint": server.identity, "dtype": server.dtype, "server_model": server.model}
    return {"fingerprint": model.fingerprint, "dtype": str(model.network.dtype).removeprefix("torch.")}


def _settings(task: Task, settings: TaskSettings) -> dict[str, Any]:
    """What has to be asked for to get the same figures again."""
    most = task.longest_answer(settings) if isinstance(task, Generated) else settings.max_new_tokens
    found: dict[str, Any] = {"max_new_tokens": most, "batch_size": settings.batch_size, "seed": settings.seed}
    found["limit"] = settings.limit
    if _has_contexts(task):
        found["contexts"] = settings.contexts
    if (path := next((settings.data[name] for name in task.data_names if name in settings.data), None)) is not None:
        # By name only: where it lies on this machine says nothing to anybody else.
        found["data"] = path.name
        found["data_sha256"] = hash_file(path) if path.is_file() else None
    return found


def _line(row: Row) -> str:
    """Half a surrogate pair, which a file cannot hold, stays as JSON spells it."""
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"
