"""Searching over swaps: substitutes in the network, fitted blocks that are shared, and kl-guided selection."""

from pathlib import Path

import pytest
import torch

import tiny
from radistill.conversion import convert
from radistill.diagnosis.diagnose import diagnose
from radistill.diagnosis.objectives import objective_from
from radistill.diagnosis.plan import Plan
from radistill.diagnosis.selectors import KLGuided
from radistill.diagnosis.selectors.base import Problem
from radistill.diagnosis.trials import Trials
from radistill.distillation.align import AlignSettings, align
from radistill.distillation.blocks import fit_blocks
from radistill.errors import RadistillError
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, collate
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.substitutes import Substitutes

DOCUMENTS = [
    Document("a", tuple(range(5, 25)), 4),
    Document("b", tuple(range(30, 42)), 1),
    Document("c", tuple(range(100, 160, 2)), 6),
]
FIT = AlignSettings(steps=3, tokens_per_batch=64)
KL = objective_from({"name": "kl"})


def blocks_of(model) -> Substitutes:
    generator = torch.Generator().manual_seed(3)
    blocks = {}
    for layer in model.anatomy.attention_layers:
        block = torch.nn.Linear(32, 32, bias=False)
        block.weight.data = torch.randn((32, 32), generator=generator) * 0.1
        blocks[layer] = block
    return Substitutes(blocks)


def test_swapped_layers_compute_what_the_student_computes() -> None:
    """The draft with fitted blocks is the hybrid: the same logits, without building it."""
    model = tiny.model("llama")
    blocks = fit_blocks(model, DOCUMENTS, FIT, init="random")
    student = convert(model, [0, 2], init="random")
    align(student, model, DOCUMENTS, FIT, replace=[0, 2])
    batch = collate(DOCUMENTS, 0)
    with torch.inference_mode():
        with masked(model, ComponentMask.attention([0, 2]), blocks):
            swapped = response_logits(model.network, batch).logits
        torch.testing.assert_close(swapped, response_logits(student.network, batch).logits)
        with masked(model, ComponentMask.attention([0, 2])):
            skipped = response_logits(model.network, batch).logits
    assert (swapped - skipped).abs().max() > 1e-3


