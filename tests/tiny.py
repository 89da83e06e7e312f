"""Tiny models with random weights, one of each family, and a byte-level tokenizer: built in milliseconds, no download.

Matrices are drawn so that activations keep their size, and norms, biases and multipliers are not at their neutral
values: a copy that forgets one of them changes the logits. Widths of MLPs are multiples of 32: an activation function
may round the rest of a row, beyond a whole number of vector registers, in another way.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from radistill.models.anatomy import anatomy_of
from radistill.models.checkpoint import quiet
from radistill.models.loading import Model
from radistill.models.pictures import Reader

PAD, BOS, START, END = "<|endoftext|>", "<|bos|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, BOS, START, END)
VOCAB_SIZE = 256 + len(SPECIAL)
END_ID = 256 + SPECIAL.index(END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 259,
}
_MULTIPLIERS = {
    "embedding_multiplier": 1.5,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.3,
}
_MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_head": 8,
    "mamba_expand": 1,
    "mamba_chunk_size": 16,
}
_HYBRID = {**_MULTIPLIERS, "position_embedding_type": "rope", "shared_intermediate_size": 64, **_MAMBA2}
_EXPERT_SIZES = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
_DELTA = {
    "head_dim": 8,
    "full_attention_interval": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

_QWEN3_MOE = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.0, 2.5, 4.0, 8.0],
}

# Families that the granite-hybrid target can hold: (model type, settings).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True}),
    "smollm2": (
        "llama",
        {"tie_word_embeddings": True, "num_attention_heads": 8, "rms_norm_eps": 9.999999747378752e-06},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "llama-wide-heads": ("llama", {"head_dim": 8, "num_key_value_heads": 4}),
    "ministral": ("ministral", {"head_dim": 8, "sliding_window": 512}),
    "phi3": ("phi3", {"num_key_value_heads": 2, "resid_pdrop": 0.1, "embd_pdrop": 0.1}),
    "phi3-longrope": ("phi3", {"original_max_position_embeddings": 64, "rope_parameters": _LONGROPE}),
    "granite": ("granite", {**_MULTIPLIERS, "tie_word_embeddings": True}),
    "granitemoehybrid": ("granitemoehybrid", {**_HYBRID, "num_local_experts": 0}),
    "granitemoehybrid-experts": ("granitemoehybrid", {**_HYBRID, "num_local_experts": 4, "num_experts_per_tok": 2}),
}

# Families that it cannot hold.
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-head-size": ("llama", {"head_dim": 10}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True}),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "mistral-window": ("mistral", {"sliding_window": 64}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
    "gemma2": ("gemma2", {"head_dim": 8, "sliding_window": 64}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 64}),
    "phi3-window": ("phi3", {"sliding_window": 64}),
    "phi3-partial": ("phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    "gemma3_text": ("gemma3_text", {"head_dim": 8, "sliding_window": 64, "sliding_window_pattern": 2}),
    "gemma4_text": (
        "gemma4_text",
        {
            "head_dim": 8,
            "global_head_dim": 16,
            "sliding_window": 64,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB_SIZE,
        },
    ),
    "gemma4_text-experts": (
        "gemma4_text",
        {
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 64,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
        },
    ),
    "cohere2": ("cohere2", {"sliding_window": 64, "sliding_window_pattern": 2, "logit_scale": 0.7}),
    "glm": ("glm", {"head_dim": 8}),
    "glm4": ("glm4", {"head_dim": 8}),
    "ministral-window": ("ministral", {"head_dim": 8, "sliding_window": 64}),
    "ministral3": ("ministral3", {"head_dim": 8}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3-tied": ("qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen3-biased": ("qwen3", {"head_dim": 8, "attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", {**_QWEN3_MOE, "norm_topk_prob": True}),
    "qwen3_moe-shares": ("qwen3_moe", {**_QWEN3_MOE, "norm_topk_prob": False}),
    "smollm3": ("smollm3", {}),
    "bamba": ("bamba", _MAMBA2),
    "falcon_h1": (
        "falcon_h1",
        {
            **_MAMBA2,
            "mamba_d_ssm": 32,
            "attention_in_multiplier": 0.8,
            "attention_out_multiplier": 0.7,
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 1.3,
            "embedding_multiplier": 1.5,
        },
    ),
    "jamba": (
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 0,
            "mamba_expand": 1,
            "mamba_d_state": 8,
        },
    ),
    "kimi_linear": (
        "kimi_linear",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
        },
    ),
    "lfm2": ("lfm2", {"block_auto_adjust_ff_dim": False}),
    "nemotron_h": (
        "nemotron_h",
        {
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "ssm_state_size": 8,
            "expand": 1,
            "chunk_size": 16,
            "n_routed_experts": 4,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
        },
    ),
    "olmo_hybrid": ("olmo_hybrid", {}),
    "qwen3_next": ("qwen3_next", {**_DELTA, "num_experts": 4, "num_experts_per_tok": 2, **_EXPERT_SIZES}),
    "qwen3_5_text": ("qwen3_5_text", _DELTA),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", {**_DELTA, "num_experts": 4, "num_experts_per_tok": 2, **_EXPERT_SIZES}),
    "zamba2": (
        "zamba2",
        {
            "tie_word_embeddings": True,  # the blocks that its layers share are tied by the same switch
            "num_mem_blocks": 1,
            "n_mamba_heads": 4,
            "mamba_expand": 1,
            "mamba_d_state": 8,
            "use_mem_rope": True,
            "adapter_rank": 4,
        },
    ),
}

# The first family of each architecture.
ARCHITECTURES = list({kind: family for family, (kind, _) in reversed((FAMILIES | REFUSED).items())}.values())[::-1]


USUAL = ("student", "llama", "qwen3", "granitemoehybrid", "qwen3_5_text", "falcon_h1")


def usual_first(families: Iterable[str]) -> list[Any]:
    """Families for a test's parameters; those that few people bring are tried in the slow tier."""
    return [pytest.param(family, marks=[pytest.mark.slow] * (family not in USUAL)) for family in families]


