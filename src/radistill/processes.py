"""Several processes that run one command together, as torchrun and `accelerate launch` start them.

All of them see the same files and run the same code. The first one, the main process, does what is done once (it
prints, decides and writes) and the others take its word for it. Work that takes long is made of units, such as a batch
or a block, that are dealt out: unit i is computed by process i modulo their number, by itself, so that what comes of it
does not depend on how many there are.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from radistill.errors import RadistillError

if TYPE_CHECKING:  # what only reads files is shown without torch, which takes seconds to import
    import torch

T = TypeVar("T")
R = TypeVar("R")

# A process waits for the others while they compute; one that ends is noticed at once, whatever this says.
_PATIENCE = timedelta(days=365)

_SPOKEN = "radistill/spoken"
"""Where they count how many have had something to say when they ended."""

_SHARD = "ACCELERATE_USE_FSDP"
# Flags of `accelerate launch` that ask for another kind of sharding, with what they must be here.
_FIXED = {
    "FSDP_VERSION": ("2", "--fsdp_version 2"),
    "FSDP_OFFLOAD_PARAMS": ("false", "no --fsdp_offload_params"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "distill.gradient_checkpointing instead"),
}


@dataclass(frozen=True)
class Processes:
    """This process among those that run the same command.

    Attributes:
        index: 0 is the main process.
        count: how many there are.
        sharded: whether they split weights among them (FSDP2) and do not each hold all of them (DDP).
        group: for messages on the CPU; None where there is one process.
    """

    index: int = 0
    count: int = 1
    sharded: bool = False
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints, decides and writes."""
        return self.index == 0

    def wait(self) -> None:
        """Go on when all are here."""
        if self.count > 1:
            _together(lambda: _distributed().barrier(group=self.group))

    def decide(self, choose: Callable[[], T]) -> T:
        """What `choose` returns in the main process, the only one that calls it; the others wait for it."""
        if self.count == 1:
            return choose()
        box: list[Any] = [choose() if self.is_main else None]
        _together(lambda: _distributed().broadcast_object_list(box, src=0, group=self.group))
        return box[0]

    def collect(self, value: T) -> list[T]:
        """Every process's value, in order of their indices."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        _together(lambda: _distributed().all_gather_object(values, value, group=self.group))
        return values

    def share(
        self,
        units: Sequence[T],
        compute: Callable[[T], R],
        told: Callable[[Sequence[T]], object] = lambda units: None,
    ) -> list[R]:
        """`compute` of each unit, in their order, each by one process; all must call this together.

        Args:
            units: the same in every process.
            compute: the same function in every process; what it returns is sent to all.
            told: called now and then with the next units that are done, if all processes are equally fast.
        """
        own = []
        for start in range(0, len(units), self.count):
            own += [compute(unit) for unit in units[start + self.index : start + self.index + 1]]
            told(units[start : start + self.count])
        return self.dealt(self.collect(own), len(units))

    def dealt(self, parts: Sequence[Sequence[R]], count: int) -> list[R]:
        """What each process has of `count` units, put in the order of the units."""
        return [parts[place % self.count][place // self.count] for place in range(count)]

    def lead(self, run: Callable[[], T], answer: Callable[[Any], Any]) -> T:
        """What `run` returns, which only the main process calls; what it asks with `ask`, the others answer.

        All must call this together, and all get the result. For work that is not the same in each process: a search
        that chooses the next set by what it has seen, or by the clock.
        """
        if self.is_main:
            result = run()
            return self.decide(lambda: (True, result))[1]
        while True:
            ended, said = self.decide(_nothing)
            if ended:
                return said
            self.collect(answer(said))

    def ask(self, question: Any, answer: Callable[[Any], R]) -> list[R]:
        """Every process's answer, in order of their indices; for the main process, inside `lead`."""
        self.decide(lambda: (False, question))
        return self.collect(answer(question))

    def add(self, table: "torch.Tensor") -> "torch.Tensor":
        """Sum of the processes' CPU tensors of one shape, which is written over `table`."""
        if self.count > 1:
            _together(lambda: _distributed().all_reduce(table, group=self.group))
        return table


ALONE = Processes()
"""One process that nobody shares the work with."""


def _nothing() -> tuple[bool, Any]:
    return True, None


def launched() -> int:
    """Processes that the launcher has started, without meeting them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


def _together(exchange: Callable[[], object]) -> None:
    """Exchange something with the other processes.

    Raises:
        RadistillError: if one of them has ended.
    """
    try:
        exchange()
    except RuntimeError:  # the connection is gone
        raise RadistillError(gone()) from None


def gone() -> str:
    """What the others have to say of a process that has ended without a word."""
    return f"one of the {launched()} processes has ended; the same command goes on from what is kept"


def speaks() -> bool:
    """Whether this process is to say why it ends: of several that have met, the first that has something to say."""
    dist = sys.modules.get("torch.distributed")
    if launched() == 1 or dist is None or not dist.is_initialized():
        return True
    try:
        return bool(dist.distributed_c10d._get_default_store().add(_SPOKEN, 1) == 1)
    except RuntimeError:  # whoever held the store is gone
        return True


def is_main() -> bool:
    """Whether this is the main process, without meeting the others."""
    return launched() == 1 or os.environ.get("RANK", "0") == "0"


def own_device(device: str) -> str:
    """`device`, where "cuda" is the GPU of this process if there are several on this machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and launched() > 1 else device


@functools.cache
def join(kind: str) -> Processes:
    """Meet the other processes; all must call it, once they know the kind of device, "cpu" or "cuda".

    Whether weights are sharded is what `accelerate launch --use_fsdp` says. The sharding itself is ours, the same with
    gloo and NCCL, so transformers is not to see the flag, for which it leaves weights unread in all processes but one.

    Raises:
        RadistillError: if the launcher asks for another kind of sharding.
    """
    sharded = os.environ.pop(_SHARD, "false").lower() == "true"
    if launched() == 1:
        return ALONE
    for variable, (needed, way_out) in _FIXED.items() if sharded else ():
        if (value := os.environ.get(variable, needed).lower()) != needed:
            raise RadistillError(f"{variable} is {value}; launch with {way_out}")
    import torch

    dist = _distributed()
    if not dist.is_initialized():
        if kind == "cuda":
            torch.cuda.set_device(own_device("cuda"))
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return Processes(dist.get_rank(), dist.get_world_size(), sharded, group)
