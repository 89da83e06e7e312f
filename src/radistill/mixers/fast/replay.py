"""Several tokens behind a stored state, of which only the first ones may come to count.

The verification of a draft reads all proposed tokens in one pass, and learns after it how many of them are text. So it
needs the outputs of all, and then the state after some. A scan that is listened to puts out the first and leaves a
`Replay` for the second; the state between the two is nobody's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from radistill.mixers.fast.chunks import without_subnormals

Replay = Callable[[Tensor], Tensor]
"""What a scan over [batch, time] leaves behind: given counts, [batch] of 0 to time, the recurrent state whose row b has
read the first `counts[b]` tokens."""


@dataclass
class Tape:
    """Listens to the scan of one block.

    Attributes:
        state: what the block has stored; None before its first token.
        replay: of the scan; None as long as no function of ours has started from the stored state.
    """

    state: Tensor | None
    replay: Replay | None = None


_tape: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def listening(state: Tensor | None) -> Iterator[Tape]:
    """Let the scan of the block that runs inside leave a replay, if it is a function of ours and starts from `state`.

    The scan then has no last state, and what it returns in its place must not be stored.
    """
    tape = Tape(state)
    token = _tape.set(tape)
    try:
        yield tape
    finally:
        _tape.reset(token)


def tape_for(initial_state: Tensor | None) -> Tape | None:
    """The tape that waits for a scan that starts from this state, if there is one."""
    tape = _tape.get()
    return tape if tape is not None and tape.state is initial_state and tape.replay is None else None


class FewDecays:
    """Decays between so few tokens that all pairs of them are one small matrix.

    Attributes:
        from_start: decay from the start through each token, [batch, heads, time].
    """

    def __init__(self, log_decays: Tensor) -> None:
        """`log_decays` is [batch, time, heads], not above 0."""
        # Sums of log-decays grow large where the decay is strong, and what counts are small differences between them.
        self._cum = log_decays.mT.cumsum(-1, dtype=torch.float64)
        self._dtype = log_decays.dtype
        self.from_start = self._rounded(self._cum.exp())

    def pairwise(self) -> Tensor:
        """Decay from after token j through token i for i >= j, else 0; [batch, heads, time i, time j]."""
        return self._rounded((self._cum[..., :, None] - self._cum[..., None, :]).exp_().tril_())

    def until(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Where row b stops after `counts[b]` tokens: decay of its state until then, and from after each token.

        Returns:
            [batch, heads], and [batch, heads, time] with 0 for the tokens behind the stop.
        """
        end = F.pad(self._cum, (1, 0)).take_along_dim(counts[:, None, None], dim=2)
        behind = torch.arange(self._cum.shape[-1], device=counts.device) >= counts[:, None, None]
        to_end = (end - self._cum).exp_().masked_fill_(behind, 0.0)
        return self._rounded(end.exp())[..., 0], self._rounded(to_end)

    def _rounded(self, decays: Tensor) -> Tensor:
        return without_subnormals(decays.to(self._dtype))
