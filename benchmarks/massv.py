"""A drafter that sees against one that does not, for a small target that describes pictures (MASSV, arXiv 2505.10526).

    python benchmarks/massv.py [--target-steps 1800] [--rounds 2] [--steps 300] [--heldout 240] [--seed 0] [--threads 2]

The target is an Idefics3 of a few million weights, trained here on pictures of two coloured digits or shapes with
captions and questions. Five drafters are compared on its own answers to held-out pictures: a small language model that
was trained on the target's answers without the pictures; the same language model behind the target's vision encoder and
a connector that has learnt captions (phase 1); that one trained further, with its language model, on the target's
answers (phase 2), by the `lk-alpha` loss; phase 2 given the pictures of other questions; and the text-only one trained
further on the same answers for as many steps as phase 2 takes, so that both language models have read as much.
Intervals are bootstrapped over the answers, those of differences in pairs.

Models are kept in runs/massv, with trainings that a kill cut short; benchmarks/results/massv.json is written.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, Idefics3Config, LlamaConfig, LlamaForCausalLM

from common.result import ROOT, options, write_result
from common.scenes import IMAGE_TOKENS, PATCH, SIZE, Scene, processor
from radistill import load
from radistill.console import note, progress
from radistill.conversion.seeing import connector_parameters, seeing_drafter
from radistill.data.documents import prompt_tokens, response_tokens
from radistill.data.examples import Example, with_images
from radistill.distillation.checkpoints import remove_checkpoints
from radistill.distillation.distill import distill, finetune
from radistill.distillation.losses.distributions import LKAlpha
from radistill.distillation.settings import DistillSettings, FinetuneSettings
from radistill.export.engines.assisted import assisted
from radistill.models.anatomy import anatomy_of
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.pictures import Images, Reader
from radistill.models.sequences import Document, collate
from radistill.speculation.acceptance import expected_acceptance, likeliest_is
from radistill.speculation.decode import speculative_generate
from radistill.speculation.drafters import Draft
from radistill.speculation.masks import ComponentMask
from radistill.speculation.measure import Acceptance, by_token
from radistill.speculation.payoff import rounds_over

LENGTH = 4
MOST = 16
DRAWS = 4000
ENOUGH = 0.95


def llama(vocabulary: int, hidden: int, layers: int) -> LlamaConfig:
    """The config of a small language model."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def new_target() -> Model:
    """The target before training."""
    reads = processor()
    size, image = len(reads.tokenizer), reads.tokenizer.convert_tokens_to_ids("<image>")
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    config = Idefics3Config(
        vision_config=vision,
        text_config=llama(size, 224, 4).to_dict(),
        image_token_id=image,
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    network = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    network.generation_config.eos_token_id = 2
    return Model(network.eval(), reads.tokenizer, anatomy_of(network), "target", reader=Reader(reads, network))


def examples_of(scenes: Sequence[Scene], rng: random.Random, each: int) -> list[Example]:
    """For each scene the caption, or `each` of its questions, with right answers."""
    found = []
    for number, scene in enumerate(scenes):
        asked = list(scene.questions())
        picture = scene.picture()
        for turn, (question, answer) in enumerate(asked[:1] if each == 0 else rng.sample(asked, each)):
            example = Example.of_user(f"{number}-{turn}", question, response=answer)
            found.append(with_images(example, (picture,), "scene"))
    return found


def documents_of(model: Model, examples: Sequence[Example], answers: list[list[int]] | None = None) -> list[Document]:
    """Documents with right answers, or those that the target wrote."""
    assert model.reader is not None
    found = []
    for number, example in enumerate(examples):
        prompt = prompt_tokens(example, model.tokenizer, reader=model.reader)
        response = response_tokens(example, model.tokenizer).tokens if answers is None else answers[number]
        images = Images(example.images, model.reader)
        found.append(Document(example.id, (*prompt, *response), len(prompt), images))
    return found


def trained_target(folder: Path, rounds: int, steps: int, seed: int) -> tuple[Model, list[float]]:
    """The target, trained round after round until it answers; and the share of right answers after each round."""
    target, shares = None, []
    for number in range(1, rounds + 1):
        place = folder.with_name(f"{folder.name}-{number}")
        if not (place / "config.json").exists():
            torch.manual_seed(seed)
            (target or new_target()).save(place.with_name("start"))
            train_round(load(place.with_name("start"), images=True), steps, seed + number - 1).save(place)
        target = load(place, images=True)
        shares.append(share_right(target, random.Random(-1)))
        note(f"round {number}: {shares[-1]:.1%} of 200 answers are right")
        if shares[-1] >= ENOUGH:
            break
    assert target is not None
    return target, shares


def train_round(target: Model, steps: int, seed: int) -> Model:
    """Train everything at once by cross-entropy: vision, connector and language model."""
    network: Any = target.network.train()
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.05)
    with progress("target", steps, "steps") as advance:
        for _ in range(steps):
            scenes = [Scene.drawn(rng) for _ in range(32)]
            # Captions say most of a picture, so they are half of what is read.
            asked = [list(scene.questions()) for scene in scenes]
            batch = tokens_of(target, [rng.choice([texts[0], rng.choice(texts)]) for texts in asked])
            # As the processor does it, but at once.
            pixels = torch.stack([torch.from_numpy(np.asarray(scene.image()).copy()) for scene in scenes])
            pixels = (pixels.permute(0, 3, 1, 2)[:, None].float() / 255 - 0.5) / 0.5
            logits = network(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=pixels, use_cache=False
            ).logits
            kept = batch.response_mask[:, 1:]
            loss = torch.nn.functional.cross_entropy(logits[:, :-1][kept], batch.input_ids[:, 1:][kept])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            advance(1, f"loss {loss.item():.3f}")
    network.eval()
    return target


