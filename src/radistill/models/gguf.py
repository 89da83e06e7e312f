"""GGUF files: de-quantised once, then kept as a plain model folder."""

import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from gguf import GGUFReader, Keys
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from radistill.console import note
from radistill.errors import RadistillError
from radistill.files import atomic_folder, hash_file
from radistill.models.anatomy import anatomy_of
from radistill.models.checkpoint import one_line, quiet

# To be raised when `_convert` writes something else than before, so that no older folder is taken for its work.
_REVISION = 1


def cache_folder() -> Path:
    """Where de-quantised models are kept: $RADISTILL_CACHE, else $XDG_CACHE_HOME/radistill, else ~/.cache/radistill."""
    if own := os.environ.get("RADISTILL_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "radistill"


def dequantised(path: Path) -> Path:
    """Folder with the float32 weights, config and tokenizer of a GGUF file, made at the first call.

    The folder's name holds the hash of the file's bytes, the version of transformers, which does the arithmetic, and
    the revision of this code, so that neither a changed file nor a corrected library is answered with old weights.

    Raises:
        RadistillError: if the file is not a GGUF model of a known architecture, or the cache cannot be written.
    """
    _check_magic(path)
    name = f"{hash_file(path)[:32]}-transformers-{transformers.__version__}-{_REVISION}"
    folder = cache_folder() / "gguf" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(f"{folder.suffix}.lock")):  # another process may be at the same file
            if not folder.is_dir():
                note(f"{path.name}: de-quantising once to float32, kept in {folder.parent}")
                with atomic_folder(folder) as temporary:
                    _convert(path, temporary)
    except (OSError, SafetensorError) as error:
        raise RadistillError(
            f"{folder.parent}: cannot keep the de-quantised model here ({one_line(error)}); set "
            "RADISTILL_CACHE to a folder with room"
        ) from None
    return folder


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as handle:
            magic = handle.read(4)
    except OSError as error:
        raise RadistillError(f"{path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise RadistillError(f"{path}: not a GGUF file (it begins with {magic!r})")


def _convert(path: Path, folder: Path) -> None:
    """Write the model in `path` to `folder` as transformers would save it."""
    where = {"gguf_file": path.name, "local_files_only": True}
    with quiet(), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # the reader draws a bar of its own
        try:
            config = AutoConfig.from_pretrained(path.parent, **where)
            anatomy_of(config)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, config=config, dtype=torch.float32, output_loading_info=True, **where
            )
            network, info = loaded
            tokenizer = AutoTokenizer.from_pretrained(path.parent, config=config, **where)
            special = _special_tokens(path)
        except RadistillError:
            raise
        except Exception as error:  # the reader raises whatever the bytes lead it to
            raise RadistillError(f"{path}: transformers cannot read this GGUF file ({one_line(error)})") from None
        if info["missing_keys"]:
            raise RadistillError(f"{path}: the weights of {min(info['missing_keys'])} are missing")
        for role, token in special.items():
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(token))
            setattr(network.config, f"{role}_token_id", token)
            setattr(network.generation_config, f"{role}_token_id", token)
        _forget_quantisation(network)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _special_tokens(path: Path) -> dict[str, int]:
    """Ids of the tokens that the file itself names. Some versions of transformers guess them, and guess wrongly."""
    reader = GGUFReader(path)
    keys = {"bos": Keys.Tokenizer.BOS_ID, "eos": Keys.Tokenizer.EOS_ID, "pad": Keys.Tokenizer.PAD_ID}
    fields = {role: reader.get_field(key) for role, key in keys.items()}
    return {role: int(field.contents()) for role, field in fields.items() if field is not None}


def _forget_quantisation(network: Any) -> None:
    """Clear what marks a de-quantised network as quantised, without which `save_pretrained` refuses it."""
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.hf_quantizer = None
    network.is_quantized = False
