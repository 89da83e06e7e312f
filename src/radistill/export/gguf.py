"""A model folder as one GGUF file for llama.cpp, in the form that the student's target says."""

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import MODEL_TENSOR, GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from radistill.console import progress
from radistill.conversion.targets import gguf_formats
from radistill.conversion.targets.plain_gguf import GGUFFormat
from radistill.errors import RadistillError
from radistill.export.gguf_tokenizer import read_vocabulary, write_vocabulary
from radistill.export.weights import find_weights, read_weight, shape_of
from radistill.files import atomic_file
from radistill.models.checkpoint import check_tokenizer, one_line, quiet, read_config

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# What `--dtype` may name, and the type of matrices then. Vectors, norms and the scan's parameters stay float32.
TYPES = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}


def write_gguf(
    folder: Path, path: Path, dtype: str | None = None, about: Mapping[str, str | list[int]] | None = None
) -> None:
    """Write the model in `folder` to the GGUF file `path`, in one step: there is no half-written file.

    Weights are read one by one, so that the memory needed is that of the largest.

    Args:
        folder: a transformers folder of a student.
        path: an existing file is replaced.
        dtype: of matrices, one of `TYPES`; the checkpoint's own if None.
        about: further metadata by its key: name, licence, lineage.

    Raises:
        RadistillError: if llama.cpp cannot hold the model or its tokenizer, or a weight is missing or not finite.
    """
    config = read_config(folder)
    layout = _layout(folder, config)
    architecture = gguf.MODEL_ARCH_NAMES[layout.architecture]
    if found := layout.obstacles(config):
        raise RadistillError(f"{folder}: llama.cpp's {architecture} cannot hold this model: {'; '.join(found)}")
    dtype = dtype or str(config.dtype or "float32").removeprefix("torch.")
    if dtype not in TYPES:
        raise RadistillError(f"dtype is {dtype!r}; for a GGUF it can be {', '.join(TYPES)}")
    weights = find_weights(folder, config)
    tokenizer = _tokenizer(folder)
    try:
        vocabulary = read_vocabulary(tokenizer, config.vocab_size, _eos_ids(folder, config))
    except RadistillError as error:
        raise RadistillError(f"{folder}: {error}") from None

    with atomic_file(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        try:
            writer.add_type("model")
            writer.add_file_type(LlamaFileType[f"{'ALL' if dtype == 'float32' else 'MOSTLY'}_{TYPES[dtype].name}"])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for key, value in (about or {}).items():
                if isinstance(value, str):
                    writer.add_string(key, value)
                else:
                    writer.add_array(key, value)
            layout.write_settings(writer, config)
            write_vocabulary(writer, vocabulary)
            _write_templates(writer, tokenizer.chat_template)
            _write_weights(writer, weights, config, layout, dtype)
        finally:
            writer.close()


def _layout(folder: Path, config: PreTrainedConfig) -> GGUFFormat:
    known = gguf_formats()
    if config.model_type not in known:
        raise RadistillError(
            f"{folder}: architecture {config.model_type} (a GGUF is written for {', '.join(known)} only)"
        )
    return known[config.model_type]


def _write_weights(
    writer: GGUFWriter, weights: dict[str, Path], config: PreTrainedConfig, layout: GGUFFormat, dtype: str
) -> None:
    """Announce every tensor by its shape, then write them in the same order."""
    if config.tie_word_embeddings and _HEAD in weights and not _has_own_head(weights):
        weights = {name: path for name, path in weights.items() if name != _HEAD}
    extra = layout.extra(config)
    for name, tensor in extra.items():
        writer.add_tensor_info(name, list(tensor.shape), np.dtype(np.float32), tensor.nbytes)
    for name, path in weights.items():
        for target, shape in layout.translate(name, shape_of(name, path), config).items():
            kind = storage_type(target, shape, TYPES[dtype], layout.float32)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            stored_bytes = shape.numel() // block * size
            writer.add_tensor_info(target, list(shape.shape), np.dtype(np.float32), stored_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in extra.values():
        writer.write_tensor_data(tensor.numpy())
    with progress("writing GGUF", total=len(weights), unit="weights") as advance:
        for name, path in weights.items():
            for target, tensor in layout.translate(name, read_weight(name, path), config).items():
                kind = storage_type(target, tensor, TYPES[dtype], layout.float32)
                writer.write_tensor_data(encode(name, tensor, kind))
            advance()


def storage_type(
    name: str, tensor: Tensor, wanted: GGMLQuantizationType, float32: tuple[MODEL_TENSOR, ...]
) -> GGMLQuantizationType:
    """The type in which a GGUF tensor is stored: `wanted` for matrices, but for those of the kinds `float32`."""
    stem = name.removesuffix(".weight")
    always = {gguf.TENSOR_NAMES[kind].removeprefix("blk.{bid}.") for kind in float32}
    if tensor.dim() < 2 or stem.rpartition(".")[2] in always:
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else GGMLQuantizationType.F16


def encode(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor as its storage type has them.

    Raises:
        RadistillError: if a value is NaN, infinite, or too large for float16.
    """
    values = tensor.float().contiguous().numpy()
    if not np.isfinite(values).all():
        raise RadistillError(f"{name}: holds NaN or infinite numbers, so this model is not exported")
    if kind == GGMLQuantizationType.F32:
        return values
    if kind == GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise RadistillError(f"{name}: holds numbers that float16 cannot; take --dtype bfloat16 or float32")
    return gguf.quants.quantize(values, kind)


def _has_own_head(weights: dict[str, Path]) -> bool:
    """Whether the head differs from the embedding: transformers uses such a head even where the config ties the two."""
    head, embedding = (read_weight(name, weights[name]) for name in (_HEAD, _EMBEDDING))
    return not torch.equal(head, embedding)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    check_tokenizer(folder)
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a broken file can fail anywhere in the tokenizer's reader
        raise RadistillError(f"{folder}: the tokenizer cannot be read ({one_line(error)})") from None
    return tokenizer


def _write_templates(writer: GGUFWriter, templates: str | dict[str, str] | None) -> None:
    """One template, or several by their names, as llama.cpp's converter writes them; sorted, so that bytes repeat."""
    named = {"default": templates} if isinstance(templates, str) else dict(templates or {})
    if (default := named.pop("default", None)) is not None:
        writer.add_chat_template(default)
    by_key = {re.sub("[^A-Za-z0-9]", "_", name): template for name, template in sorted(named.items())}
    for name, template in by_key.items():
        writer.add_string(gguf.Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), template)
    if by_key:
        writer.add_array(gguf.Keys.Tokenizer.CHAT_TEMPLATES, list(by_key))


def _eos_ids(folder: Path, config: PreTrainedConfig) -> list[int]:
    """Tokens at which transformers stops."""
    path = folder / "generation_config.json"
    try:
        settings = GenerationConfig.from_pretrained(folder) if path.is_file() else config
    except Exception as error:  # transformers validates with errors of many types
        raise RadistillError(f"{path}: transformers refuses these settings ({one_line(error)})") from None
    ids = settings.eos_token_id
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    for token in ids:
        if type(token) is not int or not 0 <= token < config.vocab_size:
            where = path if path.is_file() else folder / "config.json"
            raise RadistillError(f"{where}: eos_token_id is {token!r}, but tokens are 0 to {config.vocab_size - 1}")
    return ids
