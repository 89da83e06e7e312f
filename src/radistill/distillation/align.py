"""Alignment: each new block is fitted, on its own, to the output of the attention that it replaces.

The teacher runs once over the documents; what went into each replaced attention and what came out is kept, and every
block then learns that map by regression (as in the first stages of MOHAWK, arXiv 2408.10189, and RADLADS, arXiv
2505.03005). No block waits for another, so a run that was killed goes on with the first layer that is not finished.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from radistill.console import note, progress
from radistill.distillation.muon import Muon
from radistill.distillation.output_fit import solve_output
from radistill.distillation.precision import master_weights
from radistill.effects import NOT_COUNTED, counted
from radistill.errors import RadistillError
from radistill.files import hash_file, hash_json, read_kept, write_kept
from radistill.mixers.interface import Mixer
from radistill.models.loading import Model
from radistill.models.sequences import Document, batches, collate, hash_documents
from radistill.speculation.substitutes import Substitutes


class AlignSettings(BaseModel, extra="forbid", allow_inf_nan=False):
    """How the new blocks are fitted before any end-to-end training."""

    steps: int = Field(default=600, ge=1, description="optimiser steps for each block")
    learning_rate: float = Field(default=0.05, gt=0, description="peak rate of the projections, which Muon trains")
    other_learning_rate: float = Field(
        default=5e-3,
        gt=0,
        description="peak rate of a block's convolution, decays, step sizes and norm, which AdamW trains",
    )
    tokens_per_batch: int = Field(
        default=512, ge=1, description="padded tokens in one step; small batches fit better on as many tokens"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    solve_output: bool = Field(
        default=True, description="set each block's output projection by least squares, before and after the steps"
    )
    held_out: float = Field(
        default=0.125, ge=0, lt=1, description="share of the documents kept apart to measure the fit"
    )
    memory_gib: Annotated[float, NOT_COUNTED] = Field(
        default=4.0,
        gt=0,
        description="room for cached activations; more layers fit in one pass of the teacher",
    )


@dataclass(frozen=True)
class LayerFit:
    """How well one block reproduces the attention that it replaces.

    Attributes:
        layer: index of the layer.
        unexplained_before: squared error over the variance of the attention's output, on documents kept apart from the
            fit, before it. The error counts an offset of the mean, the variance does not: a block that outputs zero
            has 1 or more.
        unexplained_after: the same, after the fit.
        steps: optimiser steps.
        seconds: wall time of the fit.
        losses: the training loss (unexplained share of the batch) of each step.
        gradient_norms: norm of the whole gradient before clipping, for the first ten steps.
    """

    layer: int
    unexplained_before: float
    unexplained_after: float
    steps: int
    seconds: float
    losses: list[float]
    gradient_norms: list[float]


@dataclass(frozen=True)
class Alignment:
    """Result of `align`.

    Attributes:
        layers: one fit a layer.
        tokens: tokens of the documents that the blocks were fitted on, counted once.
        seconds: wall time, the teacher's passes included, of the process that finished it.
    """

    layers: list[LayerFit]
    tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data for `align.json`."""
        return asdict(self)


class Activations(NamedTuple):
    """Input and output of one attention for one batch: both [batch, time, hidden]; mask is [batch, time]."""

    inputs: Tensor
    outputs: Tensor
    mask: Tensor


