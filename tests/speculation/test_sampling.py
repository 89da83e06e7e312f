"""Speculative sampling against the distribution that it must leave unchanged."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chisquare, ncx2
from torch import Tensor

import tiny
from radistill.models.anatomy import anatomy_of
from radistill.models.loading import Model
from radistill.speculation import sampling
from radistill.speculation.acceptance import expected_acceptance
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask
from radistill.speculation.sampling import Greedy, Proposal, Sampling, accepted_tokens, distribution, draw, residual

LEVEL = 1e-3  # of every chi-square test; the draws are seeded, so a test that passes once always does

P = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.10, 0.0], dtype=torch.float64)
Q = torch.tensor([0.05, 0.45, 0.20, 0.10, 0.15, 0.05], dtype=torch.float64)


def power(probabilities: np.ndarray, draws: int, bias: float = 0.02) -> float:
    """Chance that a chi-square test at `LEVEL` sees `bias` moved between the two tokens where it shows least."""
    p = probabilities[probabilities > 0]
    low, high = sorted(p)[-2:]
    noncentrality = draws * bias**2 * (1 / low + 1 / high)
    return float(ncx2.sf(chi2.isf(LEVEL, len(p) - 1), len(p) - 1, noncentrality))


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    possible = probabilities > 0
    assert counts[~possible].sum() == 0, "a token that the target rules out was drawn"
    return float(chisquare(counts[possible], counts.sum() * probabilities[possible]).pvalue)


def sampled(draws: int, rule: str = "") -> np.ndarray:
    """Counts of the first token that a round of drafts of length 1 brings; `rule` breaks something."""
    generator = torch.Generator().manual_seed(11)
    uniform = torch.rand(3, draws, generator=generator, dtype=torch.float64)
    p, q = P.expand(draws, 1, -1), Q.expand(draws, 1, -1)
    proposal = Proposal(draw(Q.expand(draws, -1), uniform[0])[:, None], [1] * draws, q)
    accepted = accepted_tokens(proposal, p, uniform[1][:, None])
    if rule == "accept too much":
        accepted = accepted_tokens(proposal, p * 1.2, uniform[1][:, None])
    rest = P.expand(draws, -1) if rule == "draw from p after a rejection" else residual(p[:, 0], q[:, 0])
    token = torch.where(accepted == 1, proposal.tokens[:, 0], draw(rest, uniform[2]))
    return torch.bincount(token, minlength=len(P)).numpy()


def test_what_comes_out_has_the_targets_distribution() -> None:
    """With 40,000 draws the test sees a bias of 2 % with a probability above 0.999."""
    assert power(P.numpy(), 40_000) > 0.999
    assert p_value(sampled(40_000), P.numpy()) > LEVEL


@pytest.mark.parametrize("rule", ["accept too much", "draw from p after a rejection"])
def test_the_chi_square_test_can_fail(rule: str) -> None:
    assert p_value(sampled(40_000, rule), P.numpy()) < LEVEL


def test_expected_acceptance_is_what_the_rule_accepts() -> None:
    expected = sum(min(p, q) for p, q in zip(P.tolist(), Q.tolist(), strict=True))
    assert expected_acceptance(P[None].log(), Q[None].log()).item() == pytest.approx(expected)
    draws = 40_000
    generator = torch.Generator().manual_seed(2)
    uniform = torch.rand(2, draws, generator=generator, dtype=torch.float64)
    proposal = Proposal(draw(Q.expand(draws, -1), uniform[0])[:, None], [1] * draws, Q.expand(draws, 1, -1))
    accepted = accepted_tokens(proposal, P.expand(draws, 1, -1), uniform[1][:, None]).double().mean().item()
    assert accepted == pytest.approx(expected, abs=4 * (expected * (1 - expected) / draws) ** 0.5)


def test_expected_acceptance_at_its_ends() -> None:
    same, apart = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert expected_acceptance(same.log(), same.log()).item() == 1.0
    assert expected_acceptance(same.log(), apart.log()).item() == 0.0
    assert expected_acceptance(same.log(), torch.full((1, 3), float("nan"))).item() == 0.0
    assert expected_acceptance(same[:0], same[:0]).shape == (0,)


def small_model(vocab_size: int = 6, seed: int = 8) -> Model:
    """A few tokens, two layers."""
    ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    network = tiny.build("llama", layers=2, seed=seed, vocab_size=vocab_size, **ends)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return Model(network, tokenizer, anatomy_of(network), f"{vocab_size} tokens")


# A second model shares nothing with the target but some tokens; the others are never drafted, or never by itself.
DRAFTERS = {"mask": ComponentMask.attention([0]), "4 tokens": small_model(4, 1), "8 tokens": small_model(8, 2)}


def p_values_of_decoding(
    drafter: str, temperature: float = 1.5, top_p: float = 1.0, draws: int = 24_000, bias: float = 0.02, **settings: Any
) -> list[float]:
    """Each token of a response against its exact probability; the bias is seen with a probability above 0.99.

    With drafts of two tokens, three tokens take the first, second and bonus place of a round, in every order.
    """
    model, prompt = small_model(), [1, 2, 3]
    texts = torch.tensor(list(itertools.product(range(6), repeat=3)))
    with torch.no_grad():
        whole = torch.cat([torch.tensor(prompt).expand(len(texts), -1), texts], dim=1)
        conditional = distribution(model.network(whole).logits[:, 2:5], temperature, top_p)
    joint = conditional.gather(2, texts[:, :, None]).squeeze(2).prod(dim=1)
    decoded = speculative_generate(
        model,
        [prompt] * draws,
        DRAFTERS[drafter],
        draft_length=2,
        max_new_tokens=3,
        temperature=temperature,
        top_p=top_p,
        batch_size=6000,
        seed=1,
        **settings,
    )
    assert 0.1 < decoded.acceptance_rate < 0.95
    found = []
    responses = torch.tensor(decoded.responses)
    for place in range(3):
        exact = torch.zeros(6, dtype=torch.float64).index_add(0, texts[:, place], joint).numpy()
        assert power(exact, draws, bias) > 0.99
        found.append(p_value(torch.bincount(responses[:, place], minlength=6).numpy(), exact))
    # Together, too: tokens that are each right could still depend on each other wrongly.
    common = joint * draws >= 5
    counts = torch.bincount(responses @ torch.tensor([36, 6, 1]), minlength=216)
    observed = torch.cat([counts[common], counts[~common].sum()[None]]).numpy()
    expected = torch.cat([joint[common], joint[~common].sum()[None]]).numpy()
    return [*found, p_value(observed, expected)]


NUCLEUS: dict[str, Any] = {"temperature": 1.2, "top_p": 0.9, "confidence": 0.4}


@pytest.mark.parametrize(
    ("drafter", "settings"),
    [
        pytest.param("mask", {}, marks=pytest.mark.slow),
        ("mask", {**NUCLEUS, "draft_cache": "shared", "draws": 6000, "bias": 0.04}),
        pytest.param("mask", {**NUCLEUS, "draft_cache": "shared"}, marks=pytest.mark.slow),
        pytest.param("4 tokens", {}, marks=pytest.mark.slow),
        pytest.param("8 tokens", {}, marks=pytest.mark.slow),
        pytest.param("8 tokens", NUCLEUS, marks=pytest.mark.slow),
    ],
)
def test_decoded_tokens_have_the_targets_distribution(drafter: str, settings: dict[str, Any]) -> None:
    assert min(p_values_of_decoding(drafter, **settings)) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["mask", "8 tokens"])
def test_the_chi_square_test_of_decoding_can_fail(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rejection the next token is drawn from p, not from what is left of it."""
    monkeypatch.setattr(sampling, "residual", lambda target, rejected: target)
    assert min(p_values_of_decoding(drafter)) < LEVEL