def share_right(target: Model, rng: random.Random) -> float:
    """How often it answers as the picture says."""
    asked = documents_of(target, examples_of([Scene.drawn(rng) for _ in range(200)], rng, 1))
    written = generate(
        target,
        [document.tokens[: document.response_start] for document in asked],
        images=[document.images for document in asked],
        max_new_tokens=MOST,
        batch_size=64,
    )
    right = [
        tuple(own) == document.tokens[document.response_start :] for own, document in zip(written, asked, strict=True)
    ]
    return sum(right) / len(right)


def tokens_of(target: Model, texts: Sequence[tuple[str, str]]) -> Any:
    """A batch of questions and answers, with the places of a picture before each question."""
    tokenizer = target.tokenizer
    documents = []
    shown = "<fake_token_around_image><global-img>" + "<image>" * IMAGE_TOKENS + "<fake_token_around_image>"
    for number, (question, answer) in enumerate(texts):
        prompt = tokenizer(f"user {shown}{question} <end> assistant ", add_special_tokens=False)["input_ids"]
        response = tokenizer(f"{answer} <end>", add_special_tokens=False)["input_ids"]
        documents.append(Document(str(number), (*prompt, *response), len(prompt)))
    return collate(documents, target.pad_token_id)


def language_model(target: Model, seed: int) -> Model:
    """A small language model that knows nothing yet."""
    torch.manual_seed(seed + 1)
    network = LlamaForCausalLM(llama(target.anatomy.vocab_size, 64, 2))
    network.generation_config.eos_token_id = 2
    return Model(network.eval(), target.tokenizer, anatomy_of(network), "language model")


def kept(folder: Path, train: Any, student: Model, images: bool) -> Model:
    """A model that a training left before, or leaves now."""
    if not (folder / "config.json").exists():
        train(student, folder=folder.with_name(f"{folder.name}-training"))
        student.save(folder)
        remove_checkpoints(folder.with_name(f"{folder.name}-training"))
    return load(folder, images=images)


