"""What a source hands over."""

from collections.abc import Iterable
from dataclasses import dataclass

from radistill.data.examples import Example


@dataclass(frozen=True)
class Rows:
    """The examples of a source, in an order that is a function of its settings and the seed.

    Attributes:
        origin: where they come from, for messages.
        examples: read only as far as they are needed.
        heldout: rows meant for the held-out split alone; None if it is drawn from `examples`.
    """

    origin: str
    examples: Iterable[Example]
    heldout: Iterable[Example] | None = None
