"""A model type that `models.architectures` does not know: what its config tells, and what an entry there needs."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from radistill.errors import RadistillError
from radistill.files import read_json
from radistill.models.loading import load_config, skeleton
from radistill.models.sources import gguf_file, locate

# Config fields by what they say, the usual name first.
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "n_head_kv", "num_kv_heads"),
    "head_dim": ("head_dim", "head_size"),
    "vocab_size": ("vocab_size",),
    "max_context": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
}
# Where a field's name has one of these in it, some layer may cache something else than a key and a value a head.
_OTHER_CACHES = (
    "lora_rank",
    "mamba",
    "ssm",
    "state",
    "linear_",
    "conv",
    "rwkv",
    "recurrent",
    "shared_layers",
    "cross_",
)
_FULL_CACHES = {"attention", "full_attention", "sliding_attention"}


def config_of_any_type(source: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """As `loading.load_config`, also for a model type that transformers does not know: its fields as they stand.

    Raises:
        RadistillError: as `loading.load_config`, for a known type or a model that is not there.
    """
    try:
        return load_config(source, trust_remote_code)
    except RadistillError:
        if gguf_file(source) is not None:
            raise
        path = locate(source, weights=False) / "config.json"
        fields: Any = read_json(path, finite=False) if path.is_file() else None
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        if not isinstance(kind, str) or kind in CONFIG_MAPPING:
            raise
        return _plain(fields)


def describe_unknown(config: PreTrainedConfig, source: str | Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """What can be read off a config, by the keys of `inspection.inspect`; None for what cannot.

    `parameters` has a total only. `entry` says what the table needs to know of the type.
    """
    network = None
    with suppress(RadistillError):  # a type that transformers does not know, or no language model
        network = skeleton(config, source, trust_remote_code)
    config = config.get_text_config()
    found: dict[str, Any] = {key: _number(config, names) for key, names in _NAMES.items()}
    if found["heads"] is not None:
        found["kv_heads"] = found["kv_heads"] or found["heads"]
        if found["hidden_size"] is not None and found["head_dim"] is None:
            found["head_dim"] = found["hidden_size"] // found["heads"]
    tied, dtype = getattr(config, "tie_word_embeddings", None), getattr(config, "dtype", None)
    total = None if network is None else sum(parameter.numel() for parameter in network.parameters())
    return {
        "source": str(source),
        "model_type": config.model_type,
        **found,
        "tied_embeddings": tied if isinstance(tied, bool) else None,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "parameters": None if total is None else {"total": total},
        "kv_bytes_per_token": _kv_bytes(config, found),
        "entry": _entry(config.model_type, network, found["layers"]),
    }


def _plain(fields: dict[str, Any]) -> PreTrainedConfig:
    """The fields of a config, or of its text model's, as attributes, without a class that knows what they mean."""
    fields = {**fields, **text} if isinstance(text := fields.get("text_config"), dict) else fields
    config = PreTrainedConfig()
    for name, value in fields.items():
        # A sub-config stays a mapping, which transformers would take for a config.
        if isinstance(name, str) and name.isidentifier() and not isinstance(value, dict):
            vars(config)[name] = value
    # What the base class presumes, the file has not said.
    vars(config)["tie_word_embeddings"] = fields.get("tie_word_embeddings")
    vars(config)["dtype"] = fields.get("dtype", fields.get("torch_dtype"))
    return config


def _number(config: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _kv_bytes(config: PreTrainedConfig, found: dict[str, Any]) -> int | None:
    """Bytes a token in bfloat16, where every layer has a key and a value for each key-value head, and nothing else."""
    if type(config) is PreTrainedConfig:  # nobody here knows what its layers do
        return None
    numbers = [found[key] for key in ("layers", "kv_heads", "head_dim")]
    other = any(part in name and value for name, value in vars(config).items() for part in _OTHER_CACHES)
    kinds = set(getattr(config, "layer_types", None) or ())
    if None in numbers or other or not kinds <= _FULL_CACHES or getattr(config, "is_encoder_decoder", False):
        return None
    layers, heads, size = numbers
    return int(2 * layers * heads * size * 2)


def _entry(kind: str, network: nn.Module | None, layers: int | None) -> str:
    """What an entry of the table says, with the names that this model has, where they can be seen."""
    where, parts = "model.layers", ["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"]
    for name, module in network.named_modules() if network is not None else ():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            where, parts = name, list(dict(module[0].named_children()))
            break
    attention = next((part for part in parts if "att" in part and "norm" not in part), "…")
    mlp = next((part for part in parts if ("mlp" in part or "feed" in part) and "norm" not in part), "…")
    seen = (
        f"transformers {transformers.__version__} does not know the type at all, so a newer one comes first. In Llama"
    )
    if network is not None:
        seen = "Here"
    return (
        f"The model type {kind} is not in the table ARCHITECTURES of src/radistill/models/architectures.py, so this "
        "model cannot be diagnosed or converted. An entry names the parts of its layers: the path from the network to "
        "the list of layers, and from a layer to its attention, to its MLP and, in a hybrid, to its state-space block "
        f"(ssm). {seen} the layers are at {where}, and a layer has {', '.join(parts)}. For example:\n\n"
        f'    "{kind}": Architecture(layers="{where}", attention="{attention}", mlp=("{mlp}",)),\n\n'
        'Where the model applies config.sliding_window, window="all" or "some" is added. A tiny model of the type goes '
        "into tests/tiny.py, and the tests run over it. docs/models.md says more."
    )