def align(
    student: Model,
    teacher: Model,
    documents: Sequence[Document],
    settings: AlignSettings | None = None,
    *,
    replace: Sequence[int],
    seed: int = 0,
    folder: Path | None = None,
) -> Alignment:
    """Fit each new block of `student` to the attention that it replaces in `teacher`. The student changes in place.

    Args:
        student: a converted model; its other weights are not touched.
        teacher: the model that it was converted from.
        documents: text that the teacher reads; every token counts, prompt and response alike.
        settings: steps, rate and batch size.
        replace: the layers to fit.
        seed: of the order of batches.
        folder: where finished blocks are kept, so that a killed run goes on; None keeps nothing.

    Raises:
        RadistillError: if there are too few documents, if an attention of the teacher puts out something that is not
            finite, or if a fit diverges (the message names the layer).
    """
    settings = settings or AlignSettings()
    started = time.perf_counter()
    train, kept_apart = split_documents(documents, settings)
    student.__dict__.pop("fingerprint", None)  # the weights change below
    mixer = student.anatomy.architecture.mixer
    if mixer is None:
        raise RadistillError(f"align: a {student.anatomy.model_type} has no blocks of a kind that can be fitted")
    blocks = {layer: student.anatomy.mixer(student.network, layer) for layer in replace}
    text = hash_documents(documents)
    shape = [mixer.kind, asdict(mixer.geometry(student.network.config))]
    reading = [teacher.fingerprint, text, counted(settings), seed]
    # What a finished block depends on: itself and the teacher, but not which other layers are replaced.
    keys = {layer: hash_json([Substitutes({layer: blocks[layer]}).fingerprint, shape, *reading]) for layer in replace}
    restored = {layer: _restore(blocks[layer], layer, folder, keys[layer]) for layer in replace}
    fits = {layer: fit for layer, fit in restored.items() if fit is not None}
    missing = [layer for layer in replace if layer not in fits]
    tokens = sum(len(document.tokens) for document in train)
    if missing:
        note(
            f"align: {len(missing)} block{'s' * (len(missing) != 1)}, {settings.steps} steps each, on {len(train)} "
            f"documents ({tokens:,} tokens); fit measured on {len(kept_apart)} others"
        )
    for layers in _passes(missing, teacher, [*train, *kept_apart], settings.memory_gib):
        cached, apart = record_attentions(teacher, layers, (train, kept_apart), settings.tokens_per_batch)
        with progress("align", len(replace), "blocks", done=len(fits)) as advance:
            for layer in layers:
                fits[layer] = fit_block(
                    blocks[layer], layer, mixer, cached.pop(layer), apart.pop(layer), settings, seed
                )
                _keep(blocks[layer], fits[layer], folder, keys[layer])
                advance(1, f"layer {layer}: {fits[layer].unexplained_after:.3f} unexplained")
    for layer in missing:
        if fits[layer].unexplained_after >= fits[layer].unexplained_before:
            note(
                f"align: the fit of layer {layer} did not help ({fits[layer].unexplained_before:.2f} → "
                f"{fits[layer].unexplained_after:.2f} unexplained); lower align.learning_rate or give it more documents"
            )
    return Alignment([fits[layer] for layer in replace], tokens, round(time.perf_counter() - started, 3))


