"""Networks that have shapes but no data: exact counts in seconds and without memory, whatever the size of the model."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from radistill.conversion.seeing import seeing_config
from radistill.conversion.targets import TARGETS, TargetSettings
from radistill.distillation.modes import Precision, compute_format, computing, master_weights
from radistill.mixers import use_fast_paths, without_fast_paths
from radistill.models.anatomy import Anatomy, anatomy_of
from radistill.models.checkpoint import quiet
from radistill.models.loading import Model, skeleton
from radistill.models.pictures import SEEING


@dataclass(frozen=True)
class Batch:
    """Rows and time steps of one forward pass."""

    rows: int
    time: int


@dataclass(frozen=True)
class HybridShape:
    """A hybrid, as far as it follows from configs.

    Attributes:
        anatomy: which layers have attention, and the sizes of caches and states.
        parameters: by component, as `Anatomy.parameters` counts them.
        new: parameters of all new blocks.
        block: parameters of one new block; 0 where there are none.
        step_bytes: what autograd keeps between forward and backward of the whole hybrid, logits and weights left out;
            None if it was not asked for, and for a mixture of experts, where it depends on the data.
        block_bytes: the same for one new block by itself, in float32; None if it was not asked for.
        frozen: parameters that no training changes, those of a vision encoder.
    """

    anatomy: Anatomy
    parameters: dict[str, int]
    new: int
    block: int
    step_bytes: int | None
    block_bytes: int | None
    frozen: int = 0


def count_parameters(config: PreTrainedConfig, trust_remote_code: bool = False) -> dict[str, int]:
    """Parameters by component of the network that a config describes."""
    images = type(config) not in AutoModelForCausalLM._model_mapping
    network = skeleton(config, config.name_or_path or config.model_type, trust_remote_code, images)
    return anatomy_of(network).parameters(network)


def with_vision(
    shape: HybridShape, target: PreTrainedConfig, language: PreTrainedConfig, sources: tuple[str, str]
) -> HybridShape:
    """A language model's shape as that of the drafter that sees with it; its connector is the new block."""
    config = seeing_config(target, language, sources)
    network = skeleton(config, sources[0], images=True)
    kind = SEEING[config.model_type]
    new = _numbers(network.get_submodule(kind.connector))
    frozen = sum(one.numel() for name, one in network.named_parameters() if kind.is_vision(name))
    return replace(shape, parameters=shape.anatomy.parameters(network), new=new, block=new, frozen=frozen)


def hybrid_shape(
    config: PreTrainedConfig,
    target: TargetSettings,
    budget: int,
    *,
    dtype: torch.dtype,
    on_cpu: bool = False,
    step: Batch | None = None,
    block_step: Batch | None = None,
    train_everything: bool = False,
    precision: Precision | None = None,
    recompute: bool = False,
    trust_remote_code: bool = False,
) -> HybridShape:
    """The hybrid that replaces `budget` evenly spaced attention layers, the first one included.

    Which layers go does not matter to the counts, but gradients flow down to the lowest new block: with the first layer
    among them, `step_bytes` is the most that any choice can need. It is counted on transformers' own torch code, on CPU
    kernels; kernels for GPUs keep less.

    Args:
        config: of the source.
        target: settings of the student's architecture.
        budget: how many layers are replaced.
        dtype: of weights and activations.
        on_cpu: whether the run will be on a CPU, where state-space layers run functions of ours.
        step: batch of one end-to-end step; None counts none.
        block_step: batch of one step of a block's fit; None counts none.
        train_everything: whether other weights than the new blocks' are trained.
        precision: of the end-to-end step, as in its settings.
        recompute: whether the end-to-end step keeps only the inputs of layers and computes each again.
        trust_remote_code: as in the recipe.
    """
    # Numbers that a config lists, as longrope's factors, are made without data but not as fakes.
    with FakeTensorMode(allow_non_fake_inputs=True), quiet():
        network = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        source = Model(network, cast(PreTrainedTokenizerBase, None), anatomy_of(network), "shapes")
        candidates = source.anatomy.attention_layers
        places = [candidates[place * len(candidates) // budget] for place in range(budget)]
        student = TARGETS[target.kind].build(source, places, target, share=True)
        if on_cpu:
            use_fast_paths(student)
        # Once used in this process, our functions would also take these tensors for a CPU's.
        path = nullcontext() if on_cpu else without_fast_paths(student)
        student.train()
        student.requires_grad_(train_everything)
        anatomy = anatomy_of(student)
        new = TARGETS[target.kind].new_blocks(places)
        blocks = [anatomy.mixer(student, layer).requires_grad_(True) for layer in new]

        def end_to_end(batch: Batch) -> Any:
            ids = torch.zeros(batch.rows, batch.time, dtype=torch.long)
            # The least of the logits: how many there are is counted apart.
            return student(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1, use_cache=False)

        def fit(batch: Batch) -> Any:
            inputs = torch.zeros(batch.rows, batch.time, anatomy.hidden_size)
            return blocks[0](inputs, attention_mask=torch.ones(batch.rows, batch.time, dtype=torch.long))

        experts = bool(getattr(student.config, "num_local_experts", 0))
        step_bytes = None
        with path:
            if step is not None and not experts:
                compute = compute_format(precision, dtype)
                with master_weights(student, precision), computing(compute, torch.device("cpu")):
                    forward = partial(end_to_end, step)
                    step_bytes = (
                        recomputed_bytes(anatomy.layers(student), forward)
                        if recompute
                        else kept_bytes(student, forward)
                    )
            block_bytes = None
            if block_step is not None:
                with master_weights(blocks[0], None):
                    block_bytes = kept_bytes(blocks[0], partial(fit, block_step))
            return HybridShape(
                anatomy=anatomy,
                parameters=anatomy.parameters(student),
                new=sum(_numbers(block) for block in blocks),
                block=_numbers(blocks[0]) if blocks else 0,
                step_bytes=step_bytes,
                block_bytes=block_bytes,
            )


def kept_bytes(network: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of `forward`, the weights and buffers of `network` left out."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # holding it keeps its address from being used again
        return tensor

    own = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    del result
    return total


def recomputed_bytes(layers: Iterable[nn.Module], forward: Callable[[], Any]) -> int:
    """The same where layers are computed again: the inputs of all, and what the largest keeps when its turn comes."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def note_call(layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append((layer, args, keywords))

    handles = [layer.register_forward_pre_hook(note_call, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        forward()
    for handle in handles:
        handle.remove()
    inputs, largest = 0, 0
    for layer, (hidden, *others), keywords in calls:
        inputs += hidden.untyped_storage().nbytes()
        hidden = hidden.detach().requires_grad_(True)
        largest = max(largest, kept_bytes(layer, partial(layer, hidden, *others, **keywords)))
    return inputs + largest


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