# Those of them that the qwen3.5 target can hold.
QWEN35 = ("qwen3", "qwen3-tied", "qwen3-biased", "qwen3_moe", "qwen3_5_text", "qwen3_5_moe_text")


def build(family: str, layers: int = 4, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A random network of a family, in evaluation mode; `settings` override fields of its config.

    In a hybrid, the layers with an odd index have attention and the others a state-space block. In Falcon-H1 every
    layer has both; in Zamba2 those with an odd index do. In Nemotron-H an MLP, which is a layer too, follows each.
    """
    key = repr((family, layers, seed, sorted(settings.items())))
    if key not in _BUILT:
        _BUILT[key] = _build(family, layers, seed, settings)
    return copy.deepcopy(_BUILT[key])


_BUILT: dict[str, PreTrainedModel] = {}  # a copy is made in a third of the time


def _build(family: str, layers: int, seed: int, settings: dict[str, Any]) -> PreTrainedModel:
    model_type, fields = (FAMILIES | REFUSED)[family]
    fields = copy.deepcopy({**_COMMON, **fields, "num_hidden_layers": layers})  # a config writes into what it is given
    if model_type in ("granitemoehybrid", "kimi_linear", "olmo_hybrid", "lfm2"):
        other = "conv" if model_type == "lfm2" else "linear_attention"
        fields["layer_types"] = ["full_attention" if layer % 2 else other for layer in range(layers)]
    if model_type == "nemotron_h":
        kinds = ("linear_attention", "mlp", "full_attention", "moe")
        fields["layer_types"] = [kinds[layer % 4] for layer in range(layers)]
    if model_type == "gemma4_text":
        fields["layer_types"] = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
        if "num_kv_shared_layers" in fields:
            fields["num_kv_shared_layers"] = min(2, layers - 2)  # one layer of each kind has keys to lend
    if model_type == "bamba":
        fields["attn_layer_indices"] = [layer for layer in range(layers) if layer % 2]
    if model_type == "zamba2":
        fields["layers_block_type"] = ["hybrid" if layer % 2 else "linear_attention" for layer in range(layers)]
    config = CONFIG_MAPPING[model_type](**{**fields, **settings})
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(network, torch.Generator().manual_seed(seed))
    return network.eval()


@torch.no_grad()
def _randomise(network: nn.Module, generator: torch.Generator) -> None:
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("A_log"):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2)
        elif name.endswith((".D", "dt_bias")) or "norm" in name:
            parameter.copy_(1 + 0.2 * noise)
        elif "embed_tokens" in name:
            parameter.copy_(noise)
        elif parameter.dim() == 1:
            parameter.copy_(0.2 * noise)
        else:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, four special tokens, a ChatML template: it encodes every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=END, chat_template=CHAT_TEMPLATE
    )


def model(family: str, layers: int = 4, seed: int = 0, **settings: Any) -> Model:
    """`build`, with the tokenizer, as radistill's `Model`."""
    network = build(family, layers, seed, **settings)
    return Model(network=network, tokenizer=tokenizer(), anatomy=anatomy_of(network), source=f"tiny {family}")


@torch.no_grad()
def cousin(of: Model, noise: float = 0.1, vocab_size: int | None = None, seed: int = 1) -> Model:
    """A model that often agrees with `of`: its weights with noise, and an embedding that is cut or padded.

    Tokens of the padding are as likely as others.
    """
    network = copy.deepcopy(of.network)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter += noise * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    rows = of.anatomy.vocab_size
    if vocab_size is not None:
        with quiet():
            network.resize_token_embeddings(vocab_size, mean_resizing=False)
        embedding: Any = network.get_input_embeddings()
        head: Any = network.get_output_embeddings()
        for matrix, size in ((embedding.weight, 1), (head.weight, 1.2 * head.weight.shape[1] ** -0.5)):
            matrix[rows:] = size * torch.randn(matrix[rows:].shape, generator=generator)
    return Model(network.eval(), of.tokenizer, anatomy_of(network), f"cousin of {of.source}")


def save(family: str, folder: Path, layers: int = 4, seed: int = 0, **settings: Any) -> Path:
    """`build`, saved by transformers alone as a model folder."""
    with quiet():
        build(family, layers, seed, **settings).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def save_with_vision(folder: Path) -> Path:
    """`save` of a Qwen3.5 that reads images too, as the published ones do; transformers' stock class."""
    text = copy.deepcopy({**_COMMON, **_DELTA, "num_hidden_layers": 4})
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    network = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    )
    _randomise(network, torch.Generator().manual_seed(0))
    with quiet():
        network.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


