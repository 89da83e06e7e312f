"""Conversion: a Transformer becomes a hybrid whose kept parts compute exactly what they did before."""

import copy
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from radistill.conversion.assembly import unwritten
from radistill.conversion.probe import TOLERANCE, Probe, probe_batch, probe_logits, prove_equal
from radistill.conversion.targets import (
    TARGETS,
    Target,
    TargetSettings,
    find_initialisation,
    target_for,
)
from radistill.errors import RadistillError
from radistill.mixers import use_fast_paths
from radistill.mixers.interface import Attention, AttentionShape, Context
from radistill.models.anatomy import Anatomy, anatomy_of
from radistill.models.generation import evaluating
from radistill.models.loading import Model
from radistill.speculation.masks import ComponentMask, masked


class HasReplace(Protocol):
    """A plan, or anything else that names the layers to replace."""

    replace: list[int]


@dataclass(frozen=True)
class ConversionRecord:
    """What a conversion did and proved.

    Attributes:
        target: settings of the target, as given.
        init: name of the initialisation.
        replace: layers whose attention was replaced.
        seed: of the initialisation.
        max_logit_difference: between the source and the target with nothing replaced, over the probe batch.
        max_start_difference: between the student and the source without the replaced attentions; None if the
            initialisation does not start there.
        parameters_before, parameters_after: by component (attention, ssm, mlp, embedding, other).
        kv_bytes_per_token_before, kv_bytes_per_token_after: of one sequence in bfloat16.
    """

    target: dict[str, Any]
    init: str
    replace: tuple[int, ...]
    seed: int
    max_logit_difference: float
    max_start_difference: float | None
    parameters_before: dict[str, int]
    parameters_after: dict[str, int]
    kv_bytes_per_token_before: int
    kv_bytes_per_token_after: int

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {**asdict(self), "replace": list(self.replace)}


@dataclass
class ConvertedModel(Model):
    """A student, with the record of its conversion. Saved and loaded again it is a plain `Model`."""

    conversion: ConversionRecord


def convert(
    teacher: Model,
    replace: Sequence[int] | HasReplace,
    *,
    target: TargetSettings | dict[str, Any] | str | None = None,
    init: str = "fitted",
    seed: int = 0,
) -> ConvertedModel:
    """Replace the attention of some layers by blocks of the target's kind; copy everything else.

    The target `cut` leaves these layers out altogether.

    Before the student is built, the target with *nothing* replaced is compared with the source on a probe batch. The
    student shares no memory with the teacher. At most the teacher, the student and a few activations are in memory.

    Args:
        teacher: the source model; unchanged afterwards.
        replace: layers whose attention is replaced, sorted; or a plan. Empty: only the format changes.
        target: name or settings of the student's architecture; None is the first that can hold the teacher.
        init: how the new blocks start: `zero`, `transfer`, `random`, or `fitted`, which asks for `align` next.
        seed: of the initialisation.

    Raises:
        RadistillError: if the target cannot hold the source, a setting does not fit, a layer cannot be replaced, or a
            proof fails.
    """
    if teacher.reader is not None:
        raise RadistillError(
            f"{teacher.source}: reads images, and a hybrid is made of text models only; load it without images"
        )
    settings = target_for(teacher.network.config, teacher.source, target)
    chosen = TARGETS[settings.kind]
    before = teacher.anatomy
    initialisation = find_initialisation(init, settings)
    layers = _checked_layers(replace, before, chosen)
    check_conversion(teacher.source, teacher.network, settings, init if layers else None)
    if seed < 0:
        raise RadistillError(f"seed is {seed}; it must be 0 or more")

    probe = probe_batch(before.vocab_size, teacher.network.config.max_position_embeddings, teacher.network.device)
    difference = _prove_target(teacher, settings, probe)
    network = chosen.build(teacher, layers, settings)
    network.generation_config = copy.deepcopy(teacher.network.generation_config)
    after = anatomy_of(network)
    with torch.no_grad():
        for layer in chosen.new_blocks(layers):
            block = after.mixer(network, layer)
            attention: Attention = before.projections(teacher.network, layer)
            initialisation.fill(block, attention, Context(_shape(before, attention), _generator(seed, layer)))
            if name := unwritten(block):
                raise RadistillError(f"init {init} left NaN in layer {layer}: {name}")
    use_fast_paths(network)
    start = _prove_start(teacher, network, layers, settings, probe) if initialisation.silent else None
    record = ConversionRecord(
        target=settings.model_dump(mode="json"),
        init=init,
        replace=layers,
        seed=seed,
        max_logit_difference=difference,
        max_start_difference=start,
        parameters_before=before.parameters(teacher.network),
        parameters_after=after.parameters(network),
        kv_bytes_per_token_before=before.kv_bytes_per_token(),
        kv_bytes_per_token_after=after.kv_bytes_per_token(),
    )
    return ConvertedModel(network, teacher.tokenizer, after, teacher.source, record)


