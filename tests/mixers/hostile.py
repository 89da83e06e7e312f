"""Inputs on which a recurrence may overflow, vanish or divide by zero, by kind of block."""

from collections.abc import Callable

from torch import Tensor

Given = dict[str, Tensor]


def vanishing_and_exploding_steps(given: Given) -> None:
    given["dt"][:, ::3] = -2000.0
    given["dt"][:, 1::4] = 2000.0


def hardly_any_decay(given: Given) -> None:
    given["A"].fill_(-1e-6)


def strong_decay(given: Given) -> None:
    given["A"].fill_(-1e4)


def large_state(given: Given) -> None:
    given["initial_state"] *= 1e6


def forget_now_and_then(given: Given) -> None:
    given["g"].zero_()
    given["g"][:, ::3] = -2000.0


def one_key(given: Given) -> None:
    given["k"].copy_(given["k"][:, :1].clone())
    given["beta"].fill_(1.0)
    given["g"].zero_()


def no_keys(given: Given) -> None:
    given["k"].zero_()


HOSTILE: list[tuple[str, Callable[[Given], None]]] = [
    *(("mamba2", each) for each in (vanishing_and_exploding_steps, hardly_any_decay, strong_decay, large_state)),
    *(("gdn", each) for each in (forget_now_and_then, one_key, no_keys, large_state)),
]
