"""A model folder on disk: is it complete, readable and of a kind that we read? Asked before any weight is loaded."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging
from typing_extensions import TypedDict

from radistill.console import note
from radistill.errors import RadistillError
from radistill.files import read_json, shortened


class _Index(TypedDict):
    weight_map: Annotated[dict[str, str], Field(min_length=1)]


WEIGHT_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def one_line(error: BaseException) -> str:
    """The first line of an error's message that says something, for an error of ours."""
    lines = (line.strip() for line in str(error).splitlines())
    return shortened(next((line for line in lines if line), type(error).__name__))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own bars and warnings: what matters of them, we check and say ourselves."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def refusing(what: str, way_out: str = "") -> Iterator[None]:
    """Silence a library inside the block, and make one line of its errors, which may be of any type.

    Raises:
        RadistillError: `what`, the error in brackets, `way_out`; one of ours stays as it is.
    """
    try:
        with quiet():
            yield
    except RadistillError:
        raise
    except Exception as error:
        raise RadistillError(f"{what} ({one_line(error)}){way_out}") from None


def read_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model folder.

    Raises:
        RadistillError: if there is none, it is broken, the model is quantised, or it needs code that is not trusted.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise RadistillError(f"{folder}: not a model, because it has no config.json{_hint(folder)}")
    data = read_json(path, finite=False)  # limits of a mixer may be infinite
    if not isinstance(data, dict) or not isinstance(data.get("model_type"), str):
        raise RadistillError(f"{path}: not the config of a transformers model, because it names no model_type")
    quantization = data.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise RadistillError(
            f"{path}: the weights are quantised (quantization_config.quant_method={method!r}); "
            "take the unquantised model, or a GGUF file of it"
        )
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers validates with errors of many types
        if data.get("auto_map") and not trust_remote_code:
            raise RadistillError(
                f"{path}: this model runs Python code of its own (auto_map); pass trust_remote_code "
                "(--trust-remote-code) if you trust it"
            ) from None
        raise RadistillError(f"{path}: transformers refuses this config ({one_line(error)})") from None


def check_weights(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, each of which has a complete header and all its bytes.

    As transformers does, a single file is taken before an index, whose shards may be left over from an older model.

    Raises:
        RadistillError: naming the file that is missing or damaged.
    """
    index, single = folder / WEIGHT_INDEX, folder / "model.safetensors"
    if index.is_file() and not single.is_file():
        weight_map = read_json(index, _Index)["weight_map"]
        for name in weight_map.values():
            if name != os.path.basename(name):
                raise RadistillError(f"{index}: weight_map names {name!r:.80}, which is no file beside it")
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        paths = [single]
    for path in paths:
        if not path.is_file():
            others = sorted(other.name for other in folder.glob("*.bin"))
            if others and not index.is_file():
                raise RadistillError(
                    f"{folder}: the weights are in {others[0]}, but only safetensors are read, because a .bin file can "
                    "run code; save the model again with save_pretrained"
                )
            raise RadistillError(f"{path}: no such file, so weights are missing (only safetensors are read)")
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise RadistillError(f"{path}: damaged or cut off ({one_line(error)}); copy or download it again") from None
    return paths


def is_own(file: Path, folder: Path) -> bool:
    """Whether a file of a model folder is the model's own, and no link to what lies elsewhere on this machine.

    Links lead to where config.json really lies, too: a folder may be made of links, as those of the hub's cache are.
    """
    real = file.resolve()
    return real.is_relative_to(folder.resolve()) or real.parent == (folder / "config.json").resolve().parent


def own_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The model's own files by their names, in this order; what is not its own is left out with a note."""
    found: list[Path] = []
    for file in dict.fromkeys(file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()):
        if is_own(file, folder):
            found.append(file)
        else:
            note(f"{file}: is a link out of the model's folder, and is left out")
    return found


def shapes_in(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a safetensors file, by its header; the errors are those of the library."""
    with safe_open(path, framework="pt") as file:
        names: list[str] = file.keys()
        return {name: file.get_slice(name).get_shape() for name in names}


def check_tokenizer(folder: Path) -> None:
    """Raise RadistillError if a model folder has no tokenizer."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise RadistillError(f"{folder}: the tokenizer is missing; copy tokenizer.json and tokenizer_config.json there")


def check_templates(where: Path, templates: str | dict[str, str] | None) -> None:
    """Refuse named chat templates that are no names of files, which they become when a tokenizer is saved.

    Raises:
        RadistillError: naming the file or folder that they are in, and the first such name.
    """
    for name in templates if isinstance(templates, dict) else ():
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise RadistillError(
                f"{where}: a chat template is called {name!r:.80}; give it a name of letters and digits"
            )


def _hint(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "; it is an adapter, so merge it into its base model first"
    below = sorted(path.parent for path in folder.glob("*/config.json"))  # as in a run's folder
    if below:
        return f"; a folder in it may be the one you want: {', '.join(map(str, below))}"
    ggufs = sorted(folder.glob("*.gguf"))
    return f"; for its GGUF file, give {ggufs[0]}" if ggufs else ""
