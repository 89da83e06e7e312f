"""Load a model with its tokenizer, refuse what would be silently wrong, and save it so that anything can read it."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from radistill.console import note
from radistill.errors import RadistillError
from radistill.files import atomic_folder
from radistill.mixers import use_fast_paths
from radistill.models.anatomy import Anatomy, anatomy_of
from radistill.models.checkpoint import (
    check_templates,
    check_tokenizer,
    check_weights,
    one_line,
    quiet,
    read_config,
    refusing,
    shapes_in,
)
from radistill.models.gguf import read_gguf
from radistill.models.number_formats import warn_if_slow
from radistill.models.pictures import SEEING, Reader
from radistill.models.sources import gguf_file, locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Weights that may be missing before a network is built of which these would be named.
_MOST_MISSING = 2**26

# Fields of a config that change when a model is saved and loaded, though the function it computes does not.
_VOLATILE = {"transformers_version", "dtype", "torch_dtype", "architectures"}


@dataclass
class Model:
    """A causal language model, the tokenizer that belongs to it, and what we know of its parts.

    One that also reads images is transformers' class for both, and its anatomy is that of its language model.

    Attributes:
        network: in evaluation mode.
        tokenizer: its `pad_token` is set.
        source: what the user asked for: hub id, folder, GGUF file or alias.
        reader: what makes tokens and tensors of images; None where the model reads text alone.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    source: str
    reader: Reader | None = field(default=None, kw_only=True)

    @property
    def pad_token_id(self) -> int:
        """Token that fills a batch; what it is matters little, because padding is masked."""
        pad = self.tokenizer.pad_token_id
        token = self.tokenizer.eos_token_id if pad is None else pad
        if not isinstance(token, int):
            raise RadistillError(f"{self.source}: the tokenizer has neither a padding token nor an end token")
        return token

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model was made for, prompt and response together; None where its config names none."""
        length: int | None = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        return length

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the config and every weight's name, shape, type and bytes, as they are at the first call.

        Where the model lies and which version of transformers saved it do not count: a copy has the same fingerprint.
        """
        config = json.loads(self.network.config.to_json_string(use_diff=False))
        config = {key: value for key, value in config.items() if key not in _VOLATILE and not key.startswith("_")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path | str) -> None:
        """Write weights (safetensors), config, tokenizer and chat template to `folder`, all of it or nothing.

        `AutoModelForCausalLM.from_pretrained(folder)` reads it without radistill; one that reads images,
        `AutoModelForImageTextToText`. A model that is there is replaced.

        Raises:
            RadistillError: if `folder` holds something that is not a model, or cannot be written.
        """
        folder = Path(folder)
        if folder.is_file():
            raise RadistillError(f"{folder}: is a file, so no model can be saved there")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
            raise RadistillError(
                f"{folder}: holds files that are no model, and they are not overwritten; choose another"
            )
        try:
            with atomic_folder(folder) as temporary, quiet():
                self._save_network(temporary)
                if self.reader is not None:
                    self.reader.processor.save_pretrained(temporary)
                self.tokenizer.save_pretrained(temporary)
        except (OSError, SafetensorError) as error:
            raise RadistillError(f"{folder}: cannot be written ({one_line(error)})") from None

    def _save_network(self, folder: Path) -> None:
        """Save the generation settings as they are: transformers refuses to write some that it reads and publishes."""
        settings = self.network.generation_config
        self.network.generation_config = GenerationConfig()
        try:
            self.network.save_pretrained(folder)
        finally:
            self.network.generation_config = settings
        settings.to_json_file(folder / "generation_config.json")
        if published := self.anatomy.architecture.published:  # names of types of layers
            path = folder / "config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            config["layer_types"] = [published.get(kind, kind) for kind in config["layer_types"]]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(
    source: str | Path,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    images: bool = False,
) -> Model:
    """Load a model and its tokenizer.

    Args:
        source: alias, folder, GGUF file or hub id.
        dtype: "float32", "bfloat16" or "float16".
        device: where the network goes, such as "cpu" or "cuda:0".
        trust_remote_code: run Python code that comes with the model.
        images: load a model that reads images with all that reads them; without it, such a model is loaded as the text
            model that it is too, if transformers can.

    Raises:
        RadistillError: in one line, whatever is missing, damaged or of a kind that is not read.
    """
    target = check_device(device)
    _check_dtype(dtype)
    folder = locate(source, trust_remote_code=trust_remote_code)
    config = read_config(folder, trust_remote_code)
    anatomy_of(config)
    sees = images and check_images(config, folder)
    _check_room(folder, check_weights(folder), skeleton(config, folder, trust_remote_code, images=sees))
    tokenizer = _read_tokenizer(folder, trust_remote_code)
    network: Any = _load_network(folder, DTYPES[dtype], trust_remote_code, sees)
    reader = _read_processor(folder, tokenizer, network) if sees else None
    _check_vocabulary(folder, tokenizer, network)
    use_fast_paths(network)
    warn_if_slow(DTYPES[dtype], target)
    return Model(network.to(target), tokenizer, anatomy_of(network), str(source), reader=reader)


