"""Context lengths from the command line."""

from radistill.errors import RadistillError


def lengths(text: str) -> tuple[int, ...]:
    """Numbers of tokens, as in `--contexts 128,512`; RadistillError if it is anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words) or len(set(words)) < len(words):
        raise RadistillError(f"--contexts {text!r}: must be different numbers of tokens, as 128,512,2048")
    return tuple(map(int, words))