def test_a_response_depends_on_the_seed_and_its_place_alone() -> None:
    model, mask = tiny.model("llama"), ComponentMask.attention([1])
    prompts = [[5, 6, 7], [9], [5, 6, 7], [1, 2, 3, 4, 5]]

    def respond(seed: int, batch_size: int) -> list[list[int]]:
        return speculative_generate(
            model, prompts, mask, draft_length=3, max_new_tokens=9, temperature=1.0, seed=seed, batch_size=batch_size
        ).responses

    alone = [respond(seed, 1) for seed in range(8)]
    for seed, responses in enumerate(alone):
        assert respond(seed, 4) == respond(seed, 3) == responses
        assert responses[0] != responses[2]
    assert all(one != other for one, other in itertools.combinations(alone, 2))


def test_greedy_judges_by_hand() -> None:
    logits = torch.nn.functional.one_hot(
        torch.tensor([[3, 1, 4, 1], [3, 1, 4, 1], [3, 1, 4, 1], [5, 1, 4, 1]]), 6
    ).float()
    tokens = torch.tensor([[3, 1, 4], [3, 2, 4], [3, 1, 4], [3, 1, 4]])
    judgement = Greedy().judge(Proposal(tokens, [3, 3, 2, 3], None), logits)
    assert judgement.accepted.tolist() == [3, 1, 2, 0]
    assert judgement.following.tolist() == [1, 1, 4, 5]


def test_a_token_that_was_not_proposed_is_not_rejected_either() -> None:
    """After the last proposed token the next is drawn from p as it is, not from p minus the draft's distribution."""
    rule = Sampling(1.0, 1.0, [7])
    certain = torch.tensor([[[0.0, 50.0, 0.0]]]).expand(1, 3, 3)
    probabilities = distribution(certain[:, :2], 1.0, 1.0)
    judgement = rule.judge(Proposal(torch.tensor([[1, 1]]), [1], probabilities), certain)
    assert judgement.accepted.tolist() == [1]
    assert judgement.following.tolist() == [1]


def test_draw_never_takes_what_has_no_weight() -> None:
    weights = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]], dtype=torch.float64).expand(4, -1)
    uniform = torch.tensor([0.0, 0.6, 2 / 3, 1 - 2**-53], dtype=torch.float64)
    assert draw(weights, uniform).tolist() == [1, 1, 3, 3]


def test_residual_falls_back_where_nothing_is_left() -> None:
    target = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    rest = residual(target, torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(rest, torch.tensor([[0.5, 0.5], [0.4, 0.0]], dtype=torch.float64))


def test_distribution_is_a_softmax_cut_to_a_nucleus() -> None:
    logits = torch.tensor([[[1.0, 2.0, 3.0, float("-inf")]]])
    full: Tensor = distribution(logits, 2.0, 1.0)
    torch.testing.assert_close(full, (logits.double() / 2).softmax(-1))
    nucleus = distribution(logits, 2.0, 0.7)
    assert nucleus[0, 0, 0] == 0
    assert nucleus[0, 0].sum().item() == pytest.approx(1)
