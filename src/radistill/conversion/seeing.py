"""A drafter that sees: the target's vision encoder, a small language model, and a new connector between them.

MASSV (arXiv 2505.10526). The drafter is a stock class, the target's own with another language model in it, so it reads
the same tokens and tensors of an image as the target. Its connector is random at first: `finetune` on captions with
`other_learning_rate: 0` trains it alone (phase 1), `distill` on the target's answers trains it with the language model
(phase 2). The vision encoder stays what the target's is.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from radistill.errors import RadistillError
from radistill.models.anatomy import anatomy_of
from radistill.models.generation import seeded
from radistill.models.loading import Model, check_images
from radistill.models.pictures import SEEING, Reader
from radistill.models.vocabularies import check_same_tokenizer


def seeing_config(target: PreTrainedConfig, language: PreTrainedConfig, sources: tuple[str, str]) -> PreTrainedConfig:
    """The config of a drafter that sees: the target's with another language model; `sources` name language and target.

    Raises:
        RadistillError: if the target reads no images, or the language model is of another type than the target's, or
            has no room for the image token.
    """
    source, role = sources
    if not check_images(target, role):
        raise RadistillError(f"{role}: reads no images, so its drafter needs none; let it draft from text")
    config = copy.deepcopy(target)
    text, own = config.get_text_config(), language.get_text_config()
    if own.model_type != text.model_type:
        raise RadistillError(
            f"{source}: is a {own.model_type}, but the language model of {role} is a {text.model_type}, and the "
            "drafter is of its class; choose one of its type"
        )
    if config.image_token_id >= own.vocab_size:
        raise RadistillError(
            f"{source}: embeds {own.vocab_size} tokens, so it has no place for the image token {config.image_token_id}"
        )
    config.text_config = copy.deepcopy(own)
    config.tie_word_embeddings = language.tie_word_embeddings
    if hasattr(config.vision_config, "out_hidden_size"):  # of a connector that is a part of the encoder
        config.vision_config.out_hidden_size = own.hidden_size
    return config


def seeing_drafter(target: Model, language: Model, seed: int = 0) -> Model:
    """A drafter for a target that reads images.

    Args:
        target: gives class, vision encoder and processor.
        language: a small model of the target's tokenizer, text alone, or another that reads images, of which the
            language model is taken.
        seed: of the new connector.

    Raises:
        RadistillError: as `seeing_config`, or if the language model has another tokenizer.
    """
    config = seeing_config(target.network.config, language.network.config, (language.source, target.source))
    check_same_tokenizer(language, target, ("drafter", "target"))
    assert target.reader is not None
    with seeded(torch.device("cpu"), seed):
        network = AutoModelForImageTextToText.from_config(config, dtype=target.network.dtype)
    kind = SEEING[config.model_type]
    _copy(target.network.get_submodule(kind.vision), network.get_submodule(kind.vision), kind.inner)
    _give_language(language, network, network.get_submodule(kind.text), target)
    reader = Reader(target.reader.processor, network)
    return Model(network, target.tokenizer, anatomy_of(network), f"a drafter of {language.source}", reader=reader)


def language_model(model: Model) -> Model:
    """The language model of one that reads images, as a text model with weights of its own; another as it is."""
    if model.reader is None:
        return model
    config = copy.deepcopy(model.network.config.get_text_config())
    config.tie_word_embeddings = model.network.config.tie_word_embeddings
    network = AutoModelForCausalLM.from_config(config, dtype=model.network.dtype)
    _give_language(model, network, network.base_model, model)
    return Model(network, model.tokenizer, anatomy_of(network), model.source)


def connector_parameters(model: Model) -> frozenset[str]:
    """The names of a model's connector weights, as in `named_parameters`: the new parameters of a training."""
    prefix = SEEING[model.network.config.model_type].connector + "."
    return frozenset(name for name, _ in model.network.named_parameters() if name.startswith(prefix))


def _give_language(language: Model, network: Any, text: nn.Module, like: Model) -> None:
    """Copy a language model to the part `text` of a network, which generates where and as `like` does."""
    own = language.network.base_model
    if language.reader is not None:
        own = language.network.get_submodule(SEEING[language.network.config.model_type].text)
    _copy(own, text)
    _copy(language.network.get_output_embeddings(), network.get_output_embeddings())
    network.generation_config = copy.deepcopy(like.network.generation_config)
    network.to(like.network.device).eval()


@torch.no_grad()
def _copy(source: nn.Module | None, to: nn.Module | None, without: str = "") -> None:
    """Copy all weights of a module, those that begin with `without` left out."""
    assert source is not None
    assert to is not None
    lent = source.state_dict()
    for name, tensor in to.state_dict().items():
        if not (without and name.startswith(f"{without}.")):
            tensor.copy_(lent[name])
