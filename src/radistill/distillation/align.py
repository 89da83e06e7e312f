"""Alignment: each new block is fitted, on its own, to the output of the attention that it replaces.

The teacher runs once over the documents; what went into each replaced attention and what came out is kept, and every
block then learns that map by regression (as in the first stages of MOHAWK, arXiv 2408.10189, and RADLADS, arXiv
2505.03005). No block waits for another, so a run that was killed goes on with the first layer that is not finished.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from radistill.console import note, progress
from radistill.distillation.activations import Activations, Recorded, passes, recorded_attentions
from radistill.distillation.modes import master_weights
from radistill.distillation.muon import Muon
from radistill.distillation.output_fit import solve_output
from radistill.effects import NOT_COUNTED, counted
from radistill.errors import RadistillError
from radistill.files import hash_file, hash_json, read_kept, write_kept
from radistill.mixers.interface import Mixer
from radistill.models.loading import Model
from radistill.models.sequences import Document, batch_order, hash_documents
from radistill.processes import ALONE, Processes
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
        description="room for recorded activations; what needs more lies in the run folder while blocks are fitted",
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


def align(
    student: Model,
    teacher: Model,
    documents: Sequence[Document],
    settings: AlignSettings | None = None,
    *,
    replace: Sequence[int],
    seed: int = 0,
    folder: Path | None = None,
    processes: Processes = ALONE,
) -> Alignment:
    """Fit each new block of `student` to the attention that it replaces in `teacher`. The student changes in place.

    Args:
        student: a converted model; its other weights are not touched.
        teacher: the model that it was converted from.
        documents: text that the teacher reads; every token counts, prompt and response alike.
        settings: steps, rate and batch size.
        replace: the layers to fit.
        seed: of the order of batches.
        folder: where finished blocks are kept, so that a killed run goes on, and activations while there is no room for
            them in memory; None keeps nothing.
        processes: who share the teacher's batches and then the blocks, for which they need a folder; all must call
            this together, and all get all blocks.

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

    def restore(layer: int) -> LayerFit | None:
        return _restore(blocks[layer], layer, folder, keys[layer])

    fits = {layer: known for layer in replace if (known := restore(layer)) is not None}
    missing = processes.decide(lambda: [layer for layer in replace if layer not in fits])
    tokens = sum(len(document.tokens) for document in train)
    if missing:
        note(
            f"align: {len(missing)} block{'s' * (len(missing) != 1)}, {settings.steps} steps each, on {len(train)} "
            f"documents ({tokens:,} tokens); fit measured on {len(kept_apart)} others"
        )
    per_layer = 2 * sum(len(one.tokens) for one in (*train, *kept_apart)) * teacher.anatomy.hidden_size
    per_layer *= teacher.network.dtype.itemsize
    for which in processes.decide(lambda: passes(missing, per_layer, settings.memory_gib, folder, processes)):
        parts = train, kept_apart
        with (
            recorded_attentions(teacher, which, parts, settings.tokens_per_batch, processes) as (cached, apart),
            progress("align", len(replace), "blocks", done=len(fits)) as advance,
        ):

            def fit(layer: int, cached: Recorded = cached, apart: Recorded = apart) -> LayerFit:
                found = fit_block(blocks[layer], layer, mixer, cached[layer], apart[layer], settings, seed)
                _keep(blocks[layer], found, folder, keys[layer])
                advance(0, f"layer {layer}: {found.unexplained_after:.3f} unexplained")
                return found

            fitted = processes.share(which.layers, fit, lambda done: advance(len(done)))
        fits |= zip(which.layers, fitted, strict=True)
    for layer in missing if processes.count > 1 else ():  # the others have fitted most of them
        if restore(layer) is None:
            raise RadistillError(f"{folder}: has no block of layer {layer}; all processes must see the same folder")
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
    steps, tokens_per_batch = settings.steps, settings.tokens_per_batch
    count = len(documents) - math.ceil(len(documents) * settings.held_out)
    if count < 1:
        raise RadistillError(f"align: {len(documents)} documents are too few to fit on; ask for more in data.train")
    train, kept_apart = documents[:count], documents[count:]
    # Activations are kept only for what the steps can use.
    used = _first_tokens(train, steps * tokens_per_batch)
    return used, _first_tokens(kept_apart or train, max(tokens_per_batch, steps * tokens_per_batch // 8))


def _first_tokens(documents: Sequence[Document], tokens: int) -> list[Document]:
    """The first documents that together have `tokens` tokens, or all of them."""
    before = accumulate((len(document.tokens) for document in documents), initial=0)
    return [document for document, taken in zip(documents, before, strict=False) if taken < tokens]


def fit_block(
    block: nn.Module,
    layer: int,
    mixer: Mixer,
    cached: Sequence[Activations],
    apart: Sequence[Activations],
    settings: AlignSettings,
    seed: int,
) -> LayerFit:
    """Fit one block to what an attention made of the `cached` inputs, and measure the fit on those `apart`.

    Args:
        block: of the kind `mixer`; changes in place.
        layer: its index, for messages, and for the order of batches beside `seed`.
        mixer: says which layer of the block is its output.
        cached, apart: of `recorded_attentions`.
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
    variance, variance_apart = _variance(cached), _variance(apart)
    before = _unexplained(block, apart, variance_apart)
    with master_weights(block, None):
        output = mixer.output(block) if settings.solve_output else None
        if output is not None:
            solve_output(block, output, cached)
        losses, norms = _train(block, layer, cached, variance, settings, seed)
        if output is not None:
            solve_output(block, output, cached)
    for parameter, flag in zip(parameters, trainable, strict=True):
        parameter.requires_grad_(flag)
    after = _unexplained(block, apart, variance_apart)
    if not math.isfinite(after):
        raise _diverged(layer, settings.steps, settings)
    return LayerFit(layer, before, after, settings.steps, round(time.perf_counter() - started, 3), losses, norms)


def _train(
    block: nn.Module, layer: int, cached: Sequence[Activations], variance: float, settings: AlignSettings, seed: int
) -> tuple[list[float], list[float]]:
    """The steps: the loss of each, and the norms of the first gradients."""
    parameters = list(block.parameters())
    optimisers = _optimisers(parameters, settings)
    schedules = [
        OneCycleLR(one, one.defaults["lr"], settings.steps + 1, pct_start=0.1, cycle_momentum=False)
        for one in optimisers
    ]
    losses: list[float] = []
    norms: list[float] = []
    for step, index in enumerate(batch_order(len(cached), settings.steps, seed + layer)):
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
    optimisers: list[torch.optim.Optimizer] = [Muon(matrices, lr=settings.learning_rate)] if matrices else []
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


def _variance(activations: Sequence[Activations]) -> float:
    """Variance of the outputs at tokens, summed over the hidden dimension; read twice, a batch at a time."""
    tokens, total = 0, torch.zeros((), dtype=torch.float64)
    for _, outputs, mask in activations:
        rows = outputs[mask.bool()].double()
        tokens, total = tokens + len(rows), total + rows.sum(dim=0).cpu()
    mean = total / tokens
    squares = sum(
        (outputs[mask.bool()].double() - mean.to(outputs.device)).square().sum().item()
        for _, outputs, mask in activations
    )
    return max(squares / tokens, 1e-12)  # an attention that always gives the same output


def _unexplained(block: nn.Module, activations: Sequence[Activations], variance: float) -> float:
    """Squared error of `block` over the variance of the outputs, at tokens."""
    error, tokens = 0.0, 0
    with torch.no_grad():
        for inputs, outputs, mask in activations:
            difference = (block(inputs, attention_mask=mask) - outputs)[mask.bool()]
            error += difference.double().square().sum().item()
            tokens += len(difference)
    return error / tokens / variance


def _keep(block: nn.Module, fit: LayerFit, folder: Path | None, key: str) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    record = _record(folder, fit.layer, key)
    weights = record.with_suffix(".safetensors")
    save_file({name: tensor.contiguous() for name, tensor in block.state_dict().items()}, weights)
    # The record is written last: weights without a record are not read.
    write_kept(record, key, {"weights": hash_file(weights), "fit": asdict(fit)})


def _restore(block: nn.Module, layer: int, folder: Path | None, key: str) -> LayerFit | None:
    """Put back a finished block; None, and the block as it was, where none is there or its files are damaged."""
    if folder is None:
        return None
    record = _record(folder, layer, key)
    kept, weights = read_kept(record, key), record.with_suffix(".safetensors")
    if kept is None or not weights.is_file() or kept["weights"] != hash_file(weights):
        return None
    block.load_state_dict(load_file(weights))
    return LayerFit(**kept["fit"])


def _record(folder: Path, layer: int, key: str) -> Path:
    """Of a finished block, whose weights lie beside it, under a name of its own among those of other students."""
    return folder / f"layer-{layer:03d}-{key[:16]}.json"
