"""The process that `Workers` starts: reads a job from standard input, and judges sets until the search is over."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from radistill.diagnosis.objectives import objective_from
from radistill.diagnosis.selectors import Bayes, Problem
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.models.loading import load
from radistill.models.sequences import Document


def work(job: dict[str, Any]) -> None:
    """Join the search that `job` describes.

    Raises:
        RadistillError: if the model that is found under the job's name is another one.
    """
    torch.set_num_threads(job["threads"])
    model = load(**job["model"])
    if model.fingerprint != job["fingerprint"]:
        raise RadistillError(f"{model.source}: is not the model that is searched; save that one and load it from there")
    documents = [Document(name, tuple(tokens), start) for name, tokens, start in job["documents"]]
    folder = None if job["folder"] is None else Path(job["folder"])
    objective = objective_from(job["objective"])
    trials = Trials(model, documents, objective, tokens_per_batch=job["tokens_per_batch"], folder=folder)
    problem = Problem(trials, job["candidates"], job["budget"], job["seed"], folder)
    Bayes.model_validate(job["selector"]).select(problem)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Read the job, which is one line, and work; the end of standard input means that the parent is gone."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(job)
    except RadistillError as error:
        print(error, file=sys.stderr)
        os._exit(2)
    os._exit(0)  # without waiting for the thread, which is blocked in a read


if __name__ == "__main__":
    main()
