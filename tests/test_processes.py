"""Processes of one command: who speaks when they end, without starting any."""

import errno

import pytest
import torch

from radistill.cli.errors import errors_in_one_line
from radistill.errors import RadistillError
from radistill.processes import Processes, _together, gone, speaks


class Store:
    """What the processes share: a counter, until whoever holds it is gone."""

    def __init__(self) -> None:
        self.count = 0
        self.is_gone = False

    def add(self, key: str, number: int) -> int:
        if self.is_gone:
            raise RuntimeError("Connection reset by peer")
        self.count += number
        return self.count


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    shared = Store()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: shared)
    return shared


def test_the_first_of_several_says_why_it_ends(store: Store) -> None:
    assert [speaks(), speaks(), speaks()] == [True, False, False]
    store.is_gone = True
    assert speaks()


def test_one_that_is_alone_or_has_met_nobody_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speaks()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert speaks()
    assert speaks()


def test_one_line_for_both(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (RadistillError("the first"), RadistillError("the second"), OSError(errno.ENOSPC, "full")):
        with pytest.raises(SystemExit) as left, errors_in_one_line():
            raise error
        assert left.value.code == 2
    assert capsys.readouterr().err == "error: the first\n"


def test_a_lost_connection_is_said_in_words(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    def lost() -> None:
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711")

    with pytest.raises(RadistillError, match="one of the 2 processes has ended; the same command goes on from"):
        _together(lost)
    with pytest.raises(SystemExit), errors_in_one_line():
        lost()  # in the gradients of a training, which torch hands over itself
    assert capsys.readouterr().err == f"error: {gone()}\n"


def test_units_are_dealt_out_in_turn() -> None:
    """What the processes hand over comes back in the order of the units."""
    for count in (1, 2, 3, 8):
        parts = [list(range(10))[index::count] for index in range(count)]
        assert Processes(count=count).dealt(parts, 10) == list(range(10))
    told: list[list[int]] = []
    assert Processes().share([3, 1, 2], lambda unit: unit * unit, lambda units: told.append(list(units))) == [9, 1, 4]
    assert told == [[3], [1], [2]]
    assert Processes().lead(lambda: Processes().ask(5, lambda asked: asked + 1), lambda asked: None) == [6]
