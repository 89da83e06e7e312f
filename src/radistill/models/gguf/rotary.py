"""Rotary positions of a GGUF file, as transformers' `rope_parameters`."""

import math
from typing import Any

import torch
from torch import Tensor

from radistill.errors import RadistillError
from radistill.models.gguf.account import Account

DIVISORS = "rope_freqs.weight"
_BASE = 10000.0  # llama.cpp's, where the file is silent

# What all published Llama 3 scalings have in common: the factors of the two wavelengths, and the original context.
_LOW, _HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192
_TOLERANCE = 1e-4  # relative: the converter computes them in float32, from differences of near numbers


def rope_parameters(
    account: Account, prefix: str, context: int, head_size: int, divisors: Tensor | None
) -> dict[str, Any]:
    """Rotary base and scaling by the keys `PREFIX.rope.*` and the tensor of divisors, if the file has one.

    Args:
        context: the file's context length, in tokens.
        divisors: by what each of the `head_size / 2` frequencies is divided.

    Raises:
        RadistillError: naming a scaling that transformers has no equal of, or whose parameters cannot be told.
    """
    rope = f"{prefix}.rope"
    scaling = f"{rope}.scaling"
    base = account.take(f"{rope}.freq_base", _BASE)
    account.only(f"{rope}.dimension_count", head_size, because=f"a head has {head_size} numbers, all of them rotated")
    account.take(f"{scaling}.finetuned", False)  # says how the model was made
    factor = account.take(f"{scaling}.factor", account.take(f"{rope}.scale_linear", 0.0)) or 1.0
    kind = account.take(f"{scaling}.type", "linear")
    original = account.take(f"{scaling}.original_context_length", context)
    if kind == "yarn":
        found = _yarn(account, scaling, factor, original)
    elif kind == "none" or (kind == "linear" and factor == 1.0):
        found = {"rope_type": "default"}
    elif kind == "linear":
        found = {"rope_type": "linear", "factor": factor}
    else:
        raise RadistillError(f"{account.path}: {scaling}.type is {kind!r}; linear, yarn and none are read")
    if kind != "yarn":
        account.only(f"{scaling}.attn_factor", 1.0, because=f"a rotary scaling of type {kind} stretches nothing")
    if divisors is not None:
        if found["rope_type"] != "default":
            raise RadistillError(f"{account.path}: {DIVISORS} and {scaling}.type {kind} at once, which is not read")
        found = _llama3(account, base, head_size, divisors)
    return {**found, "rope_theta": base}


def _yarn(account: Account, scaling: str, factor: float, original: int) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    account.only(f"{scaling}.yarn_ext_factor", 1.0, because="transformers' YaRN has no other")
    for key, field in (("attn", "attention_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
        name = f"{scaling}.yarn_{key}{'_factor' if key == 'attn' else ''}"
        if name in account:
            found[field] = account.need(name, float)
    stretch = account.take(f"{scaling}.attn_factor", 1.0)
    if stretch != 1.0:  # llama.cpp multiplies YaRN's own factor by it
        found["attention_factor"] = stretch * found.get("attention_factor", 1.0 + 0.1 * math.log(factor))
    return found


def _llama3(account: Account, base: float, head_size: int, divisors: Tensor) -> dict[str, Any]:
    """The parameters of the Llama 3 scaling that divides the frequencies so. They are proved by computing them again.

    A frequency between the two that limit the scaling tells the original context; the largest divisor is the factor.
    """
    wanted = divisors.double()
    wavelengths = 2 * math.pi * base ** (torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    if wanted.shape == wavelengths.shape and wanted.isfinite().all():
        factor = float(f"{wanted.max():.6g}")  # float32 may put 8.000001 there
        if factor == float(wanted.min()) == 1.0:
            return {"rope_type": "default"}
        between = (wanted > 1.0) & (wanted < factor)
        share = (1 / wanted[between] - 1 / factor) / (1 - 1 / factor)
        told = wavelengths[between] * (_LOW + share * (_HIGH - _LOW))
        for context in sorted({_LLAMA3_CONTEXT, *told.round().int().tolist()}, reverse=True):
            share = ((context / wavelengths - _LOW) / (_HIGH - _LOW)).clamp(0.0, 1.0)
            if torch.allclose(1 / ((1 - share) / factor + share), wanted, rtol=_TOLERANCE, atol=0.0):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": _LOW,
                    "high_freq_factor": _HIGH,
                    "original_max_position_embeddings": context,
                }
    raise RadistillError(
        f"{account.path}: no parameters of the Llama 3 scaling give the {wanted.numel()} divisors in {DIVISORS} for a "
        f"rotary base of {base:g} and heads of {head_size}; take the model's safetensors folder"
    )
