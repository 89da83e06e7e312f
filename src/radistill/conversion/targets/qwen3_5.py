"""The target `qwen3.5`: transformers' stock Qwen3_5ForCausalLM, or Qwen3_5MoeForCausalLM for experts; text only.

Qwen3 is the special case of this architecture that has attention in every layer, an output gate that is always one
half, and rotary positions over the whole head:

- `q_proj` holds query and gate of each head in turn; rows of zeros make the gate sigmoid(0) = 1/2, and a doubled
  `o_proj` makes up for it. Both are exact in every number format.
- The norms multiply by 1 + weight, so each weight is stored minus one. That is exact for weights from 1/2 to 2. Beyond,
  it is off by half a unit in the last place of the difference: in bfloat16 by at most 2^-9 for weights below 1/2.
- Qwen3 rounds the normalised value to the number format before it multiplies, Qwen3.5 after. In float32 nothing is
  rounded there.

So the student computes what Qwen3 does up to rounding. Every conversion proves it in float32, on the weights as they
are stored: within 1e-4 of the logits' root mean square, or `rounding` where they are stored in 16 bits.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
)

from radistill.conversion.targets.interface import CARRIED, Count, Hybrid, TargetSettings, dictated
from radistill.conversion.targets.qwen3_5_gguf import FORMAT
from radistill.errors import RadistillError
from radistill.mixers.gdn import GDN
from radistill.mixers.gdn.geometry import GDNGeometry
from radistill.mixers.interface import Mixer
from radistill.models.anatomy import anatomy_of
from radistill.models.features import MIXTURE, blocking_features
from radistill.models.loading import Model

_CARRIED = (*CARRIED, "head_dim", "attention_bias")
# Qwen3.5 with experts has one more, which every token passes. Of zeros it is silent, and as no gradient reaches it, it
# stays so.
_SILENT = (
    "shared_expert.gate_proj.weight",
    "shared_expert.up_proj.weight",
    "shared_expert.down_proj.weight",
    "shared_expert_gate.weight",
)
_SILENT_WIDTH = 32


@dataclass(frozen=True)
class _Form:
    """The architecture without experts, or with them."""

    model_type: str
    network: type[PreTrainedModel]
    config: Callable[..., PreTrainedConfig]
    carried: tuple[str, ...]
    added: Mapping[str, Any] = field(default_factory=dict)


_FORMS = {
    "qwen3": _Form("qwen3_5_text", Qwen3_5ForCausalLM, Qwen3_5TextConfig, ("intermediate_size",)),
    "qwen3_moe": _Form(
        "qwen3_5_moe_text",
        Qwen3_5MoeForCausalLM,
        Qwen3_5MoeTextConfig,
        ("moe_intermediate_size", "num_experts", "num_experts_per_tok", "router_aux_loss_coef"),
        {"shared_expert_intermediate_size": _SILENT_WIDTH},
    ),
}


class Qwen35Settings(TargetSettings):
    """Geometry of the new Gated DeltaNet blocks. A field that is left out follows the source."""

    kind: Literal["qwen3.5"] = "qwen3.5"
    key_heads: Count | Literal["heads"] | None = Field(
        None,
        description="heads of queries and keys, or 'heads' for one per attention head (for init transfer); default the "
        "attention's key heads",
    )
    value_heads: Count | None = Field(None, description="heads of values; default the attention's query heads")
    key_dim: Count | None = Field(None, description="channels of a query and a key; default the attention's head size")
    value_dim: Count | None = Field(None, description="channels of a value; default the attention's head size")
    conv_kernel: Count | None = Field(None, description="taps of the causal convolution; default 4")


class Qwen35(Hybrid):
    """See `Target` for what each member promises."""

    settings = Qwen35Settings
    model_types = tuple(form.model_type for form in _FORMS.values())
    mixers: ClassVar[tuple[Mixer, ...]] = (GDN,)
    block = "linear_attn"
    gguf = FORMAT
    rounding = MappingProxyType({torch.bfloat16: 0.1, torch.float16: 0.02})

    def check(self, config: PreTrainedConfig) -> list[str]:
        """Features of the source that the architecture cannot hold, by name."""
        config = config.get_text_config()
        if config.model_type in self.model_types:
            return []
        if config.model_type not in _FORMS:
            known = ", ".join([*_FORMS, *self.model_types])
            return [f"another architecture than it is made for (model_type={config.model_type!r}; {known})"]
        found = blocking_features(config, held=("QK-norm", MIXTURE))
        return found + _routing(config) if config.model_type == "qwen3_moe" else found

    def geometry(self, config: PreTrainedConfig, settings: TargetSettings) -> GDNGeometry:
        """Shape of the new blocks. A source that has such blocks dictates it: the architecture knows only one."""
        assert isinstance(settings, Qwen35Settings)
        anatomy = anatomy_of(config)
        chosen = {name: getattr(settings, name) for name in GDNGeometry.names}
        if chosen["key_heads"] == "heads":
            chosen["key_heads"] = anatomy.num_heads
        if anatomy.ssm_layers:
            return dictated(GDNGeometry.of(config), chosen, "linear layers")
        defaults = GDNGeometry(anatomy.num_kv_heads, anatomy.num_heads, anatomy.head_dim, anatomy.head_dim, 4)
        geometry = GDNGeometry(**{name: chosen[name] or getattr(defaults, name) for name in chosen})
        if geometry.value_heads % geometry.key_heads:
            raise RadistillError(
                f"target.key_heads is {geometry.key_heads}, which does not divide the {geometry.value_heads} value "
                "heads; take a divisor"
            )
        return geometry

    def build(
        self, model: Model, replace: Sequence[int], settings: TargetSettings, *, share: bool = False
    ) -> PreTrainedModel:
        """Build the student; its new blocks hold NaN until an initialisation fills them."""
        source = model.network.config
        as_stored = partial(_written, head_dim=model.anatomy.head_dim)
        return self.assembled(
            _form(source.model_type).network,
            self.student_config(source, replace, settings),
            model,
            replace,
            lambda name: (name,),
            share=share,
            written=(lambda name, tensor: tensor) if source.model_type in self.model_types else as_stored,
            silent=_SILENT,
        )

    def new_config(self, config: PreTrainedConfig, fields: dict[str, Any]) -> PreTrainedConfig:
        """Config of a student whose source is a Qwen3; `fields` are layers and blocks."""
        form = _form(config.model_type)
        carried: dict[str, Any] = {name: copy.deepcopy(getattr(config, name)) for name in (*_CARRIED, *form.carried)}
        half = config.head_dim // 2
        rope = {"partial_rotary_factor": 1.0, **copy.deepcopy(config.rope_parameters)}
        # Text has one position in all three sections, so that any split of the frequencies is the same.
        rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
        return form.config(**carried, **fields, **form.added, rope_parameters=rope)

    def remarks(self, config: PreTrainedConfig) -> list[str]:
        """Which versions of transformers load it, and what vLLM has."""
        return ["transformers 5.23 and newer load it.", "vLLM has a class for this architecture: `vllm serve FOLDER`."]


def _form(model_type: str) -> _Form:
    return _FORMS.get(model_type) or next(form for form in _FORMS.values() if form.model_type == model_type)


def _routing(config: PreTrainedConfig) -> list[str]:
    found = []
    if not config.norm_topk_prob:
        found.append("shares of the chosen experts that do not add up to one (norm_topk_prob=False)")
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        found.append("layers without experts (mlp_only_layers, decoder_sparse_step)")
    return found


def _written(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Qwen3's tensor as Qwen3.5 stores it."""
    if name.endswith("norm.weight"):
        return tensor - 1
    if name.endswith("self_attn.o_proj.weight"):
        return 2 * tensor
    if ".self_attn.q_proj." in name:
        queries = tensor.unflatten(0, (-1, head_dim))
        return torch.cat([queries, torch.zeros_like(queries)], dim=1).flatten(0, 1)
    return tensor