def acceptance(
    target: Model, drafter: Model, texts: dict[float, list[Document]], shift: int = 0
) -> dict[str, Acceptance]:
    """Greedy and sampled acceptance; with a `shift`, the drafter sees the picture of an answer so much further on."""
    draft, whole = Draft.of(target, drafter), Draft(target, target, ComponentMask())
    found = {}
    for temperature, documents in texts.items():
        tokens = []
        for number, document in enumerate(documents):
            seen = replace(document, images=documents[(number + shift) % len(documents)].images)
            q = draft.response_logits(seen)
            if temperature:
                p = whole.response_logits(document)
                tokens.append(by_token(p, q, temperature, expected_acceptance).tolist())
            else:
                response = torch.tensor(document.tokens[document.response_start :])
                tokens.append(likeliest_is(q, response).double().tolist())
        found["sampled" if temperature else "greedy"] = Acceptance.of(
            temperature, "sampled" if temperature else "greedy", tokens
        )
    return found


def difference(one: Acceptance, other: Acceptance) -> dict[str, Any]:
    """How many more tokens a round of `LENGTH` are accepted by one than by the other, paired by answers."""
    sums = []
    for acceptance_ in (one, other):
        rounds = [rounds_over(text, LENGTH) for text in acceptance_.tokens]
        sums.append([[text.accepted.sum() for text in rounds], [text.number for text in rounds]])
    table = np.array(sums, dtype=float)  # [arm, accepted or rounds, answer]
    rows = np.random.default_rng(0).integers(table.shape[2], size=(DRAWS, table.shape[2]))
    drawn = table[:, :, rows].sum(axis=-1)  # [arm, accepted or rounds, draw]
    gaps = drawn[0, 0] / drawn[0, 1] - drawn[1, 0] / drawn[1, 1]
    whole = table.sum(axis=-1)
    low, high = np.quantile(gaps, [0.025, 0.975])
    return {"value": whole[0, 0] / whole[0, 1] - whole[1, 0] / whole[1, 1], "interval": [float(low), float(high)]}