# Models that read images: where their language model is not a family of those above, its own settings.
_PICTURE_TOKENS = {
    "idefics3": ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
    "qwen2_5_vl": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"),
    "gemma3": ("<start_of_image>", "<image_soft_token>", "<end_of_image>", "<unused>"),
}
SEEING = tuple(_PICTURE_TOKENS)
SEEING_FIRST = [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "idefics3")) for kind in SEEING]
_PLACE = {
    "idefics3": "<image>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
}
_VISION: dict[str, dict[str, Any]] = {
    "idefics3": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 32,
    },
    "gemma3": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    },
}
_TEXT: dict[str, dict[str, Any]] = {
    "idefics3": {"model_type": "llama"},
    "qwen2_5_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    "gemma3": {"head_dim": 8, "sliding_window": 16, "sliding_window_pattern": 2},
}


def picture_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`tokenizer` with the special tokens that stand for images, and a template that takes content in parts."""
    found = tokenizer()
    start, image, end, _ = _PICTURE_TOKENS[kind]
    names = {"boi_token": start, "image_token": image, "eoi_token": end} if kind == "gemma3" else {}
    found.add_special_tokens({"additional_special_tokens": list(_PICTURE_TOKENS[kind])})
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '" + _PLACE[kind] + "' }}{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found._tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        chat_template=template,
        extra_special_tokens=names or list(_PICTURE_TOKENS[kind]),
    )


class StillProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's without videos, whose part needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


def processor(kind: str) -> Any:
    """transformers' processor of a model that reads images; an image takes 4 tokens, or more."""
    own = picture_tokenizer(kind)
    if kind == "idefics3":
        images: Any = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
        return Idefics3Processor(images, own, image_seq_len=4, chat_template=own.chat_template)
    if kind == "gemma3":
        images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
        return Gemma3Processor(images, own, chat_template=own.chat_template, image_seq_length=4)
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024})
    return StillProcessor(images, own, None, chat_template=own.chat_template)


def seeing(kind: str, layers: int = 3, seed: int = 0, **text: Any) -> Model:
    """A random model that reads images; `text` overrides fields of its language model's config."""
    reads = processor(kind)
    image = reads.tokenizer.convert_tokens_to_ids(_PICTURE_TOKENS[kind][1])
    settings = {**_COMMON, "vocab_size": len(reads.tokenizer), "num_hidden_layers": layers, **_TEXT[kind], **text}
    special = {"image_token_id": image, "image_token_index": image, "video_token_id": VOCAB_SIZE + 3}
    sizes = {"scale_factor": 2} if kind == "idefics3" else {"mm_tokens_per_image": 4} if kind == "gemma3" else {}
    config = CONFIG_MAPPING[kind](
        text_config=copy.deepcopy(settings),
        vision_config=copy.deepcopy(_VISION[kind]),
        tie_word_embeddings=False,
        **special,
        **sizes,
    )
    network = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    _randomise(network, torch.Generator().manual_seed(seed))
    with torch.no_grad():  # which a response does not have
        network.get_output_embeddings().weight[image] = 0
    network.generation_config.eos_token_id = END_ID
    return Model(network.eval(), reads.tokenizer, anatomy_of(network), f"tiny {kind}", reader=Reader(reads, network))
