"""The student's own responses: which batches, what it writes, what is learnt from it, and what is counted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_case import REPLACED, TRAIN, models, run, with_lost_numbers
from pydantic import ValidationError
from test_losses import log_softmax, naive_forward_kl

import tiny
from radistill.conversion import convert
from radistill.distillation.checks import Job
from radistill.distillation.on_policy import OnPolicy
from radistill.distillation.settings import DistillSettings, OnPolicySettings
from radistill.errors import RadistillError
from radistill.models.endings import end_tokens
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document, batches

ALWAYS = {"share": 1.0, "max_new_tokens": 9}


def settings_with(on_policy: dict[str, Any], **fields: Any) -> DistillSettings:
    given = {"steps": 1, "tokens_per_batch": 100, "eval_steps": 2, "report_to": "none", **fields}
    return DistillSettings.model_validate({**given, "on_policy": on_policy})


def writer(student: Model, seed: int = 0, steps: int = 1, batches_per_step: int = 1, **fields: Any) -> OnPolicy:
    """As a training by `settings_with` has it."""
    settings = settings_with({**ALWAYS, **fields}, steps=steps, gradient_accumulation=batches_per_step)
    assert settings.on_policy is not None
    return OnPolicy(Job(student, student, TRAIN, TRAIN, settings, [], seed), settings.on_policy)


@torch.no_grad()
def naive_greedy(model: Model, prompt: tuple[int, ...], most: int) -> list[int]:
    """Token by token, alone, without a cache."""
    written: list[int] = []
    while len(written) < most and not (written and written[-1] in end_tokens(model)):
        logits = model.network(input_ids=torch.tensor([[*prompt, *written]]), use_cache=False).logits[0, -1]
        written.append(int(logits.argmax()))
    return written


def test_the_share_goes_in_a_line_from_the_first_step_to_the_last() -> None:
    rising = OnPolicySettings(share=0.2, final_share=0.8)
    assert [rising.share_at(step, 4) for step in (1, 2, 3, 4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rising.share_at(1, 1) == 0.2
    assert OnPolicySettings(share=0.3).share_at(9, 9) == pytest.approx(0.3)
    assert OnPolicySettings(share=0.0, final_share=1.0).share_at(5, 5) == 1.0


def test_batches_are_replaced_as_often_as_scheduled() -> None:
    _, student = models()
    found = writer(student, steps=2000, batches_per_step=2, share=0.2, final_share=0.8)
    chosen = [found.replaces(position) for position in range(4000)]
    quarters = [sum(chosen[start : start + 1000]) / 1000 for start in range(0, 4000, 1000)]
    assert quarters == pytest.approx([0.275, 0.425, 0.575, 0.725], abs=0.05)
    again = writer(student, steps=2000, batches_per_step=2, share=0.2, final_share=0.8)
    assert [again.replaces(position) for position in reversed(range(4000))] == chosen[::-1]
    other = writer(student, seed=1, steps=2000, batches_per_step=2, share=0.2, final_share=0.8)
    assert [other.replaces(position) for position in range(4000)] != chosen
    assert all(writer(student, steps=50).replaces(position) for position in range(50))


def test_greedy_responses_are_those_of_a_plain_loop() -> None:
    _, student = models("random")
    found = writer(student, temperature=0).write(student.network, TRAIN, 3)
    assert [document.id for document in found] == [document.id for document in TRAIN]
    for document, before in zip(found, TRAIN, strict=True):
        prompt = before.tokens[: before.response_start]
        assert document.response_start == len(prompt)
        assert document.tokens == (*prompt, *naive_greedy(student, prompt, 9))


def test_samples_depend_on_seed_and_position_and_leave_torchs_random_numbers_alone() -> None:
    _, student = models("random")
    state = torch.get_rng_state()
    found = [
        writer(student, seed).write(student.network, TRAIN, place) for seed, place in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert found[0] == found[1]
    assert len({tuple(documents) for documents in map(tuple, found)}) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_response_stays_within_the_models_context() -> None:
    _, student = models()
    long = Document("long", tuple([5] * 510), 508)
    (found,) = writer(student, max_new_tokens=50, temperature=0).write(student.network, [long], 0)
    assert len(found.tokens) <= 512
    full = Document("full", tuple([5] * 513), 512)
    (found,) = writer(student, max_new_tokens=50, temperature=0).write(student.network, [full], 0)
    assert len(found.tokens) == 513


def test_tokens_that_the_teacher_does_not_know_are_not_written() -> None:
    student = tiny.model("llama", vocab_size=320)
    prompts = [document.tokens for document in TRAIN]
    free = generate(student, prompts, max_new_tokens=9, temperature=1.0)
    assert max(max(tokens) for tokens in free) >= tiny.VOCAB_SIZE
    limited = generate(student, prompts, max_new_tokens=9, temperature=1.0, vocabulary=tiny.VOCAB_SIZE)
    assert max(max(tokens) for tokens in limited) < tiny.VOCAB_SIZE
    # The teacher has no embedding for them, so that training would fail.
    result = run(convert(student, REPLACED, init="zero"), tiny.model("llama", seed=1), settings_with(ALWAYS, steps=4))
    assert result.steps == 4


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 400])
def test_batches_have_room_for_either_response(tokens_per_batch: int) -> None:
    groups = batches(TRAIN, tokens_per_batch, max_new_tokens=30)
    assert sorted(document.id for group in groups for document in group) == sorted(document.id for document in TRAIN)
    for group in groups:
        longest = max(max(len(document.tokens), document.response_start + 30) for document in group)
        assert len(group) == 1 or len(group) * longest <= tokens_per_batch
    assert batches(TRAIN, tokens_per_batch, max_new_tokens=0) == batches(TRAIN, tokens_per_batch)


def test_the_loss_is_that_of_the_responses_and_has_cross_entropy_on_documents_only() -> None:
    """Documents run alone: some of them as they are, the others with what the student, before the step, wrote."""
    count = len(TRAIN)  # one document a batch, all of them in one step
    teacher, student = models("random")
    settings = settings_with(
        {**ALWAYS, "share": 0.5}, tokens_per_batch=1, gradient_accumulation=count, cross_entropy=0.25
    )
    own = writer(student, batches_per_step=count, share=0.5)
    values: dict[bool, list[float]] = {True: [], False: []}
    tokens = 0
    order = [document for group in batches(TRAIN, 1, max_new_tokens=9) for document in group]
    for position, index in enumerate(torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()):
        document, is_own = order[index], own.replaces(position)
        if is_own:
            (document,) = own.write(student.network, [document], position)
        ids, response = torch.tensor([document.tokens]), slice(document.response_start - 1, -1)
        with torch.no_grad():
            p, q = (model.network(input_ids=ids).logits[0, response] for model in (teacher, student))
        divergence = torch.tensor(naive_forward_kl(p, q))
        targets = document.tokens[document.response_start :]
        cross_entropy = torch.tensor(
            [-log_softmax(row, 1.0)[token] for row, token in zip(q.tolist(), targets, strict=True)]
        )
        share = 0.0 if is_own else 0.25
        values[is_own] += (share * cross_entropy + (1 - share) * divergence).tolist()
        tokens += len(document.tokens)
    result = run(student, teacher, settings)
    everything = values[True] + values[False]
    assert result.curve[0]["loss"] == pytest.approx(sum(everything) / len(everything), rel=1e-5)
    assert result.curve[0]["on_policy"] == pytest.approx(len(values[True]) / len(everything))
    assert 0.2 < result.curve[0]["on_policy"] < 0.8
    assert (result.tokens, result.response_tokens) == (tokens, len(everything))


@pytest.mark.slow
def test_the_student_learns_from_its_own_responses() -> None:
    teacher, student = models("zero")
    settings = settings_with(
        {**ALWAYS, "max_new_tokens": 20},
        steps=20,
        tokens_per_batch=1000,
        new_block_learning_rate=3e-2,
        other_learning_rate=3e-3,
        eval_steps=20,
        loss={"kind": "reverse-kl"},
    )
    result = run(student, teacher, settings, heldout=TRAIN)
    assert result.evaluations[-1]["kl"] < 0.8 * result.evaluations[0]["kl"]
    assert [row["on_policy"] for row in result.curve] == [1.0] * 20


def test_responses_that_end_at_once_are_learnt_from() -> None:
    """The likeliest token is always the end: a response of one token, and a loss on it."""
    teacher, student = models("random")
    with torch.no_grad():
        student.network.get_output_embeddings().weight.zero_()  # of equal tokens the first is taken
    student.network.generation_config.eos_token_id = 0
    found = writer(student, temperature=0).write(student.network, TRAIN, 0)
    assert all(document.tokens[document.response_start :] == (0,) for document in found)
    result = run(student, teacher, settings_with({**ALWAYS, "temperature": 0}, steps=2, tokens_per_batch=10_000))
    assert result.response_tokens == 2 * len(TRAIN)


@pytest.mark.parametrize("fields", [{"precision": "bfloat16"}, {"gradient_checkpointing": True}])
def test_it_writes_whatever_the_training_saves(fields: dict[str, Any]) -> None:
    teacher, student = models("random")
    result = run(student, teacher, settings_with(ALWAYS, steps=2, **fields))
    assert result.response_tokens > 2
    assert all(math.isfinite(row["loss"]) for row in result.curve)


def test_a_failed_batch_is_saved_as_it_was_written(tmp_path: Path) -> None:
    teacher, student = models("random")
    with_lost_numbers(student)
    with pytest.raises(RadistillError, match="the loss is nan at step 1, on the documents train-"):
        run(student, teacher, settings_with(ALWAYS), folder=tmp_path)
    (saved, *_) = json.loads((tmp_path / "failed_batch.json").read_text())["documents"]
    before = next(document for document in TRAIN if document.id == saved["id"])
    assert tuple(saved["tokens"][: saved["response_start"]]) == before.tokens[: before.response_start]
    assert tuple(saved["tokens"]) != before.tokens


def test_the_outline_and_the_log_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = models()
    run(student, teacher, settings_with({**ALWAYS, "share": 0.5}, steps=8))
    printed = " ".join(capsys.readouterr().err.split())
    assert "of 8 batches that the student writes itself, up to 9 tokens a response at temperature 1;" in printed
    assert "on-policy" in printed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 1.5}, "share"),
        ({"share": 0.0}, "share is 0 throughout"),
        ({"share": 0, "final_share": 0}, "share is 0 throughout"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 3}, "top_k"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OnPolicySettings.model_validate(fields)


def test_cross_entropy_without_documents_is_refused() -> None:
    teacher, student = models()
    with pytest.raises(RadistillError, match=r"cross_entropy counts on documents only, .* set it to 0"):
        run(student, teacher, settings_with(ALWAYS, cross_entropy=0.1))
    assert settings_with({**ALWAYS, "final_share": 0.5}, cross_entropy=0.1).contradiction is None
