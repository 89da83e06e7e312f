"""The package's own answer to an exercise is right, also after it was kept in a file."""

import ast
import json
from itertools import islice
from pathlib import Path

import pytest

from radistill.data.examples import Example
from radistill.data.reasoning_gym import read
from radistill.data.records import DataSplits, Record
from radistill.data.settings import ReasoningGymData
from radistill.evaluation.exact_match import is_correct
from radistill.models.sequences import Document

factory = pytest.importorskip("reasoning_gym.factory")

# The package gives no answer to these; some have one in their metadata.
WITHOUT_ANSWER = {
    "boxnet": None,
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
    "rush_hour": None,
}


def kept(examples: list[Example], folder: Path) -> list[Example]:
    """As they come back from `heldout.jsonl`."""
    records = [Record(example, Document(example.id, (1, 2), 1)) for example in examples]
    DataSplits([], [], records).save(folder)
    return [record.example for record in DataSplits.load(folder).heldout]


def exercises(task: str, count: int) -> list[Example]:
    rows = read(ReasoningGymData(tasks={task: {}}, train=count), 0)
    return list(islice(rows.examples, count))


# `composite` mixes the others, and takes objects that no recipe can hold.
@pytest.mark.parametrize("task", sorted(factory.DATASETS.keys() - {"composite"}))
def test_the_own_answer_scores_full(task: str, tmp_path: Path) -> None:
    examples = exercises(task, 1)
    for fresh, example in zip(examples, kept(examples, tmp_path), strict=True):
        assert example.verifier is not None
        assert example.verifier == fresh.verifier
        answer = example.verifier["answer"]
        assert (answer is None) == (task in WITHOUT_ANSWER)
        if answer is None:
            key = WITHOUT_ANSWER[task]
            if key is None:
                continue
            answer = example.verifier["metadata"][key]
            if isinstance(answer, dict) and "python literal" in answer:
                answer = json.dumps(dict(sorted(ast.literal_eval(answer["python literal"]).items())))
        assert is_correct(f"I thought about it.\n<answer>{answer}</answer>", example.verifier)
        assert is_correct(f"<answer>\n{answer}\n</answer>\nThat took 3 steps.", example.verifier)
        # That verifier asks only whether an answer is "False".
        assert is_correct("<answer>no idea</answer>", example.verifier) == (task == "game_of_life_halting")
