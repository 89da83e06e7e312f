"""A drafter that sees: what it is made of, what its training changes, and who loads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import tiny
from radistill.conversion.seeing import connector_parameters, language_model, seeing_drafter
from radistill.distillation.distill import distill, finetune
from radistill.distillation.losses.distributions import TotalVariation
from radistill.distillation.settings import DistillSettings, FinetuneSettings
from radistill.errors import RadistillError
from radistill.export.engines.assisted import assisted
from radistill.models.generation import generate
from radistill.models.loading import Model, load
from radistill.models.pictures import SEEING
from radistill.models.sequences import Document
from speculation.test_pictures import prompt_of

STEPS = {"steps": 2, "tokens_per_batch": 400, "eval_steps": 2, "report_to": "none"}


def documents_of(target: Model, count: int = 4) -> list[Document]:
    both = [prompt_of(target, seed) for seed in range(count)]
    answers = generate(
        target,
        [prompt for prompt, _ in both],
        max_new_tokens=6,
        images=[images for _, images in both],
        description=None,
    )
    return [
        Document(f"{number}", (*prompt, *answer), len(prompt), images)
        for number, ((prompt, images), answer) in enumerate(zip(both, answers, strict=True))
    ]


def small(kind: str) -> Model:
    """The language model of a smaller one that reads images."""
    return tiny.seeing(kind, layers=1, seed=5, intermediate_size=32)


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.network.named_parameters()}


@pytest.mark.parametrize("kind", tiny.SEEING_FIRST)
def test_it_is_the_target_with_another_language_model(kind: str) -> None:
    target, language = tiny.seeing(kind), small(kind)
    drafter = seeing_drafter(target, language)
    parts = SEEING[kind]
    own, lent = weights(drafter), weights(language)
    for name, tensor in weights(target).items():
        if parts.is_vision(name):
            assert torch.equal(own[name], tensor)
    for name, tensor in lent.items():
        if name.startswith(parts.text) or name.startswith("lm_head"):
            assert torch.equal(own[name], tensor)
    connector = connector_parameters(drafter)
    assert connector
    assert all(own[name].isfinite().all() for name in connector)
    assert type(drafter.network) is type(target.network)
    assert drafter.anatomy.num_layers == 1
    again = seeing_drafter(target, language)
    assert all(torch.equal(own[name], tensor) for name, tensor in weights(again).items())


@pytest.mark.parametrize("kind", tiny.SEEING_FIRST[:2])
def test_phase_1_changes_the_connector_alone_and_phase_2_never_the_vision_encoder(kind: str) -> None:
    target = tiny.seeing(kind)
    drafter, documents = seeing_drafter(target, small(kind)), documents_of(target)
    connector, before = connector_parameters(drafter), weights(drafter)
    finetune(
        drafter,
        target,
        documents,
        documents,
        FinetuneSettings(**STEPS, new_block_learning_rate=1e-2, other_learning_rate=0.0),
        new_parameters=connector,
    )
    first = weights(drafter)
    changed = {name for name, tensor in first.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= connector
    found = distill(
        drafter,
        target,
        documents,
        documents,
        DistillSettings(
            **STEPS, loss=TotalVariation(), keep="last", new_block_learning_rate=1e-2, other_learning_rate=1e-2
        ),
        new_parameters=connector,
    )
    assert found.evaluations[-1]["kl"] < found.evaluations[0]["kl"]
    second = weights(drafter)
    seeing = SEEING[kind]
    for name, tensor in second.items():
        assert torch.equal(tensor, first[name]) == seeing.is_vision(name) or "bias" in name, name


def test_saved_it_is_a_stock_model_and_transformers_drafts_with_it(tmp_path: Path) -> None:
    target = tiny.seeing("idefics3")
    drafter = seeing_drafter(target, small("idefics3"))
    drafter.save(tmp_path / "drafter")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "drafter")
    for name, tensor in stock.named_parameters():
        assert torch.equal(tensor, drafter.network.get_parameter(name))
    loaded = load(tmp_path / "drafter", images=True)
    prompt, images = prompt_of(target, 4)
    [plain] = generate(target, [prompt], max_new_tokens=8, images=[images], description=None)
    assert assisted(target, loaded, prompt, 8, 3, images).tokens == plain


def test_what_does_not_fit_is_refused() -> None:
    target = tiny.seeing("idefics3")
    text = tiny.model("llama", vocab_size=target.anatomy.vocab_size)
    with pytest.raises(RadistillError, match="drafter tiny llama has another tokenizer"):
        seeing_drafter(target, text)
    text.tokenizer = target.tokenizer
    assert seeing_drafter(target, text).anatomy.num_layers == 4
    with pytest.raises(RadistillError, match="tiny llama: reads no images, so its drafter needs none"):
        seeing_drafter(text, text)
    other = tiny.model("qwen2", vocab_size=target.anatomy.vocab_size)
    other.tokenizer = target.tokenizer
    with pytest.raises(
        RadistillError, match="tiny qwen2: is a qwen2, but the language model of tiny idefics3 is a llama"
    ):
        seeing_drafter(target, other)
    narrow = tiny.model("llama")
    narrow.tokenizer = target.tokenizer
    with pytest.raises(RadistillError, match="so it has no place for the image token"):
        seeing_drafter(target, narrow)


def test_the_language_model_alone_says_the_same() -> None:
    seeing = tiny.seeing("idefics3")
    alone: Any = language_model(seeing)
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(alone.network(tokens).logits, seeing.network(input_ids=tokens).logits)
