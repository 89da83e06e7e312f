"""`reasoning-gym:TASK`: exercises that the package of that name generates, judged by their verifiers."""

from radistill.data.examples import Example
from radistill.data.reasoning_gym import evaluates_answers, read, registry
from radistill.data.settings import ReasoningGymData
from radistill.data.sources import take
from radistill.errors import RadistillError
from radistill.evaluation.tasks.gsm8k import judge
from radistill.evaluation.tasks.interface import Generated, TaskSettings
from radistill.models.loading import Model

_EXERCISES = 100


def task(name: str) -> Generated:
    """The task `reasoning-gym:NAME`.

    Raises:
        RadistillError: if the package is missing, or its verifier runs a model's answer as code.
    """
    # An unknown name is reported by the generator, with names that are close.
    if name in registry() and evaluates_answers(name):
        raise RadistillError(
            f"reasoning-gym:{name}: its verifier evaluates a model's answer as Python, in this process; "
            "choose a task whose verifier only reads"
        )

    def examples(model: Model, settings: TaskSettings) -> list[Example]:
        count = settings.limit or _EXERCISES
        rows = read(ReasoningGymData(tasks={name: {}}, train=count), settings.seed)
        return take(iter(rows.examples), f"reasoning-gym:{name}", count, set(), rows.origin)

    return Generated(f"reasoning-gym:{name}", examples, judge, max_new_tokens=512)
