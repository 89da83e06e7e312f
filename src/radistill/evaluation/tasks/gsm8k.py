"""GSM8K: grade-school word problems; the number that the answer comes to is compared (arXiv 2110.14168).

`gsm8k` is a zero-shot conversation, `gsm8k-fewshot` a text of eight worked examples, which base models take as well.
"""

from pathlib import Path
from typing import Any

from radistill.data.examples import Example
from radistill.evaluation.exact_match import is_correct, result_of
from radistill.evaluation.final_answer import extract_answer, plain_number
from radistill.evaluation.tasks.interface import Generated, TaskSettings, Verdict
from radistill.evaluation.tasks.rows import read_rows
from radistill.models.loading import Model

INSTRUCTION = "Solve the problem step by step. End with a line that holds #### and the number that is asked for."

# Written for this project; they are in no data set.
_WORKED = Path(__file__).with_name("gsm8k_worked.txt").read_text(encoding="utf-8")


def without_number(answer: object) -> str | None:
    """What is wrong with a row's answer; None if it has a number that answers can be compared with."""
    text = str(answer).strip()
    return None if plain_number(result_of(text)) else f"its answer has no number: {text[-60:]!r}"


def judge(example: Example, response: str) -> Verdict:
    """Whether the response's answer is the one that its verifier takes for right."""
    assert example.verifier is not None
    return Verdict(is_correct(response, example.verifier), extract_answer(response))


def _conversations(model: Model, settings: TaskSettings) -> list[Example]:
    return [
        Example.of_user(f"gsm8k-{number}", f"{row['question']}\n\n{INSTRUCTION}", verifier=_verifier(row))
        for number, row in enumerate(_read(settings, "gsm8k"), start=1)
    ]


def _texts(model: Model, settings: TaskSettings) -> list[Example]:
    return [
        Example(f"gsm8k-{number}", text=f"{_WORKED}Question: {row['question']}\nAnswer:", verifier=_verifier(row))
        for number, row in enumerate(_read(settings, "gsm8k-fewshot"), start=1)
    ]


def _read(settings: TaskSettings, name: str) -> list[dict[str, Any]]:
    hub = ("openai/gsm8k", "main", "test")
    return read_rows((name, "gsm8k"), settings, hub, ("question", "answer"), lambda row: without_number(row["answer"]))


def _verifier(row: dict[str, Any]) -> dict[str, str]:
    return {"kind": "answer", "answer": str(row["answer"])}


TASKS = (
    Generated("gsm8k", _conversations, judge, max_new_tokens=512, data_names=("gsm8k",)),
    Generated(
        "gsm8k-fewshot",
        _texts,
        judge,
        max_new_tokens=256,
        stops=("\nQuestion:",),
        data_names=("gsm8k-fewshot", "gsm8k"),
    ),
)
