"""GGUF files: de-quantised once, then kept as a plain model folder."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import transformers
from filelock import FileLock
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from radistill.console import note
from radistill.errors import RadistillError
from radistill.files import atomic_folder, hash_file
from radistill.models.anatomy import anatomy_of
from radistill.models.checkpoint import one_line, quiet, refusing
from radistill.models.gguf.account import Account
from radistill.models.gguf.file import read_contents
from radistill.models.gguf.network import Weight, find_weights, read_architecture, read_config
from radistill.models.gguf.tokenizer import read_tokenizer, token_id

# To be raised when `read_gguf` or `_write` makes something else of a file than before, so that no older folder is
# taken for their work.
REVISION = 5


@dataclass(frozen=True)
class Reading:
    """What a GGUF file holds.

    Attributes:
        weights: by transformers' names, not read yet.
        stops: tokens at which generation ends, the end token first.
    """

    config: PreTrainedConfig
    weights: dict[str, Weight]
    tokenizer: PreTrainedTokenizerFast
    stops: list[int]


def cache_folder() -> Path:
    """Where de-quantised models are kept: $RADISTILL_CACHE, else $XDG_CACHE_HOME/radistill, else ~/.cache/radistill."""
    if own := os.environ.get("RADISTILL_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "radistill"


def content_hash(path: Path) -> str:
    """Hash of the bytes of a GGUF file, all its parts together.

    Raises:
        RadistillError: if it is no such file, or a part of it is missing.
    """
    hashes = [hash_file(part) for part in read_contents(path).parts]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:32]


def dequantised(path: Path) -> Path:
    """Folder with the float32 weights, config and tokenizer of a GGUF file, made at the first call.

    The folder's name holds the hash of the file's bytes, the version of transformers, which writes the folder, and the
    revision of this code, so that neither a changed file nor a corrected reader is answered with an old folder.

    Raises:
        RadistillError: if something in the file is not read, or the cache cannot be written.
    """
    name = f"{content_hash(path)}-transformers-{transformers.__version__}-{REVISION}"
    folder = cache_folder() / "gguf" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(f"{folder.suffix}.lock")):  # another process may be at the same file
            if not folder.is_dir():
                note(f"{path.name}: de-quantising once to float32, kept in {folder.parent}")
                with atomic_folder(folder) as temporary:
                    _write(read_gguf(path), temporary)
    except (OSError, SafetensorError) as error:
        raise RadistillError(
            f"{folder.parent}: cannot keep the de-quantised model here ({one_line(error)}); set "
            "RADISTILL_CACHE to a folder with room"
        ) from None
    return folder


def read_gguf(path: Path) -> Reading:
    """What a GGUF file holds, without its numbers: every key and every tensor in it is accounted for.

    Raises:
        RadistillError: naming the key, the tensor or the part of the file that is not read.
    """
    contents = read_contents(path)
    account = Account(path, contents.metadata)
    read_architecture(account)  # its refusal says more than that of a tokenizer which goes with it
    tokenizer = read_tokenizer(account)
    rows = len(account.need("tokenizer.ggml.tokens", list))  # more than tokens where the embedding is padded
    stops = [token_id(account, role, rows) for role in ("eos", "eot", "eom")]
    with refusing(f"{path}: transformers refuses these sizes"):
        config = read_config(account, contents, rows)
        account.close()
        for role in ("bos", "eos", "pad", "unk"):
            setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
        anatomy_of(config)
        weights = find_weights(contents, config)
    return Reading(config, weights, tokenizer, list(dict.fromkeys(token for token in stops if token is not None)))


def _write(reading: Reading, folder: Path) -> None:
    """Write a reading and its de-quantised weights to `folder` as transformers would save them."""
    with quiet():
        save_torch_state_dict({name: weight.read() for name, weight in reading.weights.items()}, folder)
        reading.config.save_pretrained(folder)
        settings = GenerationConfig.from_model_config(reading.config)
        if len(reading.stops) > 1:
            settings.eos_token_id = reading.stops
        settings.save_pretrained(folder)
        reading.tokenizer.save_pretrained(folder)