def check_conversion(source: str, network: PreTrainedModel, settings: TargetSettings, init: str | None) -> None:
    """Check that a target can hold a model, and that an initialisation fits its blocks, if there are any.

    The network needs no weights; `source` is what the user calls it.

    Raises:
        RadistillError: naming what stands in the way.
    """
    target, config = TARGETS[settings.kind], network.config
    if obstacles := target.check(config):
        others = [kind for kind, other in TARGETS.items() if other.mixers and not other.check(config)]
        way_out = f"; take the target {' or '.join(others)}" if others else ""
        raise RadistillError(f"{source}: {settings.kind} cannot hold this model: {'; '.join(obstacles)}{way_out}")
    geometry = target.geometry(config, settings)
    if init is None:
        return
    anatomy = anatomy_of(network)
    shape = _shape(anatomy, anatomy.projections(network, anatomy.attention_layers[0]))
    if obstacles := find_initialisation(init, settings).obstacles(geometry, shape):
        raise RadistillError(f"init {init} does not fit these blocks: {'; '.join(obstacles)}")


def new_parameters(model: Model, replace: Sequence[int] | HasReplace) -> set[str]:
    """Names in `model.network.named_parameters()` that belong to the SSM blocks of the layers `replace`.

    Raises:
        RadistillError: if one of these layers has no SSM block.
    """
    members: set[int] = set()
    for layer in _layer_numbers(replace):
        if layer not in model.anatomy.ssm_layers:
            raise RadistillError(f"replace: layer {layer} of {model.source} has no SSM block")
        members.update(id(parameter) for parameter in model.anatomy.mixer(model.network, layer).parameters())
    return {name for name, parameter in model.network.named_parameters() if id(parameter) in members}


def _prove_target(teacher: Model, settings: TargetSettings, probe: Probe) -> float:
    """Compare the source with the target in which nothing is replaced, on the source's own tensors."""
    twin = TARGETS[settings.kind].build(teacher, (), settings, share=True)
    use_fast_paths(twin)
    with evaluating(teacher.network):
        reference = probe_logits(teacher.network, probe)
    claim = f"{settings.kind} with nothing replaced should compute what {teacher.source} does"
    try:
        return prove_equal(reference, probe_logits(twin, probe), claim, _tolerance(teacher, settings))
    except RadistillError as error:
        if teacher.network.dtype not in TARGETS[settings.kind].rounding:
            raise
        raise RadistillError(f"{error}; norm weights near zero lose bits in this dtype, so take float32") from None


def _prove_start(
    teacher: Model, network: PreTrainedModel, layers: tuple[int, ...], settings: TargetSettings, probe: Probe
) -> float:
    """Compare a student whose new blocks should be silent with the source that skips the replaced attentions."""
    goes = TARGETS[settings.kind].goes
    with evaluating(teacher.network), masked(teacher, ComponentMask.of(layers, goes)):
        reference = probe_logits(teacher.network, probe)
    return prove_equal(
        reference,
        probe_logits(network, probe),
        f"the student should start as {teacher.source} without the {' and '.join(goes)} of layers {list(layers)}",
        _tolerance(teacher, settings),
    )


def _tolerance(teacher: Model, settings: TargetSettings) -> float:
    return TARGETS[settings.kind].rounding.get(teacher.network.dtype, TOLERANCE)


def _checked_layers(replace: Sequence[int] | HasReplace, anatomy: Anatomy, target: Target) -> tuple[int, ...]:
    """The layers to replace, after every check that needs no weights."""
    planned = getattr(replace, "num_layers", anatomy.num_layers)
    if planned != anatomy.num_layers:
        raise RadistillError(f"plan: num_layers is {planned}, but this model has {anatomy.num_layers} layers")
    layers = _layer_numbers(replace)
    for place, layer in enumerate(layers):
        if not 0 <= layer < anatomy.num_layers:
            raise RadistillError(
                f"replace[{place}] is {layer}, but this model has layers 0 to {anatomy.num_layers - 1}"
            )
        if layer not in anatomy.attention_layers:
            raise RadistillError(f"replace[{place}] is {layer}, but layer {layer} has no attention to replace")
    if list(layers) != sorted(set(layers)):
        raise RadistillError(f"replace is {list(layers)}; it must be sorted and without repeats")
    count = len(anatomy.attention_layers)
    if layers and count - len(layers) < target.keeps:
        raise RadistillError(
            f"replace names {len(layers)} of {count} attention layers, and {target.keeps} must stay: "
            f"{target.keeps_because}"
        )
    return layers


def _layer_numbers(replace: Sequence[int] | HasReplace) -> tuple[int, ...]:
    numbers: Any = replace if isinstance(replace, Sequence) else getattr(replace, "replace", replace)
    try:
        if any(isinstance(number, bool) for number in numbers):
            raise TypeError
        return tuple(operator.index(number) for number in numbers)
    except TypeError:
        raise RadistillError(f"replace is {numbers!r}; it must be a list of layer numbers, or a plan") from None


def _shape(anatomy: Anatomy, attention: Attention) -> AttentionShape:
    bias = attention.q_proj.bias is not None
    return AttentionShape(anatomy.num_heads, anatomy.num_kv_heads, anatomy.head_dim, bias)


def _generator(seed: int, layer: int) -> torch.Generator:
    """One independent stream of random numbers per seed and layer."""
    (state,) = np.random.SeedSequence([seed, layer]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