def load_config(source: str | Path, trust_remote_code: bool = False, images: bool = False) -> PreTrainedConfig:
    """The config of a model, without loading its weights: those of a hub model are not downloaded, those of a GGUF file
    not de-quantised. Of a model that also reads images it is the text part's, as `load` takes only that part, or, with
    `images`, the whole.

    Raises:
        RadistillError: as `load` does, as far as it can be told without reading the weights.
    """
    if (gguf := gguf_file(source)) is not None:
        return read_gguf(gguf).config
    folder = locate(source, weights=False, trust_remote_code=trust_remote_code)
    config = read_config(folder, trust_remote_code)
    if Path(str(source)).expanduser().exists():
        check_weights(folder)
    if images and check_images(config, folder):
        return config
    _auto_class(config, folder)
    text: PreTrainedConfig = config.get_text_config()
    return text


def load_without_weights(
    source: str | Path, trust_remote_code: bool = False, images: bool = False, dtype: str = "float32"
) -> Model:
    """A model that is served elsewhere: its tokenizer, sizes and end tokens. Its network, on "meta", has no numbers.

    With `images`, a model that reads images is all of it, as in `load`.

    Raises:
        RadistillError: as `load` does, as far as it can be told without reading the weights.
    """
    _check_dtype(dtype)
    folder = locate(source, weights=False, trust_remote_code=trust_remote_code)
    config = read_config(folder, trust_remote_code)
    sees = images and check_images(config, folder)
    network: Any = skeleton(config, folder, trust_remote_code, images=sees)
    network = network.to(DTYPES[dtype])
    tokenizer = _read_tokenizer(folder, trust_remote_code)
    _check_vocabulary(folder, tokenizer, network)
    if (folder / "generation_config.json").is_file():
        with quiet():
            network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    reader = _read_processor(folder, tokenizer, network) if sees else None
    return Model(network, tokenizer, anatomy_of(network), str(source), reader=reader)


