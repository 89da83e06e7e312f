"""What a model computes differently from Llama, by name: what a target must have a place for, or refuse.

A Llama block is: RMS norm before attention and before a gated SiLU MLP, rotary embedding over the whole head, full
causal attention, optional biases in the attention. Rotary scaling of any type is no difference, because transformers
computes it from the config in one place for all.
"""

from collections.abc import Collection

from transformers import PreTrainedConfig

from radistill.models.anatomy import anatomy_of
from radistill.models.architectures import ARCHITECTURES

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVATIONS = ("hidden_act", "hidden_activation")
_SOFT_CAPS = {"attn_logit_softcapping": "attention", "final_logit_softcapping": "logit"}
_SILU = {"silu", "swish"}


MIXTURE = "mixture of experts"


def blocking_features(config: PreTrainedConfig, held: Collection[str] = ()) -> list[str]:
    """What a model computes differently from Llama, each with the config field and its value.

    Args:
        config: of the model.
        held: peculiarities of the table in `models.architectures`, or `MIXTURE`, that the target has a place for.
    """
    config = config.get_text_config()
    kind = config.model_type
    if kind not in ARCHITECTURES:
        return [f"unknown architecture (model_type={kind!r}; known are {', '.join(ARCHITECTURES)})"]
    return [
        *(f"{peculiarity} ({kind})" for peculiarity in ARCHITECTURES[kind].peculiarities if peculiarity not in held),
        *_attention(config),
        *_rotary(config),
        *_mlp(config, MIXTURE in held),
    ]


def _attention(config: PreTrainedConfig) -> list[str]:
    anatomy = anatomy_of(config)
    found = []
    if anatomy.sliding_window is not None:
        found.append(f"sliding-window attention (sliding_window={anatomy.sliding_window})")
    if shared := getattr(config, "num_kv_shared_layers", None):
        found.append(f"keys shared between layers (num_kv_shared_layers={shared})")
    for field, what in _SOFT_CAPS.items():
        cap = getattr(config, field, None)
        if cap is not None:
            found.append(f"{what} soft-capping ({field}={cap:g})")
    return found


def _rotary(config: PreTrainedConfig) -> list[str]:
    found = []
    parameters = getattr(config, "rope_parameters", None) or {}
    factor = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if factor is not None and factor != 1:
        found.append(f"partial rotary embedding (partial_rotary_factor={factor:g})")
    with_rotary = getattr(config, "no_rope_layers", None)  # despite its name, 1 = the layer has rotary embedding
    if with_rotary is not None and not all(with_rotary):
        without = [layer for layer, rotary in enumerate(with_rotary) if not rotary]
        found.append(f"layers without rotary embedding (no_rope_layers, at {', '.join(map(str, without))})")
    return found


def _mlp(config: PreTrainedConfig, mixture: bool) -> list[str]:
    found = []
    experts = [f"{field}={getattr(config, field)}" for field in _EXPERTS if getattr(config, field, None)]
    if experts and not mixture:  # some configs have one number under two names
        found.append(f"{MIXTURE} ({experts[0]})")
    if width := getattr(config, "hidden_size_per_layer_input", None):
        found.append(f"embeddings for each layer (hidden_size_per_layer_input={width})")
    if getattr(config, "mlp_bias", False):
        found.append("MLP bias (mlp_bias=True)")
    for field in _ACTIVATIONS:
        activation = getattr(config, field, None)
        if activation is not None and activation not in _SILU:
            found.append(f"activation {activation} ({field}; only silu)")
    return found
