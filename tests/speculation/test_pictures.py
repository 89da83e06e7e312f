"""Speculative decoding of models that read images, against `generate` and against teacher-forced passes."""

import base64
import io
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny
from radistill.conversion import convert
from radistill.data.documents import prompt_tokens
from radistill.data.examples import Example, with_images
from radistill.errors import RadistillError
from radistill.models.generation import generate
from radistill.models.loading import Model, load
from radistill.models.pictures import Images, Picture
from radistill.models.sequences import Document, collate
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask
from radistill.speculation.measure import acceptance_of
from radistill.speculation.prediction import find_parting, predict_rounds

NEAR_TIE = 1e-4


def picture(seed: int) -> Picture:
    """A random image of a random size, as PNG bytes."""
    rng = random.Random(seed)
    image = Image.new("RGB", (rng.randint(9, 90), rng.randint(9, 60)))
    image.putdata(
        [(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(image.width * image.height)]
    )
    data = io.BytesIO()
    image.save(data, "PNG")
    return Picture.of({"bytes": base64.b64encode(data.getvalue()).decode()}, Path(), "test")


def prompt_of(model: Model, seed: int, pictures: int = 1) -> tuple[list[int], Images]:
    seen = tuple(picture(seed * 7 + number) for number in range(pictures))
    example = with_images(Example.of_user(f"{seed}", f"What is in picture {seed}?"), seen, "test")
    assert model.reader is not None
    return prompt_tokens(example, model.tokenizer, reader=model.reader), Images(seen, model.reader)


@cache
def target(kind: str) -> Model:
    return tiny.seeing(kind)


def drafters(kind: str) -> dict[str, Any]:
    """A cousin that sees the same image, one that reads text alone, and the target without an attention."""
    model = target(kind)
    seeing = tiny.cousin(model, noise=0.1)
    seeing.reader = model.reader
    blind = tiny.model("llama", layers=1, vocab_size=model.anatomy.vocab_size)
    blind.tokenizer = model.tokenizer
    return {"sees": seeing, "blind": blind, "mask": ComponentMask.attention([1])}


@pytest.mark.parametrize("kind", tiny.SEEING_FIRST)
@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_the_greedy_text_is_that_of_generate(kind: str, count: int) -> None:
    model = target(kind)
    both = [prompt_of(model, seed, 1 + seed % 2) for seed in range(count)]
    prompts, images = [prompt for prompt, _ in both], [seen for _, seen in both]
    plain = generate(model, prompts, max_new_tokens=8, batch_size=1, images=images, description=None)
    for name, drafter in drafters(kind).items():
        decoded = speculative_generate(model, prompts, drafter, draft_length=3, max_new_tokens=8, images=images)
        for prompt, seen, one, other in zip(prompts, images, plain, decoded.responses, strict=True):
            parting = find_parting(model, prompt, one, other, seen)
            assert parting is None or parting.margin < NEAR_TIE, (name, parting)
        if name == "sees":
            assert decoded.accepted > 0


@pytest.mark.parametrize("kind", tiny.SEEING_FIRST)
def test_images_matter_and_batches_do_not(kind: str) -> None:
    model = target(kind)
    both = [prompt_of(model, seed, 1 + seed % 2) for seed in range(4)]
    prompts, images = [prompt for prompt, _ in both], [seen for _, seen in both]
    alone, together = (
        generate(model, prompts, max_new_tokens=6, batch_size=size, images=images, description=None) for size in (1, 4)
    )
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        parting = find_parting(model, prompts[number], one, other, images[number])
        assert parting is None or parting.margin < NEAR_TIE
    documents = [
        Document(f"{number}", (*prompt, *alone[number]), len(prompt), images[number])
        for number, prompt in enumerate(prompts)
    ]
    batch = collate(documents, model.pad_token_id)
    with torch.no_grad():
        logits = model.network(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **batch.arguments
        ).logits
        for row, document in enumerate(documents):
            single = collate([document], model.pad_token_id)
            own = model.network(input_ids=single.input_ids, use_cache=False, **single.arguments).logits[0]
            torch.testing.assert_close(logits[row, : len(own)], own, rtol=0, atol=2e-4)
            other = {**single.arguments, "pixel_values": -single.arguments["pixel_values"]}
            negative = model.network(input_ids=single.input_ids, use_cache=False, **other).logits[0]
            assert (negative[-1] - own[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", tiny.SEEING_FIRST)
def test_prediction_is_what_decoding_accepts(kind: str) -> None:
    model = target(kind)
    prompt, seen = prompt_of(model, 3)
    [response] = generate(model, [prompt], max_new_tokens=8, images=[seen], description=None)
    document = Document("a", (*prompt, *response), len(prompt), seen)
    for name, drafter in drafters(kind).items():
        decoded = speculative_generate(model, [prompt], drafter, draft_length=3, max_new_tokens=8, images=[seen])
        if decoded.responses[0] == response:
            predicted = predict_rounds(model, document, drafter, [3])[3]
            assert decoded.accepted_by_round[0] == predicted, name
    twin = acceptance_of(model, ComponentMask(), [document], 1.0)["sampled"]
    assert twin == [[1.0] * len(response)]


def test_sampled_text_has_the_distribution_of_the_target() -> None:
    """The first two tokens' frequencies, against the target's own probabilities."""
    model = target("idefics3")
    prompt, seen = prompt_of(model, 1)
    batch = collate([Document("a", (*prompt, 0), len(prompt), seen)], model.pad_token_id)
    with torch.no_grad():
        logits = model.network(input_ids=batch.input_ids[:, :-1], use_cache=False, **batch.arguments).logits
    p = logits[0, -1].softmax(-1)
    counts = torch.zeros_like(p)
    drafter = drafters("idefics3")["sees"]
    draws = 80
    decoded = speculative_generate(
        model, [prompt] * draws, drafter, draft_length=1, max_new_tokens=1, temperature=1.0, images=[seen] * draws
    )
    for response in decoded.responses:
        counts[response[0]] += 1
    likeliest = p.topk(8).indices
    expected, found = p[likeliest] * draws, counts[likeliest]
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - p[likeliest])).sqrt() + 1).all()


