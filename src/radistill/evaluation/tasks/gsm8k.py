"""GSM8K: grade-school word problems; the number that the answer comes to is compared (arXiv 2110.14168).

`gsm8k` is a zero-shot conversation, `gsm8k-fewshot` a text of eight worked examples, which base models take as well.
"""

from functools import partial
from pathlib import Path

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


def _examples(name: str, model: Model, settings: TaskSettings) -> list[Example]:
    hub, fields = ("openai/gsm8k", "main", "test"), ("question", "answer")
    rows = read_rows((name, "gsm8k"), settings, hub, fields, lambda row: without_number(row["answer"]))
    found = []
    for number, row in enumerate(rows, start=1):
        id, verifier = f"gsm8k-{number}", {"kind": "answer", "answer": str(row["answer"])}
        if name == "gsm8k":
            found.append(Example.of_user(id, f"{row['question']}\n\n{INSTRUCTION}", verifier=verifier))
        else:
            found.append(Example(id, text=f"{_WORKED}Question: {row['question']}\nAnswer:", verifier=verifier))
    return found


TASKS = (
    Generated("gsm8k", partial(_examples, "gsm8k"), judge, max_new_tokens=512, data_names=("gsm8k",)),
    Generated(
        "gsm8k-fewshot",
        partial(_examples, "gsm8k-fewshot"),
        judge,
        max_new_tokens=256,
        stops=("\nQuestion:",),
        data_names=("gsm8k-fewshot", "gsm8k"),
    ),
)
