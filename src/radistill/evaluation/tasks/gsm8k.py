"""GSM8K: grade-school word problems; the number that the answer comes to is compared (arXiv 2110.14168).

`gsm8k` is a zero-shot conversation, `gsm8k-fewshot` a text of eight worked examples, which base models take as well.
The examples were written for this file and are in no data set.
"""

from radistill.data.examples import Example
from radistill.evaluation.exact_match import is_correct, result_of
from radistill.evaluation.final_answer import extract_answer, plain_number
from radistill.evaluation.tasks.interface import Generated, TaskSettings, Verdict
from radistill.evaluation.tasks.rows import read_rows
from radistill.models.loading import Model

INSTRUCTION = "Solve the problem step by step. End with a line that holds #### and the number that is asked for."

_WORKED = [
    (
        "A baker fills 6 trays with 12 rolls each and drops 5 rolls. How many rolls are left?",
        "6 trays of 12 rolls are 6 * 12 = 72 rolls. Without the 5 that fell there are 72 - 5 = 67.",
        "67",
    ),
    (
        "Nils walks 3 km to work and the same way back, 5 days a week. How far does he walk in 4 weeks?",
        "There and back is 2 * 3 = 6 km. In a week that is 5 * 6 = 30 km, in 4 weeks 4 * 30 = 120 km.",
        "120",
    ),
    (
        "A coat costs $80. It is reduced by 25%, and then Ada pays $3 for wrapping. How much does she pay?",
        "25% of 80 is 20, so the coat costs 80 - 20 = 60. With the wrapping that is 60 + 3 = 63.",
        "63",
    ),
    (
        "A tank holds 90 litres and is one third full. 8 litres flow in each minute. "
        "After how many minutes does it hold 70 litres?",
        "A third of 90 is 30 litres. 70 - 30 = 40 litres are missing, which takes 40 / 8 = 5 minutes.",
        "5",
    ),
    (
        "Rosa is twice as old as Tom, and Tom is 4 years older than Liv, who is 9. How old is Rosa?",
        "Tom is 9 + 4 = 13. Rosa is 2 * 13 = 26.",
        "26",
    ),
    (
        "48 pupils go on a trip. Half of them go by bus, a quarter by train and the rest walk. How many walk?",
        "Half of 48 is 24, a quarter is 12. The rest is 48 - 24 - 12 = 12.",
        "12",
    ),
    (
        "A printer makes 15 pages a minute. How many seconds does it need for 40 pages?",
        "One page takes 60 / 15 = 4 seconds, so 40 pages take 40 * 4 = 160 seconds.",
        "160",
    ),
    (
        "Three friends share 2 pizzas at $9.50 each and a salad at $5 equally. How many dollars does each pay?",
        "The pizzas cost 2 * 9.50 = 19. With the salad it is 19 + 5 = 24. Each pays 24 / 3 = 8.",
        "8",
    ),
]
_PREFIX = "".join(f"Question: {question}\nAnswer: {steps}\n#### {answer}\n\n" for question, steps, answer in _WORKED)


def without_number(answer: object) -> str | None:
    """What is wrong with a row's answer; None if it has a number that answers can be compared with."""
    text = str(answer).strip()
    return None if plain_number(result_of(text)) else f"its answer has no number: {text[-60:]!r}"


def judge(example: Example, response: str) -> Verdict:
    """Whether the response's number is the right one."""
    assert example.verifier is not None
    return Verdict(is_correct(response, example.verifier), extract_answer(response))


def _read(settings: TaskSettings, name: str) -> list[tuple[str, str, dict[str, str]]]:
    hub = ("openai/gsm8k", "main", "test")
    rows = read_rows((name, "gsm8k"), settings, hub, ("question", "answer"), lambda row: without_number(row["answer"]))
    return [
        (f"gsm8k-{number}", str(row["question"]), {"kind": "answer", "answer": str(row["answer"])})
        for number, row in enumerate(rows, start=1)
    ]


def _conversations(model: Model, settings: TaskSettings) -> list[Example]:
    return [
        Example(id, messages=({"role": "user", "content": f"{question}\n\n{INSTRUCTION}"},), verifier=verifier)
        for id, question, verifier in _read(settings, "gsm8k")
    ]


def _texts(model: Model, settings: TaskSettings) -> list[Example]:
    return [
        Example(id, text=f"{_PREFIX}Question: {question}\nAnswer:", verifier=verifier)
        for id, question, verifier in _read(settings, "gsm8k-fewshot")
    ]


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
