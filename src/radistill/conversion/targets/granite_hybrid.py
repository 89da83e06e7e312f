"""The target `granite-hybrid`: transformers' stock GraniteMoeHybridForCausalLM, dense, with rotary positions.

A Llama-like decoder is the special case of this architecture that has attention in every layer, no experts and all
multipliers 1, so its weights move over unchanged and the student needs no model code of ours. The table of config
fields is in `docs/reference/conversion.md`.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM, PreTrainedConfig, PreTrainedModel

from radistill.conversion.targets.granite_hybrid_gguf import FORMAT
from radistill.conversion.targets.interface import CARRIED, LINEAR_LAYER, Count, Hybrid, TargetSettings, dictated
from radistill.errors import RadistillError
from radistill.mixers.interface import Mixer
from radistill.mixers.mamba2 import MAMBA2
from radistill.mixers.mamba2.geometry import Mamba2Geometry
from radistill.models.anatomy import anatomy_of
from radistill.models.architectures import ARCHITECTURES
from radistill.models.features import blocking_features
from radistill.models.loading import Model

_CARRIED = (*CARRIED, "intermediate_size", "rope_parameters")
_LONGROPE = (
    "A text is rotated by its length (longrope): one way up to {0[original_max_position_embeddings]} tokens, another "
    "beyond. For Phi-3, transformers reads a text again when its generation passes that length; for this architecture "
    "it does not, so keep a prompt and its response on one side."
)
_EXPERTS = ".block_sparse_moe."


class GraniteHybridSettings(TargetSettings):
    """Geometry of the new Mamba-2 blocks. A field that is left out follows the source."""

    kind: Literal["granite-hybrid"] = "granite-hybrid"
    groups: Count | Literal["heads"] | None = Field(
        None, description="B/C groups, or 'heads' for one per attention head (for init transfer); default 1"
    )
    state: Count | None = Field(None, description="state size per channel; default the attention's head size")
    expand: Count | None = Field(
        None, description="inner width over model width; the heads scale, their size stays the attention's; default 1"
    )
    conv_kernel: Count | None = Field(None, description="taps of the causal convolution; default 4")
    chunk_size: Count | None = Field(
        None, description="chunk length of the scan, which changes speed but not the function; default 256"
    )


class GraniteHybrid(Hybrid):
    """See `Target` for what each member promises."""

    settings = GraniteHybridSettings
    model_types = ("granitemoehybrid",)
    mixers: ClassVar[tuple[Mixer, ...]] = (MAMBA2,)
    block = "mamba"
    gguf = FORMAT

    def check(self, config: PreTrainedConfig) -> list[str]:
        """Features of the source that the architecture cannot hold, by name. It has Granite's multipliers, and holds
        a model of its own kind as it is, experts included."""
        config = config.get_text_config()
        if config.model_type in self.model_types:
            return []
        found = blocking_features(config)
        if config.model_type in ARCHITECTURES:
            anatomy = anatomy_of(config)
            share = anatomy.hidden_size / anatomy.num_heads
            if anatomy.head_dim != share:
                found.append(
                    f"head size {anatomy.head_dim} does not equal hidden_size / num_attention_heads = {share:g}"
                )
        return found

    def geometry(self, config: PreTrainedConfig, settings: TargetSettings) -> Mamba2Geometry:
        """Shape of the new blocks. A source that has SSM layers dictates it: the architecture knows only one."""
        assert isinstance(settings, GraniteHybridSettings)
        heads = config.num_attention_heads
        if _has_ssm(config):
            asked = {name: getattr(settings, name) for name in ("groups", "state", "expand", "conv_kernel")}
            asked["groups"] = heads if settings.groups == "heads" else settings.groups
            return dictated(Mamba2Geometry.of(config), asked, "SSM layers")
        head_dim = config.hidden_size // heads
        expand = settings.expand or 1
        groups = heads * expand if settings.groups == "heads" else settings.groups or 1
        if heads * expand % groups:
            raise RadistillError(
                f"target.groups is {groups}, which does not divide the {heads * expand} SSM heads; take 1, 'heads' or "
                "a divisor"
            )
        state, conv_kernel = settings.state or head_dim, settings.conv_kernel or 4
        return Mamba2Geometry(heads * expand, head_dim, groups, state, expand, conv_kernel)

    def build(
        self, model: Model, replace: Sequence[int], settings: TargetSettings, *, share: bool = False
    ) -> PreTrainedModel:
        """Build the student; its new blocks hold NaN until an initialisation fills them."""
        config = self.student_config(model.network.config, replace, settings)
        biases = ("self_attn.q_proj.bias", "self_attn.qkv_proj.bias")
        config.attention_bias = any(name.endswith(biases) for name in model.network.state_dict())
        return self.assembled(GraniteMoeHybridForCausalLM, config, model, replace, _source_names, share=share)

    def student_config(
        self, config: PreTrainedConfig, replace: Sequence[int], settings: TargetSettings
    ) -> PreTrainedConfig:
        """Config of the student, given the source's, the layers that are replaced, and the settings."""
        assert isinstance(settings, GraniteHybridSettings)
        student = super().student_config(config, replace, settings)
        student.mamba_chunk_size = settings.chunk_size or student.mamba_chunk_size
        return student

    def new_config(self, config: PreTrainedConfig, fields: dict[str, Any]) -> PreTrainedConfig:
        """Config of a student whose source is of another architecture; `fields` are layers and blocks."""
        carried: dict[str, Any] = {name: copy.deepcopy(getattr(config, name)) for name in _CARRIED}
        # Granite's own multipliers where the source has them; otherwise those that make it Llama.
        llama = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0}
        llama["attention_multiplier"] = (config.hidden_size // config.num_attention_heads) ** -0.5
        carried |= {name: getattr(config, name, value) for name, value in llama.items()}
        return GraniteMoeHybridConfig(
            **carried,
            **fields,
            mamba_chunk_size=256,
            shared_intermediate_size=config.intermediate_size,
            num_local_experts=0,
            # Zero as in IBM's dense checkpoints: llama.cpp's converter takes any other value for a mixture of experts.
            num_experts_per_tok=0,
            position_embedding_type="rope",
        )

    def weight_shapes(self, config: PreTrainedConfig) -> dict[str, list[int]]:
        """Experts have other names in memory than in a file, and those in memory differ by version of transformers."""
        shapes = {name: shape for name, shape in super().weight_shapes(config).items() if _EXPERTS not in name}
        experts, inner, width = config.num_local_experts, config.intermediate_size, config.hidden_size
        for layer in range(config.num_hidden_layers if experts else 0):
            prefix = f"model.layers.{layer}{_EXPERTS}"
            shapes[f"{prefix}input_linear.weight"] = [experts, 2 * inner, width]
            shapes[f"{prefix}output_linear.weight"] = [experts, width, inner]
            shapes[f"{prefix}router.layer.weight"] = [experts, width]
        return shapes

    def remarks(self, config: PreTrainedConfig) -> list[str]:
        """Which versions of transformers load it, and what vLLM has."""
        groups = config.mamba_n_groups
        only = f", but with {groups} groups it computes the same function only from 5.23 on" if groups > 1 else ""
        rope = config.rope_parameters or {}
        longrope = [] if rope.get("rope_type") != "longrope" else [_LONGROPE.format(rope)]
        return [
            f"transformers 5.17 and newer load it{only}.",
            "vLLM has a class for this architecture: `vllm serve FOLDER` (run by hand, on a CPU).",
            *longrope,
        ]


def _source_names(name: str) -> tuple[str, ...]:
    """Parameters of a Llama-like source that, joined along the first dimension, are the student's parameter `name`."""
    if name.endswith("shared_mlp.input_linear.weight"):
        prefix = name.removesuffix("shared_mlp.input_linear.weight")
        return f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight"
    return (name.replace("shared_mlp.output_linear.", "mlp.down_proj."),)


def _has_ssm(config: PreTrainedConfig) -> bool:
    return isinstance(config, GraniteMoeHybridConfig) and LINEAR_LAYER in (config.layer_types or ())