def main() -> None:
    """Train what is not there yet, measure, write."""
    given = options(
        __doc__,
        target_steps=1800,
        rounds=2,
        scenes=700,
        steps=300,
        heldout=240,
        seed=0,
        threads=2,
        folder=str(ROOT / "runs" / "massv"),
    )
    folder = Path(given.folder)
    target, shares = trained_target(folder / "target", given.rounds, given.target_steps, given.seed)
    rng = random.Random(given.seed + 1)
    scenes = [Scene.drawn(rng) for _ in range(given.scenes + given.heldout)]
    train = examples_of(scenes[: given.scenes], rng, 2)
    held = examples_of(scenes[given.scenes :], rng, 1)
    captions = documents_of(target, examples_of(scenes[: given.scenes], rng, 0))
    prompts = documents_of(target, [*train, *held])

    def answers(temperature: float, documents: Sequence[Document]) -> list[list[int]]:
        return generate(
            target,
            [document.tokens[: document.response_start] for document in documents],
            images=[document.images for document in documents],
            max_new_tokens=MOST,
            temperature=temperature,
            seed=given.seed,
            batch_size=64,
            cache=folder / "answers.jsonl",
            description=f"target answers at {temperature:g}",
        )

    written = answers(0.0, prompts)
    right = [list(one.tokens[one.response_start :]) == own for one, own in zip(prompts, written, strict=True)][
        len(train) :
    ]
    note(f"the target answers {sum(right)} of {len(right)} held-out questions as the picture says")
    learnt = documents_of(target, train, written[: len(train)])
    greedy = documents_of(target, held, written[len(train) :])
    texts = {0.0: greedy, 1.0: documents_of(target, held, answers(1.0, prompts[len(train) :]))}
    few = greedy[:40]
    rates = {"other_learning_rate": 1e-3, "tokens_per_batch": 1024, "eval_steps": 300, "report_to": "none"}

    def without_pictures(name: str, student: Model, rate: float) -> Model:
        train_on = partial(
            finetune,
            teacher=target,
            train=[document.blind for document in learnt],
            heldout=[document.blind for document in few],
            settings=FinetuneSettings(steps=2 * given.steps, **{**rates, "other_learning_rate": rate}),
            new_parameters=(),
        )
        return kept(folder / name, train_on, student, images=False)

    blind = without_pictures("text-only", language_model(target, given.seed), 3e-3)
    longer = without_pictures("text-only-longer", load(folder / "text-only"), 1e-3)
    joined = seeing_drafter(target, blind, given.seed)
    phase_1 = kept(
        folder / "phase-1",
        partial(
            finetune,
            teacher=target,
            train=captions,
            heldout=few,
            settings=FinetuneSettings(
                steps=given.steps, **{**rates, "other_learning_rate": 0.0}, new_block_learning_rate=3e-3
            ),
            new_parameters=connector_parameters(joined),
        ),
        joined,
        images=True,
    )
    phase_2 = kept(
        folder / "phase-2",
        partial(
            distill,
            teacher=target,
            train=learnt,
            heldout=few,
            settings=DistillSettings(steps=2 * given.steps, loss=LKAlpha(), **rates, new_block_learning_rate=1e-3),
            new_parameters=connector_parameters(joined),
        ),
        load(folder / "phase-1", images=True),
        images=True,
    )
    arms = {
        "text-only": acceptance(target, blind, texts),
        "text-only, longer": acceptance(target, longer, texts),
        "phase 1": acceptance(target, phase_1, texts),
        "phase 2": acceptance(target, phase_2, texts),
        "phase 2, other pictures": acceptance(target, phase_2, texts, shift=given.heldout // 2 + 1),
    }
    figures = {
        name: {rule: {"rate": asdict(one.rate), "of_4": asdict(one.accepted[LENGTH])} for rule, one in both.items()}
        for name, both in arms.items()
    }
    for name, both in figures.items():
        print(
            name, {rule: (round(one["rate"]["value"], 3), round(one["of_4"]["value"], 2)) for rule, one in both.items()}
        )
    pairs = [
        ("phase 2", "phase 1"),
        ("phase 1", "text-only"),
        ("phase 2", "text-only, longer"),
        ("phase 2, other pictures", "text-only, longer"),
    ]
    checked = texts[0.0][:20]
    own = [list(document.tokens[document.response_start :]) for document in checked]
    asked: dict[str, Any] = {
        "prompts": [document.tokens[: document.response_start] for document in checked],
        "images": [document.images for document in checked],
    }
    decoded = speculative_generate(target, drafter=phase_2, draft_length=LENGTH, max_new_tokens=MOST, **asked)
    by_transformers = [
        assisted(target, phase_2, document.tokens[: document.response_start], MOST, LENGTH, document.images).tokens
        for document in checked
    ]
    write_result(
        "massv",
        settings={key: value for key, value in vars(given).items() if key != "folder"},
        weights={
            name: sum(parameter.numel() for parameter in model.network.parameters())
            for name, model in {"target": target, "text-only": blind, "drafter": phase_2}.items()
        },
        target_right={"answers": len(right), "right": sum(right), "by_round": shares},
        arms=figures,
        differences={
            f"{one} over {other}": {rule: difference(arms[one][rule], arms[other][rule]) for rule in arms[one]}
            for one, other in pairs
        },
        decoded={
            "prompts": len(own),
            "same_text": sum(a == b for a, b in zip(own, decoded.responses, strict=True)),
            "same_text_by_transformers": sum(a == b for a, b in zip(own, by_transformers, strict=True)),
            "accepted": decoded.accepted,
            "drafted": decoded.drafted,
        },
    )


if __name__ == "__main__":
    main()
