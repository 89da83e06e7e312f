"""FSDP2: each process holds a slice of every weight, and a layer's weights are whole only while it computes."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from radistill.models.anatomy import Anatomy


@contextmanager
def sharded(
    network: PreTrainedModel, anatomy: Anatomy, processes: int, compute: torch.dtype | None = None
) -> Iterator[PreTrainedModel]:
    """A copy of `network` whose weights are split among the processes, for the time of the block.

    Sharding changes a network for good, so a copy is sharded, layer by layer, and the network itself waits in the
    host's memory. Whoever trains the copy takes its weights back with `whole`.

    The output embedding and the last norm stay whole from the end of a forward on, until a backward: a teacher's
    logits can be made of its hidden states at any time.

    Args:
        network: on the device of this process; all processes have the same weights.
        anatomy: of the network.
        processes: how many share it.
        compute: number format of a layer's whole weights; None is that of the slices. Gradients are summed in float32.
    """
    device, module = network.device, cast(nn.Module, network)
    module.to("cpu")
    shards = copy.deepcopy(network)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=None if compute is None else torch.float32)
    mesh = init_device_mesh(device.type, (processes,))
    for layer in anatomy.layers(shards):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(shards, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    try:
        yield shards
    finally:
        module.to(device)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split; where it is, all processes must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def slice_like(tensor: Tensor, of: Tensor) -> Tensor:
    """This process's slice of a tensor, split as `of` is, or the tensor itself where `of` is whole or it is a slice."""
    if not isinstance(of, DTensor) or isinstance(tensor, DTensor) or tensor.dim() == 0:
        return tensor
    return distribute_tensor(tensor.to(of.device), of.device_mesh, of.placements)


def release(network: nn.Module) -> None:
    """Split again what a forward without a backward has left whole, so that its parameters are the slices."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state dict without slices; all processes must ask for it together."""
    moments = {
        index: {name: whole(value) for name, value in entries.items()} for index, entries in state["state"].items()
    }
    return {**state, "state": moments}


def sliced_state(state: dict[str, Any], parameters: Iterable[Tensor]) -> dict[str, Any]:
    """The inverse of `whole_state`; `parameters` in the order of the optimiser."""
    moments = {
        index: {name: slice_like(value, parameter) for name, value in state["state"][index].items()}
        for index, parameter in enumerate(parameters)
        if index in state["state"]
    }
    return {**state, "state": moments}
