"""What stands in the way of holding a model in the granite-hybrid target (`GraniteMoeHybridForCausalLM`).

The target computes a Llama block: RMS norm before attention and before a gated SiLU MLP, rotary embedding over the
whole head, full causal attention, optional biases in the attention. It has Granite's multipliers, so Granite fits
too. Rotary scaling of any type fits, because transformers computes it from the config in one place for all.
"""

from transformers import PreTrainedConfig

from radistill.models.anatomy import ARCHITECTURES, anatomy_of

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVATIONS = ("hidden_act", "hidden_activation")
_SOFT_CAPS = {"attn_logit_softcapping": "attention", "final_logit_softcapping": "logit"}
_SILU = {"silu", "swish"}


def blocking_features(config: PreTrainedConfig) -> list[str]:
    """Features of a model that the granite-hybrid target cannot hold, each with the config field and its value.

    Empty if nothing stands in the way; a `granitemoehybrid` model, experts included, holds itself.
    """
    config = config.get_text_config()
    kind = config.model_type
    if kind not in ARCHITECTURES:
        return [f"unknown architecture (model_type={kind!r}; known are {', '.join(ARCHITECTURES)})"]
    if kind == "granitemoehybrid":
        return []
    return [
        *(f"{peculiarity} ({kind})" for peculiarity in ARCHITECTURES[kind].peculiarities),
        *_attention(config),
        *_rotary(config),
        *_mlp(config),
    ]


def _attention(config: PreTrainedConfig) -> list[str]:
    anatomy = anatomy_of(config)
    found = []
    if anatomy.sliding_window is not None:
        found.append(f"sliding-window attention (sliding_window={anatomy.sliding_window})")
    share = anatomy.hidden_size / anatomy.num_heads
    if anatomy.head_dim != share:
        found.append(f"head size {anatomy.head_dim} does not equal hidden_size / num_attention_heads = {share:g}")
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


def _mlp(config: PreTrainedConfig) -> list[str]:
    found = []
    experts = [f"{field}={getattr(config, field)}" for field in _EXPERTS if getattr(config, field, None)]
    if experts:  # some configs have one number under two names
        found.append(f"mixture of experts ({experts[0]})")
    if width := getattr(config, "hidden_size_per_layer_input", None):
        found.append(f"embeddings for each layer (hidden_size_per_layer_input={width})")
    if getattr(config, "mlp_bias", False):
        found.append("MLP bias (mlp_bias=True)")
    for field in _ACTIVATIONS:
        activation = getattr(config, field, None)
        if activation is not None and activation not in _SILU:
            found.append(f"activation {activation} ({field}; only silu)")
    return found
