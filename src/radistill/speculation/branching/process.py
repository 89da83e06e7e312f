"""The process that drafts: a drafter of its own beside the target, orders and drafts through a pipe.

It ends with whoever started it, however that ends: a pipe whose other side is gone ends both the wait for an order and
the sending of an answer. On a GPU its work has a stream of its own, as that of every process.
"""

import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import multiprocessing

from radistill.errors import RadistillError
from radistill.mixers import use_fast_paths
from radistill.models.loading import Model
from radistill.models.vocabularies import check_same_tokenizer
from radistill.speculation.branching.drafts import Drafted, Drafts, Manner, Order


class DraftProcess:
    """Another process with a drafter in it; made by `draft_process`.

    Attributes:
        drafter: what drafts there. The process has its own copy.
    """

    def __init__(self, drafter: Model, process: Any, pipe: Connection) -> None:
        """Hand the drafter over. Returns when the process has it."""
        self.drafter = drafter
        self._process, self._pipe = process, pipe
        self._owes = False  # each message is answered
        self._send(drafter)
        self._receive()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return int(self._process.pid)

    def begin(self, manner: Manner) -> None:
        """Draft from now on for other texts, in this manner. Returns when the process is ready."""
        if self._owes:  # an error of the target, or Ctrl-C, has ended the text before, and nobody wants its drafts
            with suppress(RadistillError):
                self._receive()
        self._send(manner)
        self._receive()

    def ask(self, order: Order) -> None:
        """Let the process draft, and do not wait for it."""
        self._send(order)

    def answer(self) -> Drafted:
        """What the order has brought.

        Raises:
            RadistillError: if the process could not draft, or is gone.
        """
        drafted: Drafted = self._receive()
        return drafted

    def _send(self, message: object) -> None:
        try:
            # In bytes of our own: torch would share tensors through files, of which a machine may allow few.
            self._pipe.send_bytes(pickle.dumps(message))
        except OSError:
            raise self._gone() from None
        self._owes = True

    def _receive(self) -> Any:
        try:
            answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._gone() from None
        self._owes = False
        if isinstance(answer, str):
            raise RadistillError(f"draft process: {answer}")
        return answer

    def _gone(self) -> RadistillError:
        self._process.join(5)
        code = self._process.exitcode
        how = "has closed its pipe" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by signal {-code} ({signal.Signals(-code).name})"
        return RadistillError(
            f"draft process: it {how}, so nothing drafts any more; start again (memory may be short: it holds a copy "
            "of the drafter), or draft in one process, without branches"
        )


@contextmanager
def draft_process(drafter: Model, target: Model) -> Iterator[DraftProcess]:
    """A process that drafts for a target with another model, until the block ends.

    A script that calls this has to keep its work under `if __name__ == "__main__"`, as with every spawned process.

    Raises:
        RadistillError: if the drafter has another tokenizer, or the process ends before its time.
    """
    check_same_tokenizer(drafter, target, ("drafter", "target"))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    try:
        with _deaf_to_interrupts():
            process.start()
        theirs.close()  # or its end would not be seen
        yield DraftProcess(drafter, process, ours)
    finally:
        ours.close()
        if process.pid is not None:
            process.kill()
            process.join()


@contextmanager
def sharing_cores(target: Model) -> Iterator[None]:
    """Within the block, a target on a CPU leaves one of torch's threads, if it has several, to the draft process."""
    threads = torch.get_num_threads()
    if target.network.device.type == "cpu":
        torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process that is started inside the block is deaf to Ctrl-C from its first moment; this one decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection) -> None:
    """What the process runs: it answers each message until whoever sends them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    served = _Served()
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(pickle.dumps(served.answer(pipe.recv_bytes())))


class _Served:
    """The process's own side: a drafter, and the text that it drafts for."""

    _model: Model
    _drafts: Drafts

    def answer(self, message: bytes) -> object:
        """A draft for an order, True for whatever else is taken in, or in one line what went wrong."""
        try:
            received: Model | Manner | Order = pickle.loads(message)
            if isinstance(received, Order):
                return self._drafts.draft(received)
            if isinstance(received, Manner):
                self._drafts = Drafts(self._model, received)
            else:
                self._take(received)
            return True
        except Exception as error:  # such as memory for a second drafter; the other side has to hear of it
            return " ".join(f"{type(error).__name__}: {error}".split())

    def _take(self, model: Model) -> None:
        if model.network.device.type == "cpu":
            torch.set_num_threads(1)  # the other cores are the target's
        use_fast_paths(model.network)
        model.network.eval()
        self._model = model
