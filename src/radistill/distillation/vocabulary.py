"""A teacher can only be imitated token by token if it reads the same tokens."""

from radistill.errors import RadistillError
from radistill.models.loading import Model


def check_same_tokenizer(teacher: Model, student: Model) -> None:
    """Refuse a teacher whose tokenizer gives other ids than the student's.

    Every token, special ones included, must have the same id in both. The sizes of the embeddings may differ: they are
    often padded. Which of the tokens ends a turn may differ too (a base model and its chat version): it changes what a
    model generates, not what its logits mean.

    Raises:
        RadistillError: naming the first id at which the two differ.
    """
    of_teacher = {number: token for token, number in teacher.tokenizer.get_vocab().items()}
    of_student = {number: token for token, number in student.tokenizer.get_vocab().items()}
    for number in sorted(of_teacher.keys() | of_student.keys()):
        if of_teacher.get(number) != of_student.get(number):
            raise RadistillError(
                f"teacher {teacher.source} has another tokenizer than the student: token {number} is "
                f"{_named(of_teacher, number)} in the teacher and {_named(of_student, number)} in the student; "
                "choose a teacher of the student's family"
            )


def _named(vocabulary: dict[int, str], number: int) -> str:
    return repr(vocabulary[number]) if number in vocabulary else "missing"
