"""How much of a branch is verified: what the network learns, what it is compared with, and its file."""

from pathlib import Path

import pytest
import torch
from test_decode import assert_lossless, prompts_of
from test_drafters import PAIRS
from test_measure import answered

from radistill.errors import RadistillError
from radistill.models.generation import generate
from radistill.models.sequences import Document
from radistill.speculation.branching import training
from radistill.speculation.branching.length import ALL, NONE, SOME, Length, load_length, save_length
from radistill.speculation.branching.loop import branching_generate
from radistill.speculation.branching.training import Beginnings, beginnings_of, train_length
from same_process import SameProcess


def invented(rounds: int, seed: int, told: bool) -> Beginnings:
    """States that tell the case, or do not; confidence is right half of the time."""
    generator = torch.Generator().manual_seed(seed)
    cases = torch.randint(3, (rounds,), generator=generator)
    states = torch.randn(rounds, 6, generator=generator)
    if told:
        states[:, 0] += 100 + 6 * cases
    half = torch.rand(rounds, generator=generator) < 0.5
    return Beginnings(states, cases, torch.where(half, cases, (cases + 1) % 3))


@pytest.mark.parametrize("told", [True, False])
def test_what_the_states_tell_is_learnt_and_the_report_is_honest(told: bool) -> None:
    data = [invented(40, seed, told) for seed in range(16)]
    network = training.fit(data[:12], seed=0)
    figures = training._compare(network, data[:12], data[12:])
    assert (figures.trained, figures.held_out) == (480, 160)
    assert 0.4 < figures.right_by_confidence < 0.6
    if told:
        assert figures.right > 0.9
        assert figures.verdict.startswith("better than confidence alone: on 160 held-out rounds it expects ")
    else:
        assert figures.right < 0.5
        assert figures.verdict.startswith("worse than confidence alone")


def test_rounds_that_could_begin_in_an_answer() -> None:
    """Against one pass for each prefix."""
    target, drafter = PAIRS["hybrid target"]
    [document] = answered(target, 0.0, count=1, tokens=8)
    found = beginnings_of(target, drafter, document, 4, 0.1)
    start, tokens = document.response_start, list(document.tokens)
    assert len(found.cases) == len(tokens) - start - 3

    def drafted(text: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return drafter.network(torch.tensor([text])).logits[0, -1]

    for number, case in enumerate(found.cases.tolist()):
        newest = start + number
        run = unsure = 0
        while run < 3 and int(drafted(tokens[: newest + 1 + run]).argmax()) == tokens[newest + 1 + run]:
            run += 1
        while unsure < 3 and drafted(tokens[: newest + 1 + unsure]).softmax(-1).max() >= 0.1:
            unsure += 1
        assert case == {0: NONE, 3: ALL}.get(run, SOME)
        assert found.by_confidence[number] == {0: NONE, 3: ALL}.get(unsure, SOME)
        with torch.no_grad():
            states = target.network(torch.tensor([tokens[:newest]]), output_hidden_states=True).hidden_states
            embedded = target.network.get_input_embeddings()(torch.tensor(tokens[newest]))
        # transformers puts the last layer's states through the final norm.
        seen = torch.cat([*(layer[0, -1] for layer in states[-4:-1]), embedded])
        inner = torch.cat([found.states[number, : 3 * 32], found.states[number, 4 * 32 :]])
        torch.testing.assert_close(inner, seen, rtol=1e-4, atol=1e-4)


def test_a_trained_network_comes_back_from_its_file_and_decodes_losslessly(tmp_path: Path) -> None:
    target, drafter = PAIRS["plain"]
    documents = answered(target, 0.0, count=8, tokens=9)
    network, figures = train_length(target, drafter, documents, draft_length=3, confidence=0.1)
    assert figures.trained + figures.held_out == 8 * 7
    path = tmp_path / "hrad.safetensors"
    save_length(network, path, target, drafter, 3)
    loaded = load_length(path, target, drafter, 3)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in network.state_dict().items())
    prompts = prompts_of(2)
    decoded = branching_generate(
        target, prompts, SameProcess(drafter), draft_length=3, max_new_tokens=8, length=Length(0.1, loaded)
    )
    assert_lossless(target, prompts, generate(target, prompts, max_new_tokens=8, description=None), decoded)

    (tmp_path / "text").write_text("none")
    for arguments, message in [
        ((path, drafter, drafter, 3), "was trained for another target than cousin of tiny llama"),
        ((path, target, target, 3), "was trained for another drafter than tiny llama"),
        ((path, target, drafter, 4), "was trained for draft length 3, not 4; give --draft-length 3"),
        ((tmp_path / "none", target, drafter, 3), "no such file; `radistill drafter train-length` makes one"),
        ((tmp_path / "text", target, drafter, 3), "holds no network for the length of drafts"),
    ]:
        with pytest.raises(RadistillError, match=message):
            load_length(*arguments)


@pytest.mark.parametrize(
    ("count", "draft_length", "message"),
    [(8, 1, "draft length 1 leaves nothing to decide"), (7, 3, "7 answers have 3 tokens or more, but it takes 8")],
)
def test_bad_input_is_one_line(count: int, draft_length: int, message: str) -> None:
    target, drafter = PAIRS["plain"]
    short = [Document(str(number), (5, 6, 7, 8), 1) for number in range(count)]
    with pytest.raises(RadistillError, match=message):
        train_length(target, drafter, short, draft_length=draft_length, confidence=0.5)
