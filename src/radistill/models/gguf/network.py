"""A GGUF file's network as a transformers config, and its tensors under transformers' names."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from radistill.errors import RadistillError
from radistill.models.gguf.account import Account
from radistill.models.gguf.file import Contents, Stored
from radistill.models.gguf.rotary import DIVISORS, rope_parameters

# Architectures that are read, by llama.cpp's name, which is transformers' too, and whether llama.cpp rotates pairs of
# neighbours in it, for which its converter reorders the rows of queries and keys.
_ROTATES_NEIGHBOURS = {"llama": True, "qwen2": False, "qwen3": False}

_ARCHITECTURES = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
_LAYER = re.compile(r"blk\.(\d+)\..+")


@dataclass(frozen=True)
class Weight:
    """One weight of the network: the tensor that holds it, and in how many heads its rows are to be put in order."""

    name: str
    stored: Stored
    heads: int | None

    def read(self) -> Tensor:
        """The weight as transformers has it, in float32."""
        tensor = self.stored.read(self.name)
        if self.heads is None:
            return tensor
        pairs = tensor.reshape(self.heads, -1, 2, *tensor.shape[1:])  # from neighbours to two halves side by side
        return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()


def read_architecture(account: Account) -> str:
    """The architecture, by llama.cpp's name.

    Raises:
        RadistillError: if it is none that is read.
    """
    arch = account.need("general.architecture", str)
    account.only("general.type", "model", because="only whole language models are read")
    if arch not in _ROTATES_NEIGHBOURS:
        raise RadistillError(
            f"{account.path}: the architecture {arch} is not read from a GGUF file (only "
            f"{', '.join(_ROTATES_NEIGHBOURS)}); take the model's safetensors folder"
        )
    return arch


def read_config(account: Account, contents: Contents, tokens: int) -> PreTrainedConfig:
    """The config by the keys of the architecture and by which tensors there are.

    Raises:
        RadistillError: naming the key or the architecture that is not read.
    """
    arch = read_architecture(account)
    context = account.need(f"{arch}.context_length", int)
    width, heads = account.need(f"{arch}.embedding_length", int), account.need(f"{arch}.attention.head_count", int)
    layers = account.need(f"{arch}.block_count", int)
    held = {found[1] for name in contents.tensors if (found := _LAYER.fullmatch(name))}
    if min(context, width, heads) < 1 or layers != len(held):
        raise RadistillError(
            f"{account.path}: {arch}.block_count is {layers} and there are tensors of {len(held)} layers, with "
            f"{heads} heads in a width of {width}; download or convert the file again"
        )
    head_size = account.take(f"{arch}.attention.key_length", width // heads)
    account.only(f"{arch}.attention.value_length", head_size, because=f"keys have {head_size} numbers per head")
    account.only(f"{arch}.attention.causal", True, because="only causal attention is read")
    account.only(f"{arch}.tensor_data_layout", "Meta AI original pth", because="only that layout is read")
    account.only(f"{arch}.vocab_size", tokens, because=f"the tokenizer has {tokens} tokens")
    for key in ("expert_count", "expert_used_count"):
        account.only(f"{arch}.{key}", 0, because="no mixture of experts is read from a GGUF file")
    window = account.take(f"{arch}.attention.sliding_window", 0)
    if 0 < window < context:
        raise RadistillError(f"{account.path}: {arch}.attention.sliding_window is {window}; no window is read")
    fields: dict[str, Any] = {
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": account.need(f"{arch}.feed_forward_length", int),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": account.take(f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": context,
        "rms_norm_eps": account.need(f"{arch}.attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in contents.tensors,
        "use_cache": True,
    }
    if arch != "qwen2":  # which always has biases of its own
        fields["attention_bias"] = "blk.0.attn_q.bias" in contents.tensors
    if arch == "llama":
        fields["mlp_bias"] = "blk.0.ffn_up.bias" in contents.tensors
    divisors = contents.tensors.get(DIVISORS) if arch == "llama" else None  # elsewhere llama.cpp takes none
    fields["rope_parameters"] = rope_parameters(
        account, arch, context, head_size, None if divisors is None else divisors.read(DIVISORS)
    )
    return CONFIG_MAPPING[arch](**fields, architectures=[f"{arch.capitalize()}ForCausalLM"], dtype="float32")


def find_weights(contents: Contents, config: PreTrainedConfig) -> dict[str, Weight]:
    """Every weight of the network by its name in transformers: none is missing, and no tensor is left over.

    Raises:
        RadistillError: naming the weight that is missing or has another shape, or the tensor that has no place.
    """
    path = contents.parts[0]
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
    names = get_tensor_name_map(_ARCHITECTURES[config.model_type], config.num_hidden_layers)
    targets = {names.get_name(name, (".weight", ".bias")): name for name in wanted}
    found = {}
    for name, stored in contents.tensors.items():
        if name == DIVISORS and config.model_type == "llama":
            continue
        target = targets.get(name)
        if target is None:
            raise RadistillError(
                f"{path}: the tensor {name} has no place in the architecture {config.model_type} as it is read here; "
                "take the model's safetensors folder"
            )
        if stored.shape != wanted[target]:
            raise RadistillError(
                f"{path}: {name} has shape {list(stored.shape)}, but the metadata ask for {list(wanted[target])}"
            )
        heads = None
        if _ROTATES_NEIGHBOURS[config.model_type]:
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
                target.split(".")[-2]
            )
        found[target] = Weight(name, stored, heads)
    if missing := sorted(wanted.keys() - found.keys()):
        raise RadistillError(f"{path}: the tensor of {missing[0]} is missing; download or convert the file again")
    return found
