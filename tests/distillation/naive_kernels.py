"""Stand-ins for kernels of variable length: each is a plain loop over the documents of a row.

They have the arguments of the functions of flash-attn, causal-conv1d, mamba-ssm and fla, and are found by transformers
where it looks for those.
"""

import inspect
import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers.modeling_flash_attention_utils as flash_attention
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback

from radistill.mixers import use_fast_paths
from radistill.mixers.fast.swap import _namespaces


def install_flash(monkeypatch: pytest.MonkeyPatch, network: PreTrainedModel) -> None:
    """Let a network run transformers' flash attention, with the stand-in for its kernel."""
    monkeypatch.setattr(flash_attention, "_loaded_implementation", None)
    monkeypatch.setattr(flash_attention, "_lazy_imports", lambda *_, **__: (dense, attention, None, None, None))
    network.config._attn_implementation = "flash_attention_2"


def install_recurrent(monkeypatch: pytest.MonkeyPatch, network: PreTrainedModel, *, bounds: bool = True) -> None:
    """Let the convolutions and scans of a network be the stand-ins, under our own fast paths.

    Args:
        monkeypatch: of the test, after which they are gone.
        network: whose classes they are for.
        bounds: False is a convolution from before it knew documents.
    """
    for namespace in _namespaces(network):

        def original(name: str, namespace: ModuleType = namespace) -> Callable[..., Any]:
            return inspect.unwrap(getattr(namespace, name))

        convolution = _convolution(original("causal_conv1d_fn"))
        own = {"causal_conv1d_fn": ("causal_conv1d", "causal_conv1d_fn", convolution if bounds else _old(convolution))}
        if hasattr(namespace, "mamba2_chunk_scan"):
            scan = _scan(original("mamba2_chunk_scan"))
            fused = _fused(convolution, scan)
            own["mamba2_chunk_scan"] = ("mamba_ssm", "mamba_chunk_scan_combined", scan)
            own["mamba2_split_conv1d_scan_combined"] = ("mamba_ssm", "mamba_split_conv1d_scan_combined", fused)
        if hasattr(namespace, "torch_chunk_gated_delta_rule"):
            rule = _rule(original("torch_chunk_gated_delta_rule"))
            own["torch_chunk_gated_delta_rule"] = ("fla", "chunk_gated_delta_rule", rule)
        for name, (package, function, kernel) in own.items():
            module = ModuleType(package)
            setattr(module, function, kernel)
            with monkeypatch.context() as only:
                only.setitem(sys.modules, package, module)
                found = use_kernel_func_from_hub_with_fallback(function, package)(original(name))
            monkeypatch.setattr(namespace, name, found)
    use_fast_paths(network)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float = 1.0,
    causal: bool = False,
) -> Tensor:
    """As flash_attn_varlen_func: q is [tokens, heads, head_dim]."""
    assert causal
    assert not dropout_p
    assert cu_seqlens_q.dtype == torch.int32
    assert cu_seqlens_q.tolist() == cu_seqlens_k.tolist()
    outputs = []
    for start, end in pairwise(cu_seqlens_q.tolist()):
        assert end - start <= max_seqlen_q == max_seqlen_k
        queries, keys, values = (part[start:end].transpose(0, 1) for part in (q, k, v))
        keys, values = (part.repeat_interleave(len(queries) // len(keys), dim=0) for part in (keys, values))
        scores = queries @ keys.mT * softmax_scale
        later = torch.ones_like(scores).triu(1).bool()
        outputs.append((scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ values).transpose(0, 1))
    return torch.cat(outputs)


def dense(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
    """As flash_attn_func: q is [1, tokens, heads, head_dim], one document."""
    bounds, tokens = torch.tensor([0, q.shape[1]], dtype=torch.int32), q.shape[1]
    return attention(q[0], k[0], v[0], bounds, bounds, tokens, tokens, **settings)[None]


def _documents(seq_idx: Tensor | None, time: int) -> list[slice]:
    """Where each document of a row lies."""
    if seq_idx is None:
        return [slice(time)]
    assert seq_idx.dtype == torch.int32
    assert seq_idx.shape == (1, time)
    starts = [0, *(seq_idx[0].diff().nonzero()[:, 0] + 1).tolist(), time]
    return [slice(start, end) for start, end in pairwise(starts)]


def _convolution(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def convolution(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        seq_idx: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        parts = _documents(seq_idx, x.shape[2])
        return torch.cat([plain(x[:, :, part], weight, bias, activation=activation) for part in parts], dim=2)

    return convolution


def _old(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def old(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
        return convolution(x, weight, bias, activation=activation)

    return old


def _scan(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def scan(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        seq_idx: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
    ) -> Tensor:
        assert z is None
        settings = {"D": D, "dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": dt_limit}
        return torch.cat(
            [
                plain(x[:, part], dt[:, part], A, B[:, part], C[:, part], chunk_size, **settings)
                for part in _documents(seq_idx, x.shape[1])
            ],
            dim=1,
        )

    return scan


def _fused(convolution: Callable[..., Tensor], scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What Mamba-2 layers call in training: everything but the first projection."""

    def fused(
        zxbcdt: Tensor,
        conv1d_weight: Tensor,
        conv1d_bias: Tensor | None,
        dt_bias: Tensor,
        A: Tensor,
        D: Tensor,
        chunk_size: int,
        seq_idx: Tensor | None = None,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        activation: str = "silu",
        rmsnorm_weight: Tensor | None = None,
        rmsnorm_eps: float = 1e-6,
        outproj_weight: Tensor | None = None,
        outproj_bias: Tensor | None = None,
        headdim: int = 0,
        ngroups: int = 1,
        norm_before_gate: bool = True,
    ) -> Tensor:
        assert outproj_weight is not None
        assert not norm_before_gate
        inner = len(D) * headdim
        z, mixed, dt = zxbcdt.split([inner, len(conv1d_weight), len(D)], dim=-1)
        mixed = convolution(mixed.mT, conv1d_weight, conv1d_bias, seq_idx, activation).mT
        x, B, C = mixed.tensor_split((inner, (inner + mixed.shape[-1]) // 2), dim=-1)
        B, C = B.unflatten(-1, (ngroups, -1)), C.unflatten(-1, (ngroups, -1))
        settings = {"D": D, "dt_bias": dt_bias, "dt_softplus": True, "dt_limit": dt_limit, "seq_idx": seq_idx}
        y = scan(x.unflatten(-1, (len(D), headdim)), dt, A, B, C, chunk_size, **settings).flatten(2) * F.silu(z)
        if rmsnorm_weight is not None:
            groups = y.unflatten(-1, (ngroups, -1))
            y = F.rms_norm(groups, groups.shape[-1:], eps=rmsnorm_eps).flatten(2) * rmsnorm_weight
        return F.linear(y, outproj_weight, outproj_bias)

    return fused


def _rule(plain: Callable[..., Any]) -> Callable[..., Any]:
    def rule(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        assert initial_state is None
        assert not output_final_state
        bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
        outputs = [
            plain(*(each[:, start:end] for each in (q, k, v, g, beta)), use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel)
            for start, end in pairwise(bounds)
        ]
        return torch.cat([output[0] for output in outputs], dim=1), None

    return rule