def load_tokenizer(source: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights.

    Raises:
        RadistillError: if there is none, or it cannot be read.
    """
    return _read_tokenizer(locate(source, weights=False, trust_remote_code=trust_remote_code), trust_remote_code)


def check_images(config: PreTrainedConfig, source: str | Path) -> bool:
    """Whether the config is of a model that reads images.

    Raises:
        RadistillError: if it is one of a type that is not known here.
    """
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        return False
    if config.model_type not in SEEING:
        raise RadistillError(
            f"{source}: reads images, but its model type, {config.model_type}, is none of those whose images are read "
            f"here ({', '.join(SEEING)})"
        )
    token = getattr(config, "image_token_id", None)
    if not isinstance(token, int) or not 0 <= token < config.get_text_config().vocab_size:
        raise RadistillError(f"{source}: config.json: image_token_id is {token}, which is no token of the model")
    return True


def _auto_class(config: PreTrainedConfig, source: str | Path, images: bool = False) -> Any:
    """What loads a network of this config; RadistillError for one that is not a text model and is loaded as one."""
    if images:
        return AutoModelForImageTextToText
    if config.model_type in SEEING and type(config) not in AutoModelForCausalLM._model_mapping:
        raise RadistillError(
            f"{source}: reads images ({config.model_type}), and is no text model, so it cannot be converted; it can "
            "answer in `radistill generate --image`, and be a target in `drafter measure`"
        )
    return AutoModelForCausalLM


def skeleton(
    config: PreTrainedConfig, source: str | Path, trust_remote_code: bool = False, images: bool = False
) -> PreTrainedModel:
    """The network that a config describes, without numbers; with `images`, all of one that reads them.

    Raises:
        RadistillError: if it describes none.
    """
    auto = _auto_class(config, source, images)
    with refusing(f"{source}: no network can be built from its config.json"), torch.device("meta"):
        network: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    return network


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise RadistillError(f"dtype is {dtype!r}; it can be {', '.join(DTYPES)}")


def check_device(device: str) -> torch.device:
    """The torch device of that name.

    Raises:
        RadistillError: if there is no such device on this machine.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RadistillError(f"device is {device!r}, which this machine does not offer ({one_line(error)})") from None
    if found.type == "meta":
        raise RadistillError("device is 'meta', which holds no weights")
    return found


def _read_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    check_tokenizer(folder)
    with refusing(f"{folder}: the tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    check_templates(folder, tokenizer.chat_template)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise RadistillError(f"{folder}: the tokenizer has neither pad_token nor eos_token; set one of them")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_room(folder: Path, weights: list[Path], network: PreTrainedModel) -> None:
    """Refuse a config that asks for far more weights than there are: what is missing would take memory all the same."""
    held = sum(math.prod(shape) for path in weights for shape in shapes_in(path).values())
    asked = sum(parameter.numel() for parameter in network.parameters())
    if asked - held > _MOST_MISSING:
        raise RadistillError(f"{folder}: config.json asks for {asked:,} weights, but the files hold {held:,}")


def _read_processor(folder: Path, tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> Reader:
    """The processor of a model; its chat template is the tokenizer's where that has none."""
    way_out = "; if a package is missing, pip install 'radistill[images]'"
    with refusing(f"{folder}: the image processor cannot be read", way_out):
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        image_processor = processor.image_processor
    if image_processor is None:
        raise RadistillError(f"{folder}: has no image processor; copy preprocessor_config.json there")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = processor.chat_template
    return Reader(processor, network)


def _load_network(folder: Path, dtype: torch.dtype, trust_remote_code: bool, images: bool) -> PreTrainedModel:
    auto = AutoModelForImageTextToText if images else AutoModelForCausalLM
    with refusing(f"{folder}: the weights do not fit config.json"):
        loaded: Any = auto.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    network, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers has filled them with random numbers
        raise RadistillError(f"{folder}: {len(missing)} weights are missing, the first of them {missing[0]}")
    if info["mismatched_keys"]:
        name, found, wanted = sorted(info["mismatched_keys"])[0]
        raise RadistillError(f"{folder}: {name} has shape {list(found)}, but config.json asks for {list(wanted)}")
    if unused := sorted(info["unexpected_keys"]):
        note(f"{folder}: {len(unused)} weights have no place in this architecture and are left out, first {unused[0]}")
    for name, tensor in network.named_parameters():
        if not torch.isfinite(tensor).all():
            raise RadistillError(f"{folder}: {name} holds NaN or infinite weights")
    _untie(folder, network)
    return network.eval()


def _untie(folder: Path, network: PreTrainedModel) -> None:
    """Let the config say what the network computes: transformers uses an `lm_head` that is not the embedding even where
    the config ties the two."""
    head: Any = network.get_output_embeddings()
    embedding: Any = network.get_input_embeddings()
    if head.weight is embedding.weight or not network.config.tie_word_embeddings:
        return
    if not torch.equal(head.weight, embedding.weight):
        note(f"{folder}: config.json has tie_word_embeddings, but the weights hold another lm_head, which is used")
        network.config.tie_word_embeddings = False


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> None:
    """A token beyond the embedding is an error where it occurs in every text, and only worth a note elsewhere."""
    embedding: Any = network.get_input_embeddings()
    rows = embedding.weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise RadistillError(f"{folder}: the tokenizer has no tokens")
    for role in ("pad_token", "bos_token", "eos_token"):
        token = getattr(tokenizer, f"{role}_id")
        if token is not None and token >= rows:
            raise RadistillError(f"{folder}: {role} is token {token}, but the network embeds only 0 to {rows - 1}")
    beyond = sum(token >= rows for token in vocabulary.values())
    if beyond > len(vocabulary) // 100 + 1:
        raise RadistillError(
            f"{folder}: the tokenizer has {beyond} tokens beyond the {rows} that the network embeds; it belongs to "
            "another model"
        )
    if beyond:
        note(f"{folder}: the tokenizer has tokens ({beyond}) that the network does not embed; texts must not use them")
