"""A stand-in for the draft process that drafts in this one: for tests that are not about processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from radistill.models.loading import Model
from radistill.models.vocabularies import check_same_tokenizer
from radistill.speculation.branching.drafts import Drafted, Drafts, Manner, Order


class SameProcess:
    """Answers as a `DraftProcess` does, when it is asked for the answer."""

    def __init__(self, drafter: Model) -> None:
        self.drafter = drafter

    def begin(self, manner: Manner) -> None:
        self._drafts = Drafts(self.drafter, manner)

    def ask(self, order: Order) -> None:
        self._order = order

    def answer(self) -> Drafted:
        return self._drafts.draft(self._order)


@contextmanager
def draft_here(drafter: Model, target: Model) -> Iterator[SameProcess]:
    """Takes the place of `process.draft_process`."""
    check_same_tokenizer(drafter, target, ("drafter", "target"))
    yield SameProcess(drafter)
