"""End-to-end distillation: what is learnt, what stays as it is, and that the figures are what they are called."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_case import HELDOUT, REPLACED, TRAIN, lasting, models, run, weights
from pydantic import ValidationError
from test_losses import log_softmax, naive, naive_forward_kl
from torch import Tensor

import tiny
from radistill.conversion import convert, new_parameters
from radistill.distillation.distill import DistillResult, distill
from radistill.distillation.heldout import distance
from radistill.distillation.loop import parameter_groups
from radistill.distillation.settings import DistillSettings
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Document, batch_order

CURVE = Path(__file__).with_name("curve.json")
QUICK = DistillSettings(steps=3, tokens_per_batch=100, new_block_learning_rate=1e-2, eval_steps=2)


def changed(model: Model, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}


def with_(**fields: Any) -> DistillSettings:
    return DistillSettings.model_validate({**QUICK.model_dump(), **fields})


def test_the_student_learns_in_thirty_steps() -> None:
    teacher, student = models("zero")
    settings = with_(steps=30, tokens_per_batch=400, new_block_learning_rate=3e-2, other_learning_rate=3e-3)
    result = run(student, teacher, settings, heldout=TRAIN)
    assert result.evaluations[-1]["kl"] < 0.3 * result.evaluations[0]["kl"]
    assert result.evaluations[-1]["agreement"] > result.evaluations[0]["agreement"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_twenty_steps_follow_the_committed_curve(accumulation: int) -> None:
    """A refactor gives these losses again; `PYTHONPATH=tests python tests/distillation/test_distill.py` renews them."""
    expected = json.loads(CURVE.read_text(encoding="utf-8"))[str(accumulation)]
    found = committed_run(accumulation).to_json()
    for part in ("curve", "evaluations"):
        for row, before in zip(found[part], expected[part], strict=True):
            assert row == pytest.approx(before, rel=1e-6, abs=1e-6)
    for name in ("tokens", "response_tokens", "kept_step"):
        assert found[name] == expected[name]


def committed_run(accumulation: int) -> DistillResult:
    teacher, student = models("random")
    settings = with_(
        steps=20,
        gradient_accumulation=accumulation,
        new_block_learning_rate=3e-3,
        other_learning_rate=3e-4,
        eval_steps=8,
    )
    return run(student, teacher, settings)


def test_gradients_that_were_there_before_count_for_nothing() -> None:
    results = []
    for left_over in (0.0, 1.0):
        teacher, student = models()
        for parameter in student.network.parameters():
            parameter.grad = torch.full_like(parameter, left_over) if left_over else None
        results.append((lasting(run(student, teacher, QUICK)), weights(student)))
        assert all(parameter.grad is None for parameter in student.network.parameters())
    assert results[0][0] == results[1][0]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())


def test_frozen_weights_and_the_teacher_stay_bit_for_bit() -> None:
    teacher, student = models()
    before, of_teacher = weights(student), weights(teacher)
    teacher.network.train()
    flagged = next(student.network.parameters()).requires_grad_(False)
    fingerprint = student.fingerprint
    run(student, teacher, QUICK)
    assert changed(student, before) <= new_parameters(student, REPLACED)
    assert {name.split(".mamba.")[1] for name in changed(student, before)} >= {"in_proj.weight", "out_proj.weight"}
    assert not changed(teacher, of_teacher)
    assert teacher.network.training
    assert not student.network.training
    assert [name for name, p in student.network.named_parameters() if not p.requires_grad] == [
        "model.embed_tokens.weight"
    ]
    assert not flagged.requires_grad
    assert all(parameter.grad is None for parameter in student.network.parameters())
    assert student.network.config.use_cache
    assert student.fingerprint != fingerprint  # not the one remembered from before


def test_everything_learns_when_the_rest_has_a_rate() -> None:
    teacher, student = models("random")
    before = weights(student)
    run(student, teacher, with_(other_learning_rate=1e-3, keep="last"))
    assert len(changed(student, before)) > 0.9 * len(before)


def test_the_first_loss_is_the_mean_over_the_tokens_of_the_whole_step() -> None:
    """Against documents run alone: prompts, padding and the split into batches must not count."""
    teacher, student = models("random")
    loss = {"kind": "forward-kl", "temperature": 2.0}
    settings = with_(steps=1, gradient_accumulation=len(TRAIN), tokens_per_batch=1, loss=loss)
    values: list[float] = []
    for document in TRAIN:
        ids = torch.tensor([document.tokens])
        with torch.no_grad():
            logits = [
                model.network(input_ids=ids).logits[0, document.response_start - 1 : -1] for model in (teacher, student)
            ]
        values += naive_forward_kl(*logits, temperature=2.0)
    result = run(student, teacher, settings)
    assert result.curve[0]["loss"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert result.tokens == sum(len(document.tokens) for document in TRAIN)
    assert result.response_tokens == len(values)


def test_cross_entropy_and_hidden_states_are_added_as_the_settings_say() -> None:
    teacher, student = models("random")
    settings = with_(
        steps=1,
        tokens_per_batch=10_000,
        cross_entropy=0.25,
        hidden={"kind": "mse", "weight": 3.0},
        loss={"kind": "jsd"},
    )
    values: list[float] = []
    for document in TRAIN:
        ids, response = torch.tensor([document.tokens]), slice(document.response_start - 1, -1)
        with torch.no_grad():
            p, q = (model.network(input_ids=ids, output_hidden_states=True) for model in (teacher, student))
        own = [log_softmax(row, 1.0) for row in q.logits[0, response].tolist()]
        cross_entropy = [
            -row[token] for row, token in zip(own, document.tokens[document.response_start :], strict=True)
        ]
        divergence = naive("jsd-0.5", p.logits[0, response], q.logits[0, response])
        hidden = (p.hidden_states[-1] - q.hidden_states[-1])[0, response].square().mean(dim=1)
        values += (0.25 * torch.tensor(cross_entropy) + 0.75 * divergence + 3.0 * hidden).tolist()
    result = run(student, teacher, settings)
    assert result.curve[0]["loss"] == pytest.approx(sum(values) / len(values), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [None, {"kind": "cosine"}])
@pytest.mark.parametrize("kind", ["reverse-kl", "jsd", "skewed-kl", "total-variation", "lk-alpha", "lk-lambda"])
def test_every_loss_brings_the_student_nearer(kind: str, hidden: dict[str, Any] | None) -> None:
    teacher, student = models("zero")
    settings = with_(
        steps=10,
        tokens_per_batch=400,
        new_block_learning_rate=3e-2,
        other_learning_rate=3e-3,
        loss={"kind": kind, "temperature": 2.0},
        hidden=hidden,
    )
    result = run(student, teacher, settings, heldout=TRAIN)
    assert result.evaluations[-1]["kl"] < 0.8 * result.evaluations[0]["kl"]


def test_two_half_batches_are_one_batch() -> None:
    same_length = [
        Document(str(start), tuple(range(start, start + 30)), response_start)
        for start, response_start in enumerate([1, 29, 15, 3])
    ]
    found = []
    for tokens_per_batch, accumulation in ((120, 1), (60, 2)):
        teacher, student = models("random")
        settings = with_(
            steps=3, tokens_per_batch=tokens_per_batch, gradient_accumulation=accumulation, warmup_ratio=0.0
        )
        found.append((run(student, teacher, settings, train=same_length), weights(student)))
    (whole, whole_weights), (halves, halves_weights) = found
    assert [row["loss"] for row in halves.curve] == pytest.approx([row["loss"] for row in whole.curve], rel=1e-4)
    assert halves.curve[0]["loss"] == pytest.approx(whole.curve[0]["loss"], rel=1e-6)
    assert halves.curve[0]["gradient_norm"] == pytest.approx(whole.curve[0]["gradient_norm"], rel=1e-5)
    assert halves.tokens == whole.tokens == 3 * 120
    for name, tensor in whole_weights.items():
        torch.testing.assert_close(halves_weights[name], tensor, rtol=0, atol=1e-4)


def test_measures_at_the_start_on_the_way_and_at_the_end() -> None:
    teacher, student = models("random")
    at_start = distance(teacher.network, student.network, HELDOUT, teacher.pad_token_id)
    result = run(student, teacher, with_(steps=5, eval_steps=2, keep="last"))
    at_end = distance(teacher.network, student.network, HELDOUT, teacher.pad_token_id)
    assert [row["step"] for row in result.evaluations] == [0, 2, 4, 5]
    assert [row["step"] for row in result.curve] == [1, 2, 3, 4, 5]
    assert result.evaluations[0] == pytest.approx(
        {
            "step": 0,
            "tokens": 0,
            "kl": at_start.kl,
            "agreement": at_start.agreement,
            "sampled_acceptance": at_start.sampled_acceptance,
            "cross_entropy": at_start.student_nll,
        },
        rel=1e-5,
    )
    assert result.evaluations[-1]["kl"] == pytest.approx(at_end.kl, rel=1e-5)
    assert result.evaluations[1]["tokens"] == result.curve[1]["tokens"]
    assert result.tokens == result.curve[-1]["tokens"]
    assert result.steps == 5
    assert result.seconds > 0


def test_the_result_survives_json() -> None:
    teacher, student = models()
    result = run(student, teacher, with_(steps=1))
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert DistillResult(**data) == result
    assert {"steps", "tokens", "seconds", "curve", "evaluations"} <= data.keys()


def test_the_seed_decides_the_order() -> None:
    losses = []
    for seed in (0, 0, 1):
        teacher, student = models()
        losses.append([row["loss"] for row in run(student, teacher, QUICK, seed=seed).curve])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("groups", "needed"), [(5, 12), (1, 3), (7, 7), (7, 2)])
def test_every_batch_comes_once_an_epoch(groups: int, needed: int) -> None:
    order = batch_order(groups, needed, seed=3)
    assert len(order) == needed
    for start in range(0, needed - groups + 1, groups):
        assert sorted(order[start : start + groups]) == list(range(groups))
    if groups == 5:
        assert order[:5] != order[5:10]


def test_parameter_groups() -> None:
    _, student = models()
    new = new_parameters(student, REPLACED)
    settings = with_(other_learning_rate=1e-4, weight_decay=0.1)
    groups = parameter_groups(student.network, new, settings)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-2, 0.1),
        (1e-2, 0.0),
        (1e-4, 0.1),
        (1e-4, 0.0),
    ]
    names = {id(parameter): name for name, parameter in student.network.named_parameters()}
    grouped = [{names[id(parameter)] for parameter in group["params"]} for group in groups]
    assert grouped[0] | grouped[1] == new
    assert {name.rpartition(".")[2] for name in grouped[1]} >= {"A_log", "D", "dt_bias", "bias"}
    assert sum(map(len, grouped)) == len(names)
    for name, parameter in student.network.named_parameters():
        parameter.requires_grad_(name in new)
    assert len(parameter_groups(student.network, new, settings)) == 2


def test_a_teacher_of_another_architecture_and_padding() -> None:
    _, student = models()
    teacher = tiny.model("qwen2", layers=2, seed=5, vocab_size=288)
    result = run(student, teacher, with_(steps=20, other_learning_rate=1e-2))
    assert result.evaluations[-1]["kl"] < result.evaluations[0]["kl"]


def test_one_document_of_two_tokens() -> None:
    teacher, student = models("random")
    shortest = [Document("shortest", (1, 2), 1)]
    result = run(student, teacher, QUICK, train=shortest, heldout=shortest)
    assert result.response_tokens == 3
    assert result.tokens == 6


def test_a_loss_that_is_not_finite_names_step_and_documents(tmp_path: Path) -> None:
    teacher, student = models()
    with torch.no_grad():
        teacher.network.get_input_embeddings().weight[250] = math.nan
    train, heldout = ([document for document in part if 250 not in document.tokens] for part in (TRAIN, HELDOUT))
    train.append(Document("poisoned", tuple(range(220, 256)), 3))
    with pytest.raises(RadistillError, match=r"the loss is nan at step 1, on the documents .*poisoned") as refused:
        run(student, teacher, with_(tokens_per_batch=2000), train=train, heldout=heldout, folder=tmp_path)
    saved = json.loads((tmp_path / "failed_batch.json").read_text())
    assert saved["step"] == 1
    assert {"id": "poisoned", "tokens": list(range(220, 256)), "response_start": 3} in saved["documents"]
    assert str(tmp_path / "failed_batch.json") in str(refused.value)
    assert all(parameter.requires_grad for parameter in student.network.parameters())


def test_a_gradient_that_is_not_finite_is_refused_before_the_weights_change() -> None:
    teacher, student = models()
    before = weights(student)
    name = sorted(new_parameters(student, REPLACED))[0]
    handle = student.network.get_parameter(name).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RadistillError, match="the gradient is not finite at step 1, on the documents train-"):
        run(student, teacher, with_(gradient_accumulation=2))
    handle.remove()
    assert not changed(student, before)


def test_what_cannot_be_trained_is_refused() -> None:
    teacher, student = models()
    new = new_parameters(student, REPLACED)

    def refused(match: str, settings: DistillSettings = QUICK, **arguments: Any) -> None:
        given = {"train": TRAIN, "heldout": HELDOUT, "new_parameters": new, "teacher": teacher, **arguments}
        with pytest.raises(RadistillError, match=match):
            distill(student, settings=settings, **given)

    refused("no documents in train", train=[])
    refused("no documents in heldout", heldout=[])
    refused("no parameter 'model.nothing'", new_parameters=[*new, "model.nothing"])
    refused("nothing to train", new_parameters=[])
    refused("document far in train has tokens outside 0 to 259", train=[Document("far", (1, 260), 1)])
    refused("needs a folder", with_(report_to="tensorboard"))
    refused("device is 'cuda:99', which this machine does not offer", with_(teacher_device="cuda:99"))
    refused("share the weight", with_(other_learning_rate=1e-3), teacher=student)
    other = tiny.tokenizer()
    other.add_tokens(["more"])
    wide = tiny.model("llama", hidden_size=64)
    message = "distill.hidden: the teacher's hidden states have 64 numbers and the student's 32; set it to null"
    refused(message, with_(hidden={"kind": "mse"}), teacher=wide)
    stranger = Model(network=teacher.network, tokenizer=other, anatomy=teacher.anatomy, source="stranger")
    refused("teacher stranger has another tokenizer", teacher=stranger)


@pytest.mark.parametrize(
    "field",
    [
        {"steps": 0},
        {"tokens_per_batch": 0},
        {"gradient_accumulation": 0},
        {"new_block_learning_rate": 0},
        {"other_learning_rate": -1},
        {"other_learning_rate": math.inf},
        {"warmup_ratio": 1.5},
        {"scheduler": "cosin"},
        {"max_grad_norm": 0},
        {"eval_steps": 0},
        {"save_seconds": -1},
        {"report_to": "email"},
        {"keep": "first"},
        {"patience": 0},
        {"divergence": 1},
        {"precision": "float16"},
        {"step": 10},
    ],
)
def test_bad_settings_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        DistillSettings.model_validate(field)


def test_nothing_but_our_own_lines_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    teacher, student = models()
    run(student, teacher, QUICK)
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert all(line.startswith("distill") for line in lines if line.strip()), captured.err


@pytest.mark.slow
@pytest.mark.real
def test_two_steps_on_the_real_model(smollm2: Model) -> None:
    """One attention skipped, two short steps at the default rate: the KL on these texts halves."""
    student = convert(smollm2, [25], init="zero")
    texts = [smollm2.tokenizer.encode(f"What is {n} and {n}? It is {2 * n}, of course.") for n in range(4, 8)]
    docs = [Document(str(index), tuple(tokens), 6) for index, tokens in enumerate(texts)]
    settings = DistillSettings(steps=2, tokens_per_batch=200, warmup_ratio=0.0)
    result = distill(student, smollm2, docs, docs, settings, new_parameters=new_parameters(student, [25]))
    assert result.evaluations[-1]["kl"] < 0.7 * result.evaluations[0]["kl"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    committed = {str(count): {**committed_run(count).to_json(), "seconds": 0} for count in (1, 2)}
    CURVE.write_text(json.dumps(committed, indent=1) + "\n", encoding="utf-8")
