"""Two models that speak in the same tokens."""

from radistill.errors import RadistillError
from radistill.models.loading import Model


def check_same_tokenizer(other: Model, own: Model, roles: tuple[str, str] = ("teacher", "student")) -> None:
    """Refuse a model whose tokenizer gives other ids than another's: the two are compared token by token.

    Every token, special ones included, must have the same id in both. The sizes of the embeddings may differ: they are
    often padded. Which of the tokens ends a turn may differ too (a base model and its chat version): it changes what a
    model generates, not what its logits mean.

    The message calls the two by their `roles`.

    Raises:
        RadistillError: naming the first id at which the two differ.
    """
    theirs, ours = roles
    of_other = {number: token for token, number in other.tokenizer.get_vocab().items()}
    of_own = {number: token for token, number in own.tokenizer.get_vocab().items()}
    for number in sorted(of_other.keys() | of_own.keys()):
        if of_other.get(number) != of_own.get(number):
            raise RadistillError(
                f"{theirs} {other.source} has another tokenizer than the {ours}: token {number} is "
                f"{_named(of_other, number)} in the {theirs} and {_named(of_own, number)} in the {ours}; "
                f"choose a {theirs} of the {ours}'s family"
            )


def _named(vocabulary: dict[int, str], number: int) -> str:
    return repr(vocabulary[number]) if number in vocabulary else "missing"