def split_documents(documents: Sequence[Document], settings: AlignSettings) -> tuple[list[Document], list[Document]]:
    """Those that blocks are fitted on, as far as the steps can use them, and those on which the fit is measured.

    Raises:
        RadistillError: if there are too few.
    """
    share, steps, tokens_per_batch = settings.held_out, settings.steps, settings.tokens_per_batch
    count = math.ceil(len(documents) * share)
    if len(documents) - count < 1:
        raise RadistillError(f"align: {len(documents)} documents are too few to fit on; ask for more in data.train")
    train, kept_apart = list(documents[: len(documents) - count]), list(documents[len(documents) - count :])
    # Activations are kept only for what the steps can use.
    used = _first_tokens(train, steps * tokens_per_batch)
    return used, _first_tokens(kept_apart or train, max(tokens_per_batch, steps * tokens_per_batch // 8))


def _first_tokens(documents: Sequence[Document], tokens: int) -> list[Document]:
    """The first documents that together have `tokens` tokens, or all of them."""
    taken: list[Document] = []
    for document in documents:
        if tokens <= 0:
            break
        taken.append(document)
        tokens -= len(document.tokens)
    return taken


def _passes(layers: Sequence[int], teacher: Model, documents: Sequence[Document], gib: float) -> Iterator[list[int]]:
    numbers = 2 * sum(len(document.tokens) for document in documents) * teacher.anatomy.hidden_size
    per_layer = numbers * teacher.network.dtype.itemsize
    at_once = max(1, int(gib * 2**30 // per_layer))
    for start in range(0, len(layers), at_once):
        yield list(layers[start : start + at_once])


def record_attentions(
    teacher: Model, layers: Sequence[int], splits: Sequence[Sequence[Document]], tokens_per_batch: int
) -> list[dict[int, list[Activations]]]:
    """What goes into and comes out of the attention of each of `layers`, for each split of the documents.

    Raises:
        RadistillError: if an attention puts out something that is not finite.
    """
    groups = [batches(documents, tokens_per_batch) for documents in splits]
    results = []
    with progress("teacher activations", sum(map(len, groups)), "batches") as advance:
        for split in groups:
            recorded: dict[int, list[Activations]] = {layer: [] for layer in layers}
            for group in split:
                batch = collate(group, teacher.pad_token_id, teacher.network.device)
                with torch.inference_mode(), _listening(teacher, recorded, batch.attention_mask):
                    # The logits are not needed; one position is the least that can be asked for.
                    teacher.network(
                        input_ids=batch.input_ids,
                        attention_mask=batch.attention_mask,
                        logits_to_keep=1,
                        use_cache=False,
                    )
                advance()
            results.append(recorded)
    for layer in layers:
        if not all(t.isfinite().all() for recorded in results for a in recorded[layer] for t in (a.inputs, a.outputs)):
            raise RadistillError(
                f"align: the attention of layer {layer} has inputs or outputs that are not finite; "
                "check the source model's weights, or load it with dtype float32"
            )
    return results


@contextmanager
def _listening(teacher: Model, recorded: dict[int, list[Activations]], mask: Tensor) -> Iterator[None]:
    def listener(layer: int) -> Any:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            outputs = output[0] if isinstance(output, tuple) else output
            recorded[layer].append(Activations(inputs.clone(), outputs.clone(), mask))

        return listen

    with ExitStack() as stack:
        for layer in recorded:
            mixer = teacher.anatomy.mixer(teacher.network, layer)
            stack.enter_context(mixer.register_forward_hook(listener(layer), with_kwargs=True))
        yield


def fit_block(
    block: nn.Module,
    layer: int,
    mixer: Mixer,
    cached: list[Activations],
    apart: list[Activations],
    settings: AlignSettings,
    seed: int,
) -> LayerFit:
    """Fit one block to what an attention made of the `cached` inputs, and measure the fit on those `apart`.

    Args:
        block: of the kind `mixer`; changes in place.
        layer: its index, for messages, and for the order of batches beside `seed`.
        mixer: says which layer of the block is its output.
        cached, apart: of `record_attentions`.
        settings: steps and rates.
        seed: of the order of batches.

    Raises:
        RadistillError: if the fit diverges.
    """
    started = time.perf_counter()
    parameters = list(block.parameters())
    trainable = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    variance = _variance(cached)
    before = _unexplained(block, apart)
    with master_weights(block, None):
        output = mixer.output(block) if settings.solve_output else None
        if output is not None:
            solve_output(block, output, cached)
        losses, norms = _train(block, layer, cached, variance, settings, seed)
        if output is not None:
            solve_output(block, output, cached)
    for parameter, flag in zip(parameters, trainable, strict=True):
        parameter.requires_grad_(flag)
    after = _unexplained(block, apart)
    if not math.isfinite(after):
        raise _diverged(layer, settings.steps, settings)
    return LayerFit(layer, before, after, settings.steps, round(time.perf_counter() - started, 3), losses, norms)


def _train(
    block: nn.Module, layer: int, cached: list[Activations], variance: float, settings: AlignSettings, seed: int
) -> tuple[list[float], list[float]]:
    """The steps: the loss of each, and the norms of the first gradients."""
    parameters = list(block.parameters())
    optimisers = _optimisers(parameters, settings)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=optimiser.defaults["lr"],
            total_steps=settings.steps + 1,
            pct_start=0.1,
            cycle_momentum=False,
        )
        for optimiser in optimisers
    ]
    losses: list[float] = []
    norms: list[float] = []
    for step, index in enumerate(_order(len(cached), settings.steps, seed + layer)):
        inputs, outputs, mask = (tensor.clone() for tensor in cached[index])
        error = (block(inputs.to(parameters[0].dtype), attention_mask=mask) - outputs) * mask[..., None]
        loss = error.float().square().sum() / (mask.sum() * variance)
        block.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise _diverged(layer, step + 1, settings)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        losses.append(loss.item())
        if len(norms) < 10:
            norms.append(norm.item())
    block.zero_grad(set_to_none=True)
    return losses, norms


def _optimisers(parameters: Sequence[nn.Parameter], settings: AlignSettings) -> list[torch.optim.Optimizer]:
    """Muon for matrices and AdamW for the rest.

    In as many steps, Muon leaves a fifth less of the attention's output unexplained than AdamW does at its best rate.
    """
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    others = [parameter for parameter in parameters if parameter.ndim != 2]
    optimisers: list[torch.optim.Optimizer] = []
    if matrices:
        optimisers.append(Muon(matrices, lr=settings.learning_rate))
    if others:
        rate = settings.other_learning_rate
        # The second moment forgets sooner than by default: a fit is a few hundred steps.
        optimisers.append(torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0))
    return optimisers


def _diverged(layer: int, step: int, settings: AlignSettings) -> RadistillError:
    return RadistillError(
        f"align: the fit of layer {layer} diverged at step {step}; lower align.learning_rate "
        f"(it is {settings.learning_rate})"
    )


def _order(count: int, steps: int, seed: int) -> Iterator[int]:
    """Every batch once an epoch, in an order that the seed decides, for `steps` steps."""
    generator = torch.Generator().manual_seed(seed)
    while steps > 0:
        epoch = torch.randperm(count, generator=generator).tolist()[:steps]
        yield from epoch
        steps -= len(epoch)


def _variance(activations: list[Activations]) -> float:
    """Variance of the outputs at tokens, summed over the hidden dimension."""
    outputs = torch.cat([outputs[mask.bool()] for _, outputs, mask in activations]).double()
    variance = (outputs - outputs.mean(dim=0)).square().sum(dim=1).mean().item()
    return max(variance, 1e-12)  # an attention that always gives the same output


def _unexplained(block: nn.Module, activations: list[Activations]) -> float:
    """Squared error of `block` over the variance of the outputs, at tokens."""
    error, tokens = 0.0, 0
    with torch.no_grad():
        for inputs, outputs, mask in activations:
            difference = (block(inputs, attention_mask=mask) - outputs)[mask.bool()]
            error += difference.double().square().sum().item()
            tokens += len(difference)
    return error / tokens / _variance(activations)


def _keep(block: nn.Module, fit: LayerFit, folder: Path | None, key: str) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    record, weights = _places(folder, fit.layer, key)
    save_file({name: tensor.contiguous() for name, tensor in block.state_dict().items()}, weights)
    # The record is written last: weights without a record are not read.
    write_kept(record, key, {"weights": hash_file(weights), "fit": asdict(fit)})


def _restore(block: nn.Module, layer: int, folder: Path | None, key: str) -> LayerFit | None:
    """Put back a finished block; None, and the block as it was, where none is there or its files are damaged."""
    if folder is None:
        return None
    record, weights = _places(folder, layer, key)
    kept = read_kept(record, key)
    if kept is None or not weights.is_file() or kept["weights"] != hash_file(weights):
        return None
    block.load_state_dict(load_file(weights))
    return LayerFit(**kept["fit"])


def _places(folder: Path, layer: int, key: str) -> tuple[Path, Path]:
    """Record and weights of a finished block, under a name of its own among those of other students."""
    stem = f"layer-{layer:03d}-{key[:16]}"
    return folder / f"{stem}.json", folder / f"{stem}.safetensors"
