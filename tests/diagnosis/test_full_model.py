"""What a search remembers of the full model: never more than it has room for, and never with another result."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from test_diagnose import KL, documents
from test_replaceability import blocks_of

import tiny
from radistill.diagnosis.diagnose import diagnose
from radistill.diagnosis.full_model import room_for
from radistill.diagnosis.selectors.gates import differentiate
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.models import logits
from radistill.models.anatomy import anatomy_of
from radistill.models.known_configs import known_config
from radistill.models.loading import load
from radistill.models.sequences import Document
from radistill.pipeline.memory import _diagnose
from radistill.pipeline.work import Work
from radistill.recipes import shipped_recipes
from radistill.runs.recipe import load_recipe

GIB = 2**30


def kept_bytes(trials: Trials) -> tuple[int, int]:
    """Of the hidden states and of the log-probabilities that the full models hold, each storage once."""
    states, logs = {}, 0
    for full in chain(*trials._own):
        for inputs in full._prefixes._kept.values():
            states |= {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in inputs.values()}
        logs += 0 if full._logs is None else full._logs.numel() * 4
    return sum(states.values()), logs


def judged(trials: Trials) -> Iterator[Any]:
    """Everything that a judgement is made of, of sets that start at every layer."""
    for near in ([], [1, 2]):
        trials.stay_near(near)
        for layers in ([0], [1, 3], [2], [0, 1, 2, 3], [3], []):
            draft = trials.run(layers)
            yield [one.tolist() for one in draft.agreements], draft.found, draft.nats, draft.accepted


@pytest.mark.parametrize("blocks", [False, True])
def test_what_is_computed_again_is_the_same_to_the_last_bit(blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_NUMBERS", 7 * tiny.VOCAB_SIZE)
    model = tiny.model("llama")
    substitutes = blocks_of(model) if blocks else None
    ample = Trials(model, documents(), KL, substitutes=substitutes, tokens_per_batch=40)
    found = list(judged(ample))
    everything = kept_bytes(ample)
    assert all(full._logs is not None for full in ample._own[0])
    for gib in (sum(everything) / 2 / GIB, everything[0] / 2 / GIB, 1e-9):
        tight = Trials(model, documents(), KL, substitutes=substitutes, tokens_per_batch=40, memory_gib=gib)
        assert list(judged(tight)) == found
        assert sum(kept_bytes(tight)) < sum(everything)
    assert kept_bytes(tight)[1] == 0


def test_no_more_is_kept_than_there_is_room_for() -> None:
    model = tiny.model("llama", layers=8)
    generator = torch.Generator().manual_seed(0)
    texts = [
        Document(str(n), tuple(torch.randint(4, 60, (20 + n,), generator=generator).tolist()), 5) for n in range(9)
    ]
    padded = sum(full.batch.input_ids.numel() for full in Trials(model, texts, KL)._own[0])
    whole = 2 * 8 * padded * 32 * 4
    for room in (whole, whole + 9 * 15 * 4 * tiny.VOCAB_SIZE, whole / 2, whole / 3):
        trials = Trials(model, texts, KL, memory_gib=room / GIB)
        trials.stay_near([5, 6])
        trials.run([5, 7])
        found = room_for(model.anatomy, 4, padded, room / GIB)
        states, logs = kept_bytes(trials)
        assert states <= found.states <= room
        assert logs <= found.logits
        assert states + logs <= room
        assert found.every == (1 if room >= whole else 2 if room == whole / 2 else 4)


def test_a_gradient_through_what_is_computed_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_NUMBERS", 7 * tiny.VOCAB_SIZE)
    model = tiny.model("llama")
    gradients = []
    for gib in (1.0, 1e-9):
        trials = Trials(model, documents(), KL, memory_gib=gib)
        loss, gradient = differentiate(trials, model.anatomy.attention_layers, torch.tensor([0.9, 0.4, 0.7, 0.2]))
        gradients.append((loss, gradient.tolist()))
    assert gradients[0][0] > 0
    assert gradients[0] == gradients[1]


def test_a_plan_does_not_depend_on_the_memory() -> None:
    model = tiny.model("llama", layers=6)
    plans = [diagnose(model, documents(), 3, by="redundancy", memory_gib=gib) for gib in (1.0, 1e-9)]
    assert plans[0].search == plans[1].search
    assert plans[0].replace == plans[1].replace


@pytest.mark.parametrize("name", ["llama-3.2-3b-rad", "llama-3.2-3b-rad-8b-teacher", "qwen3-4b"])
def test_a_search_of_three_billion_parameters_needs_at_most_four_gib_beside_them(name: str) -> None:
    recipe = load_recipe(shipped_recipes()[name])
    config = known_config(recipe.model)
    assert config is not None
    anatomy = anatomy_of(config)
    recipe = recipe.model_copy(update={"diagnose": recipe.diagnose.model_copy(update={"by": "redundancy"})})
    work = Work(recipe, anatomy, config.max_position_embeddings)
    terms, bounds = _diagnose(work, None), work.lengths("data")  # type: ignore[arg-type]
    assert 1 < sum(terms.values()) / GIB <= 4
    # What it was when everything was kept.
    tokens = recipe.data.calibration * bounds.document
    everything = tokens * anatomy.hidden_size * 2 * anatomy.num_layers
    everything += 4 * recipe.data.calibration * bounds.response * anatomy.vocab_size
    assert everything / GIB > 10


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_has_the_same_plan_with_little_memory() -> None:
    model = load("smollm2-135m")
    text = "The three little pigs built houses of straw, sticks and bricks, and the wolf blew two of them down. "
    tokens = model.tokenizer(text * 6)["input_ids"]
    texts = [Document(str(n), tuple(tokens[n : n + 60 + n]), 8) for n in range(3)]
    plans = []
    for gib in (3.0, 1e-9):
        plans.append(diagnose(model, texts, 4, by="redundancy", passes=40, memory_gib=gib))
    assert plans[0].search == plans[1].search
    assert plans[0].replace == plans[1].replace


def test_logits_that_are_not_finite_are_refused_in_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_NUMBERS", tiny.VOCAB_SIZE)
    model = tiny.model("llama")
    with torch.no_grad():
        model.network.get_output_embeddings().weight[7] = float("inf")
    with pytest.raises(RadistillError, match="NaN or infinite on the calibration data"):
        Trials(model, documents(), KL)