@pytest.mark.parametrize("kind", tiny.SEEING_FIRST[::2])
def test_saved_and_loaded_it_writes_the_same(kind: str, tmp_path: Any) -> None:
    model = target(kind)
    prompt, seen = prompt_of(model, 5)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model", images=True)
    assert loaded.reader is not None
    assert loaded.reader.signature == model.reader.signature  # type: ignore[union-attr]
    again = Images(seen.pictures, loaded.reader)
    assert prompt_of(loaded, 5)[0] == prompt
    assert generate(loaded, [prompt], max_new_tokens=5, images=[again], description=None) == generate(
        model, [prompt], max_new_tokens=5, images=[seen], description=None
    )


def test_what_does_not_fit_is_refused_by_name(tmp_path: Any) -> None:
    model = target("idefics3")
    prompt, seen = prompt_of(model, 2)
    with pytest.raises(RadistillError, match="run one at a time"):
        speculative_generate(
            model, [prompt] * 2, ComponentMask(), draft_length=1, max_new_tokens=1, batch_size=2, images=[seen] * 2
        )
    text = tiny.model("llama")
    with pytest.raises(RadistillError, match="prompt 0 has images, which tiny llama does not read"):
        generate(text, [[1]], max_new_tokens=1, images=[seen], description=None)
    with pytest.raises(RadistillError, match="reads images, and a hybrid"):
        convert(model, [0])
    model.save(tmp_path / "model")
    with pytest.raises(RadistillError, match=r"reads images \(idefics3\), and is no text model"):
        load(tmp_path / "model")
    other = tiny.seeing("idefics3")
    other.reader.processor.image_processor.image_mean = [0.0, 0.0, 0.0]  # type: ignore[union-attr]
    with pytest.raises(RadistillError, match="drafter tiny idefics3 makes other tokens or tensors of an image"):
        speculative_generate(model, [prompt], other, draft_length=1, max_new_tokens=1, images=[seen])
