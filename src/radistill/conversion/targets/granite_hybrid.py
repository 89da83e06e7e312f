"""The target `granite-hybrid`: transformers' stock GraniteMoeHybridForCausalLM, dense, with rotary positions.

A Llama-like decoder is the special case of this architecture that has attention in every layer, no experts and all
multipliers 1, so its weights move over unchanged and the student needs no model code of ours. `docs/conversion.md` has
the table of config fields.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.granitemoehybrid import modeling_granitemoehybrid

from radistill.conversion.assembly import assemble
from radistill.conversion.geometry import Mamba2Geometry
from radistill.errors import RadistillError
from radistill.models.features import blocking_features
from radistill.models.loading import Model

# The names that every transformers since 5.17 uses inside; on loading it also takes IBM's "mamba" and "attention".
SSM_LAYER, ATTENTION_LAYER = "linear_attention", "full_attention"

# Fields that mean the same in the source's config and in the student's.
_CARRIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_dropout",
    "rope_parameters",
)
Count = Annotated[int, Field(strict=True, ge=1)]


class GraniteHybridSettings(BaseModel):
    """Geometry of the new Mamba-2 blocks. A field that is left out follows the source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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


class GraniteHybrid:
    """See `Target` for what each method promises."""

    settings = GraniteHybridSettings

    def check(self, config: PreTrainedConfig) -> list[str]:
        """Features of the source that the architecture cannot hold, by name."""
        return blocking_features(config)

    def geometry(self, config: PreTrainedConfig, settings: GraniteHybridSettings) -> Mamba2Geometry:
        """Shape of the new blocks. A source that has SSM layers dictates it: the architecture knows only one."""
        heads = config.num_attention_heads
        if _has_ssm(config):
            own = Mamba2Geometry(
                heads=config.mamba_n_heads,
                head_dim=config.mamba_d_head,
                groups=config.mamba_n_groups,
                state=config.mamba_d_state,
                expand=config.mamba_expand,
                conv_kernel=config.mamba_d_conv,
                conv_bias=config.mamba_conv_bias,
                proj_bias=config.mamba_proj_bias,
            )
            for field in ("groups", "state", "expand", "conv_kernel"):
                asked = getattr(settings, field)
                asked = heads if asked == "heads" else asked
                if asked is not None and asked != getattr(own, field):
                    raise RadistillError(
                        f"target.{field} is {asked}, but this model's SSM layers have {getattr(own, field)}, and new "
                        "ones must be like them; leave the field out"
                    )
            geometry = own
        else:
            head_dim = config.hidden_size // heads
            expand = settings.expand or 1
            groups = heads * expand if settings.groups == "heads" else settings.groups or 1
            if heads * expand % groups:
                raise RadistillError(
                    f"target.groups is {groups}, which does not divide the {heads * expand} SSM heads; take 1, 'heads' "
                    "or a divisor"
                )
            geometry = Mamba2Geometry(
                heads=heads * expand,
                head_dim=head_dim,
                groups=groups,
                state=settings.state or head_dim,
                expand=expand,
                conv_kernel=settings.conv_kernel or 4,
            )
        if geometry.groups > 1 and not _norm_is_grouped():
            raise RadistillError(
                f"target.groups is {geometry.groups}, but this transformers normalises over all groups at once, unlike "
                "Mamba-2, vLLM and newer releases; upgrade to transformers 5.23 or take groups: 1"
            )
        return geometry

    def build(
        self, model: Model, replace: Sequence[int], settings: GraniteHybridSettings, *, share: bool = False
    ) -> PreTrainedModel:
        """Build the student; its new blocks hold NaN until an initialisation fills them."""
        network = model.network
        source = network.state_dict()
        biased = any(name.endswith("self_attn.q_proj.bias") for name in source)
        config = student_config(network.config, replace, settings, attention_bias=biased)
        config.dtype = network.dtype
        config._attn_implementation = network.config._attn_implementation
        return assemble(
            GraniteMoeHybridForCausalLM,
            config,
            source,
            _source_names,
            new=tuple(f"model.layers.{layer}.mamba." for layer in replace),
            dropped=tuple(f"model.layers.{layer}.self_attn." for layer in replace),
            share=share,
        )


def student_config(
    config: PreTrainedConfig, replace: Sequence[int], settings: GraniteHybridSettings, *, attention_bias: bool
) -> GraniteMoeHybridConfig:
    """Config of the student.

    Args:
        config: the source's.
        replace: layers whose attention is replaced.
        settings: geometry of the new blocks.
        attention_bias: whether the source's q, k and v projections have biases.
    """
    geometry = GraniteHybrid().geometry(config, settings)
    mamba: dict[str, Any] = {
        "mamba_n_heads": geometry.heads,
        "mamba_d_head": geometry.head_dim,
        "mamba_n_groups": geometry.groups,
        "mamba_d_state": geometry.state,
        "mamba_expand": geometry.expand,
        "mamba_d_conv": geometry.conv_kernel,
        "mamba_conv_bias": geometry.conv_bias,
        "mamba_proj_bias": geometry.proj_bias,
    }
    replaced = set(replace)
    if isinstance(config, GraniteMoeHybridConfig):
        student = copy.deepcopy(config)
        kinds = [SSM_LAYER if layer in replaced else kind for layer, kind in enumerate(config.layer_types or ())]
        for name, value in {**mamba, "layer_types": kinds}.items():
            setattr(student, name, value)
        student.mamba_chunk_size = settings.chunk_size or config.mamba_chunk_size
        return student

    carried: dict[str, Any] = {name: copy.deepcopy(getattr(config, name)) for name in _CARRIED}
    head_dim = config.hidden_size // config.num_attention_heads
    # Granite's own multipliers where the source has them.
    carried |= {name: getattr(config, name, value) for name, value in _multipliers(head_dim).items()}
    return GraniteMoeHybridConfig(
        **carried,
        **mamba,
        mamba_chunk_size=settings.chunk_size or 256,
        layer_types=[SSM_LAYER if layer in replaced else ATTENTION_LAYER for layer in range(config.num_hidden_layers)],
        shared_intermediate_size=config.intermediate_size,
        num_local_experts=0,
        # Zero as in IBM's dense checkpoints: llama.cpp's converter takes any other value for a mixture of experts.
        num_experts_per_tok=0,
        position_embedding_type="rope",
        attention_bias=attention_bias,
    )


def _multipliers(head_dim: int) -> dict[str, float]:
    """The values of Granite's multipliers that make it Llama."""
    return {
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "attention_multiplier": head_dim**-0.5,
    }


def _source_names(name: str) -> tuple[str, ...]:
    """Parameters of a Llama-like source that, joined along the first dimension, are the student's parameter `name`."""
    if name.endswith("shared_mlp.input_linear.weight"):
        prefix = name.removesuffix("shared_mlp.input_linear.weight")
        return f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight"
    return (name.replace("shared_mlp.output_linear.", "mlp.down_proj."),)


def _has_ssm(config: PreTrainedConfig) -> bool:
    return isinstance(config, GraniteMoeHybridConfig) and SSM_LAYER in (config.layer_types or ())


def _norm_is_grouped() -> bool:
    """Whether the gated norm works group by group, as Mamba-2 defines it. transformers before 5.23 ignores groups."""
    norm = modeling_granitemoehybrid.GraniteMoeHybridRMSNormGated
    return "group_size" in inspect.signature(norm.__init__).parameters
