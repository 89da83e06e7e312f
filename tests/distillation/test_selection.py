"""Tokens at which a drafter can still gain: against a loop, and in a training."""

import math

import pytest
import torch
from distill_case import RESUMABLE, TRAIN, models, run
from test_chunked import states, student_states
from test_losses import naive_forward_kl
from torch import Tensor

import tiny
from radistill.distillation.losses.top_k import top_k_of
from radistill.distillation.selection import TokenSelection, gaining
from radistill.distillation.settings import DistillSettings
from radistill.errors import RadistillError

SELECT = TokenSelection(share=0.4, reference="another")


def with_(**changes: object) -> DistillSettings:
    return RESUMABLE.model_copy(update={"steps": 1, "gradient_accumulation": 1, "tokens_per_batch": 10_000, **changes})


def naive_gaining(teacher: Tensor, student: Tensor, reference: Tensor, share: float) -> list[int]:
    gaps = [
        a - b for a, b in zip(naive_forward_kl(teacher, student), naive_forward_kl(teacher, reference), strict=True)
    ]
    largest = sorted(range(len(gaps)), key=lambda token: (-gaps[token], token))
    return sorted(largest[: math.ceil(share * len(gaps))])


@pytest.mark.parametrize("share", [0.01, 0.4, 1.0])
@pytest.mark.parametrize("vocab", [41, 47])
def test_the_tokens_are_those_of_the_loop(share: float, vocab: int) -> None:
    teacher, student, reference = states(1, vocab), student_states(), states(3)
    whole = [model.logits(slice(None)).detach()[:, :41] for model in (teacher, student, reference)]
    assert gaining(teacher, student, reference, share).tolist() == naive_gaining(*whole, share)
    known = top_k_of(whole[0], 41)
    assert gaining(known, student, reference, share).tolist() == naive_gaining(*whole, share)


def test_of_equals_the_earlier_tokens_are_kept() -> None:
    teacher, student = states(1), student_states()
    assert gaining(teacher, student, student, 0.1).tolist() == [0, 1, 2, 3]


def test_the_loss_is_the_mean_over_the_tokens_that_are_kept() -> None:
    """All documents in one batch; the loop reads each alone."""
    (teacher, student), reference = models("random"), tiny.model("llama", seed=3)
    rows: dict[str, list[Tensor]] = {"teacher": [], "student": [], "reference": []}
    for document in sorted(TRAIN, key=lambda document: (len(document.tokens), document.id)):
        ids, places = torch.tensor([document.tokens]), slice(document.response_start - 1, -1)
        for name, model in (("teacher", teacher), ("student", student), ("reference", reference)):
            with torch.no_grad():
                rows[name].append(model.network(input_ids=ids).logits[0, places])
    p, q, r = (torch.cat(part) for part in rows.values())
    kept = naive_gaining(p, q, r, 0.4)
    assert len(kept) == math.ceil(0.4 * len(p))
    result = run(student, teacher, with_(select=SELECT), reference=reference)
    values = naive_forward_kl(p[kept], q[kept])
    assert result.curve[0]["loss"] == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_all_tokens_are_a_training_without_selection() -> None:
    found = []
    for select, reference in ((None, None), (TokenSelection(share=1, reference="x"), tiny.model("llama", seed=3))):
        teacher, student = models("random")
        found.append(run(student, teacher, with_(steps=3, select=select), reference=reference))
    assert [row["loss"] for row in found[1].curve] == pytest.approx([row["loss"] for row in found[0].curve], rel=1e-6)


def test_what_is_missing_or_does_not_fit_is_refused() -> None:
    teacher, student = models("random")
    with pytest.raises(RadistillError, match="select is set, but a reference is missing; leave both out, or give both"):
        run(student, teacher, with_(select=SELECT))
    with pytest.raises(RadistillError, match="select is null, but a reference is given"):
        run(student, teacher, with_(), reference=teacher)
    other = tiny.model("llama")
    other.tokenizer.add_tokens(["<|extra|>"])
    with pytest.raises(RadistillError, match=r"reference .* has another tokenizer than the student"):
        run(student, teacher, with_(select=SELECT), reference=other)