def test_a_block_is_fitted_once_for_every_plan(tmp_path: Path) -> None:
    model = tiny.model("llama")
    blocks = fit_blocks(model, DOCUMENTS, FIT, init="random", folder=tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(blocks.blocks) == [0, 1, 2, 3]
    student = convert(model, [1, 3], init="random")
    align(student, model, DOCUMENTS, FIT, replace=[1, 3], folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    for layer in (1, 3):
        for name, tensor in student.anatomy.mixer(student.network, layer).state_dict().items():
            assert torch.equal(tensor, blocks.blocks[layer].state_dict()[name])
    other = convert(model, [1], init="random", seed=1)  # another start is another fit
    align(other, model, DOCUMENTS, FIT, replace=[1], folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} != written


def test_trials_with_substitutes_are_full_passes_of_the_swapped_model(tmp_path: Path) -> None:
    model = tiny.model("llama")
    blocks = blocks_of(model)
    trials = Trials(model, DOCUMENTS, KL, folder=tmp_path, substitutes=blocks)
    trials.stay_near([1, 2])
    for layers in ([0], [1, 2], [1, 3], [0, 1, 2, 3]):
        batch = collate(DOCUMENTS, 0)
        with torch.inference_mode():
            full = response_logits(model.network, batch).logits.double().log_softmax(-1)
            with masked(model, ComponentMask.attention(layers), blocks):
                draft = response_logits(model.network, batch).logits.double().log_softmax(-1)
        expected = (full.exp() * (full - draft)).sum(-1).mean().item()
        assert trials.judge(layers).kl == pytest.approx(expected, rel=1e-4)
    # Skips of the same layers are other sets, and are not looked up here.
    assert Trials(model, DOCUMENTS, KL, folder=tmp_path).judge([0]).kl != trials.judge([0]).kl
    assert len(list(tmp_path.glob("trials-*.jsonl"))) == 2


def test_kl_guided_keeps_the_layers_whose_return_helps_most() -> None:
    model = tiny.model("llama", layers=5)
    blocks = blocks_of(model)
    trials = Trials(model, DOCUMENTS, KL, substitutes=blocks)
    everything = set(model.anatomy.attention_layers)
    restored = {layer: trials.run(everything - {layer}).kl for layer in everything}
    found = KLGuided().select(Problem(trials, 3))
    assert set(found.layers) == set(sorted(restored, key=restored.__getitem__)[2:])
    assert found.scores is not None
    assert found.scores[0] == pytest.approx(restored[0] - trials.run(everything).kl)


@pytest.mark.parametrize(
    "selector", ["greedy", "kl-guided", "gates", "leave-one-out", pytest.param("bayes", marks=pytest.mark.slow)]
)
def test_every_selector_can_search_over_swaps(selector: str, tmp_path: Path) -> None:
    model = tiny.model("llama")
    plan = diagnose(model, DOCUMENTS, 2, selector=selector, substitutes=blocks_of(model), folder=tmp_path, passes=30)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.by == "replaceability"
    assert "skip" not in (plan.score_kind or "")
    by_skips = diagnose(model, DOCUMENTS, 2, selector="leave-one-out", by="redundancy")
    assert by_skips.by == "redundancy"
    assert by_skips.score_kind == "minus KL(model || draft) in nats with only this layer's attention skipped"


def test_layers_that_their_blocks_reproduce_are_chosen_though_skipping_them_is_not_free() -> None:
    model = tiny.model("llama")
    blocks = blocks_of(model)

    class Same(torch.nn.Module):
        """A block that is the attention itself."""

        def forward(self, hidden_states):
            time = hidden_states.shape[1]
            ids = torch.arange(time)[None]
            rotary = model.network.model.rotary_emb(hidden_states, ids)
            causal = torch.full((1, 1, time, time), float("-inf")).triu(1)
            attention = model.anatomy.mixer(model.network, 1)
            return type(attention).forward(attention, hidden_states, rotary, causal)[0]

    replaced = Substitutes({**blocks.blocks, 1: Same()})
    trials = Trials(model, DOCUMENTS, KL, substitutes=replaced)
    assert trials.judge([1]).kl == pytest.approx(0.0, abs=1e-5)
    assert Trials(model, DOCUMENTS, KL).judge([1]).kl > 1e-2
    assert diagnose(model, DOCUMENTS, 1, substitutes=replaced).replace == [1]


def test_what_does_not_go_together_is_refused() -> None:
    model = tiny.model("llama")
    with pytest.raises(RadistillError, match="selector is kl-guided, which compares fitted blocks; change that"):
        diagnose(model, DOCUMENTS, 2, selector="kl-guided", by="redundancy")
    blocks = blocks_of(model)
    with pytest.raises(RadistillError, match="throughput-measured, which is about drafts that skip attention"):
        diagnose(model, DOCUMENTS, 2, objective="throughput-measured", substitutes=blocks)
    with pytest.raises(RadistillError, match=r"give substitutes=fit_blocks\(model, documents\), or by="):
        diagnose(model, DOCUMENTS, 2)
    with pytest.raises(RadistillError, match="by is redundancy, which skips attention and would not use the substi"):
        diagnose(model, DOCUMENTS, 2, by="redundancy", substitutes=blocks)
    with pytest.raises(RadistillError, match=r"diagnose\.by is 'luck', but it must be one of redun"):
        diagnose(model, DOCUMENTS, 2, by="luck")  # type: ignore[arg-type]
    with pytest.raises(RadistillError, match=r"layer \d has no block"):
        diagnose(model, DOCUMENTS, 2, substitutes=Substitutes({0: blocks.blocks[0]}))
