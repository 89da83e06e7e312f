"""SVAMP: elementary word problems with misleading details (arXiv 2103.07191); the number is compared."""

from radistill.data.examples import Example
from radistill.evaluation.tasks.gsm8k import INSTRUCTION, judge, without_number
from radistill.evaluation.tasks.interface import Generated, TaskSettings
from radistill.evaluation.tasks.rows import read_rows
from radistill.models.loading import Model


def _read(model: Model, settings: TaskSettings) -> list[Example]:
    hub = ("ChilleD/SVAMP", None, "test")
    fields = ("Body", "Question", "Answer")
    rows = read_rows(("svamp",), settings, hub, fields, lambda row: without_number(row["Answer"]))
    return [
        Example.of_user(
            f"svamp-{number}",
            f"{_problem(str(row['Body']), str(row['Question']))}\n\n{INSTRUCTION}",
            verifier={"kind": "answer", "answer": str(row["Answer"])},
        )
        for number, row in enumerate(rows, start=1)
    ]


def _problem(body: str, question: str) -> str:
    body = body.strip()  # many rows leave out its full stop
    return f"{body}{'' if body.endswith(('.', '!', '?', ',')) else '.'} {question.strip()}"


TASKS = (Generated("svamp", _read, judge, max_new_tokens=512, data_names=("svamp",)),)
