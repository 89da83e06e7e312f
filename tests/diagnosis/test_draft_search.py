"""The search for a draft over parts of layers, against every mask that there is."""

import itertools

import pytest
import torch

import tiny
from radistill.diagnosis.components import measure_drafts
from radistill.diagnosis.draft_search import find_draft
from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.latency import Latencies
from radistill.diagnosis.objectives import ThroughputModelled
from radistill.diagnosis.selectors.greedy import Greedy
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.acceptance import mean_accepted_length
from radistill.speculation.masks import ComponentMask, masked

PASSES = {1: 9.0, 2: 9.2, 3: 9.4, 5: 9.8, 9: 10.6, 17: 12.2}


def answered(model: Model) -> list[Document]:
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(4, 60, (5 + n,), generator=generator).tolist() for n in range(3)]
    responses = generate(model, prompts, max_new_tokens=10, description=None)
    return [
        Document(str(n), (*prompt, *response), len(prompt))
        for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def timed(model: Model) -> Latencies:
    """Parts whose costs differ, so that what is skipped matters."""
    parts = {
        (layer, component): 0.5 + 0.7 * layer + 0.2 * number
        for layer in range(model.anatomy.num_layers)
        for number, component in enumerate(Component)
        if model.anatomy.modules(model.network, layer, component)
    }
    return Latencies(64, parts, 0.5, 0.5, PASSES)


def speed(model: Model, documents: list[Document], latencies: Latencies, mask: ComponentMask) -> float:
    """Tokens a second at the best draft length, one document at a time."""
    agreements = []
    for document in documents:
        ids, start = torch.tensor([document.tokens]), document.response_start
        with torch.no_grad(), masked(model, mask):
            written = model.network(input_ids=ids).logits[0].argmax(-1)[start - 1 : -1]
        agreements.append(written == ids[0, start:])
    return max(
        (mean_accepted_length(agreements, length) + 1) / (length * latencies.step(mask) + latencies.verify(length + 1))
        for length in range(1, 17)
    )


@pytest.mark.parametrize(("family", "layers"), [("llama", 3), ("falcon_h1", 2), ("qwen3_5_text", 3)])
def test_the_fastest_of_all_masks_is_found(family: str, layers: int) -> None:
    model = tiny.model(family, layers=layers)
    documents, latencies = answered(model), timed(model)
    parts = sorted(latencies.components)
    assert {component for _, component in parts} >= {Component.MLP, Component.ATTENTION}
    masks = [ComponentMask(frozenset(chosen)) for size in range(1, 4) for chosen in itertools.combinations(parts, size)]
    speeds = [speed(model, documents, latencies, mask) for mask in masks]
    found = find_draft(model, documents, latencies, 3, selector=Greedy(width=9, swap_width=9))
    assert 1 <= len(found.skipped) <= 3
    assert speed(model, documents, latencies, found) == pytest.approx(max(speeds))
    assert min(speeds) < max(speeds)


def test_a_judgement_of_parts_is_that_of_their_mask() -> None:
    model = tiny.model("falcon_h1")
    documents, latencies = answered(model), timed(model)
    parts = sorted(latencies.components)
    trials = Trials(model, documents, ThroughputModelled(latencies), parts=parts)
    chosen = [0, 4, 8]
    judged: Judgement = trials.judge(chosen)
    assert judged.mask.skipped == {parts[place] for place in chosen}
    [draft] = measure_drafts(model, {0.0: documents}, {"": judged.mask}).drafts
    assert draft.temperatures[0].rate.value == pytest.approx(judged.acceptance_rate)
    assert draft.kl is not None
    assert draft.kl.value == pytest.approx(judged.kl, rel=1e-4)
    assert [trials.called(place) for place in (0, 1)] == ["attention:0", "mlp:0"]
    assert trials.identity != Trials(model, documents, ThroughputModelled(latencies)).identity


def test_a_search_ends_with_its_passes_and_refuses_to_skip_all() -> None:
    model = tiny.model("llama", layers=2)
    documents, latencies = answered(model), timed(model)
    assert len(find_draft(model, documents, latencies, 3, passes=2).skipped) == 1  # each alone is all that it can try
    with pytest.raises(RadistillError, match="--search is 4, but this model has 4 parts: it must be from 1 to 3"):
        find_draft(model, documents, latencies, 4)
