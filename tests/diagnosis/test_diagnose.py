"""Diagnosis on tiny models: trials against plain masked passes, plans, and bad input."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import tiny
from radistill.diagnosis.diagnose import SearchInterrupted, diagnose
from radistill.diagnosis.objectives import Figures
from radistill.diagnosis.plan import Plan
from radistill.diagnosis.selectors import SELECTORS, Bayes
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.files import read_json, write_json
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.masks import ComponentMask, masked

KL = Figures("kl")
ACCEPTANCE = Figures("acceptance")


def documents(count: int = 4, length: int = 12) -> list[Document]:
    generator = torch.Generator().manual_seed(5)
    return [
        Document(str(n), tuple(torch.randint(4, 60, (length + n,), generator=generator).tolist()), length // 2)
        for n in range(count)
    ]


BOTH = (Component.ATTENTION, Component.MLP)


def naive(
    model: Model, layers: list[int], docs: list[Document], components: Sequence[Component] = BOTH[:1]
) -> tuple[list[list[bool]], float, float]:
    """Agreement, KL and acceptance by sampling, one document and one token at a time, in float64."""
    agreements, total, accepted, tokens = [], 0.0, 0.0, 0
    for document in sorted(docs, key=lambda d: (len(d.tokens), d.id)):
        ids = torch.tensor([document.tokens])
        with torch.no_grad():
            full = model.network(input_ids=ids).logits[0].double()
            with masked(model, ComponentMask.of(layers, components)):
                draft = model.network(input_ids=ids).logits[0].double()
        agreement = []
        for position in range(document.response_start - 1, len(document.tokens) - 1):
            p = torch.softmax(full[position], dim=-1).tolist()
            q = torch.softmax(draft[position], dim=-1).tolist()
            agreement.append(p.index(max(p)) == q.index(max(q)))
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            accepted += sum(map(min, p, q))
            tokens += 1
        agreements.append(agreement)
    return agreements, total / tokens, accepted / tokens


def test_whole_layers_are_judged_by_drafts_without_them(tmp_path: Path) -> None:
    """Beside judgements of the same sets without their attention alone, in the same folder."""
    model, docs = tiny.model("llama", 4), documents(2)
    for components in (BOTH[:1], BOTH, BOTH[:1], BOTH):
        trials = Trials(model, docs, KL, folder=tmp_path, components=components)
        trials.stay_near([3])
        judged = trials.judge([1, 3])
        _, kl, accepted = naive(model, [1, 3], docs, components)
        assert judged.kl == pytest.approx(kl, rel=1e-4)
        assert judged.sampled_acceptance == pytest.approx(accepted, rel=1e-4)
    assert len(list(tmp_path.glob("trials-*.jsonl"))) == 2


@pytest.mark.parametrize("selector", ["block-influence", "leave-one-out"])
def test_a_selector_that_looks_by_itself_looks_at_whole_layers(selector: str) -> None:
    """An MLP that adds hugely in one layer makes this the last to go, though its attention is as any other's."""
    model, docs = tiny.model("llama", 4), documents(2)
    with torch.no_grad():
        model.network.model.layers[2].mlp.down_proj.weight.mul_(30)
    plan = diagnose(model, docs, 3, selector=selector, objective="kl", by="redundancy", components=BOTH)
    assert plan.replace == [0, 1, 3]
    assert plan.components == ["attention", "mlp"]
    assert plan.draft == "without them"
    assert "attention" not in str(plan.score_kind)


@pytest.mark.parametrize("family", tiny.usual_first(tiny.ARCHITECTURES))
def test_every_architecture_is_searched_by_redundancy(family: str) -> None:
    model, docs = tiny.model(family, layers=8 if family == "nemotron_h" else 4), documents()
    layers = list(model.anatomy.attention_layers)
    plan = diagnose(model, docs, 1, selector="leave-one-out", objective="kl", by="redundancy")
    found = {layer: naive(model, [layer], docs)[1] for layer in layers}
    assert plan.replace == [min(found, key=found.__getitem__)]
    assert plan.kl == pytest.approx(min(found.values()), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2", "granite", "granitemoehybrid"])
def test_a_trial_equals_the_naive_pass(family: str) -> None:
    model = tiny.model(family)
    docs = documents()
    trials = Trials(model, docs, ACCEPTANCE, tokens_per_batch=30)
    for layers in ([model.anatomy.attention_layers[0]], list(model.anatomy.attention_layers)):
        draft = trials.run(layers)
        agreements, kl, accepted = naive(model, layers, docs)
        assert [agreement.tolist() for agreement in draft.agreements] == agreements
        assert draft.kl == pytest.approx(kl, rel=1e-4)
        assert draft.sampled_acceptance == pytest.approx(accepted, rel=1e-5)


def test_a_draft_that_skips_nothing_is_always_accepted() -> None:
    draft = Trials(tiny.model("llama"), documents(), KL).run([])
    assert all(agreement.all() for agreement in draft.agreements)
    assert draft.kl == 0.0


def test_a_set_seen_before_costs_nothing_also_in_another_process(tmp_path: Path) -> None:
    model = tiny.model("llama")
    first = Trials(model, documents(), KL, folder=tmp_path)
    value = first.value([1, 0])
    spent = first.forward_tokens
    assert first.value([0, 1]) == value
    assert first.forward_tokens == spent
    (kept,) = tmp_path.glob("trials-*.jsonl")
    kept.write_text(kept.read_text() + '{"layers": [1], "val')  # torn by a kill

    second = Trials(model, documents(), KL, folder=tmp_path)
    second.run = None  # type: ignore[assignment,method-assign]
    assert second.value([0, 1]) == value
    assert second.forward_tokens == spent  # of the search, whichever process spent them

    other = Trials(model, documents(), ACCEPTANCE, folder=tmp_path)
    other.run = None  # type: ignore[assignment,method-assign]
    assert other.value([0, 1]) == Trials(model, documents(), ACCEPTANCE).value([0, 1])


def test_values_of_other_data_are_not_reused(tmp_path: Path) -> None:
    model = tiny.model("llama")
    Trials(model, documents(), KL, folder=tmp_path).value([0])
    Trials(model, documents(length=14), KL, folder=tmp_path).value([0])
    assert len(list(tmp_path.glob("trials-*.jsonl"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("selector", sorted(set(SELECTORS) - {"all", "kl-guided"}))
def test_a_plan_says_what_its_layers_do(selector: str, tmp_path: Path) -> None:
    model = tiny.model("llama", layers=4)
    settings = Bayes(trials=5, startup=2) if selector == "bayes" else selector
    plan = diagnose(model, documents(), 2, selector=settings, seed=7, folder=tmp_path, by="redundancy")
    agreements, kl, accepted = naive(model, plan.replace, documents())
    flat = [agree for agreement in agreements for agree in agreement]
    assert len(plan.replace) == 2
    assert plan.acceptance_rate == pytest.approx(sum(flat) / len(flat))
    assert plan.kl == pytest.approx(kl, rel=1e-4)
    assert plan.sampled_acceptance == pytest.approx(accepted, rel=1e-5)
    assert plan.selector["kind"] == selector
    assert plan.forward_tokens > 0
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    again = diagnose(model, documents(), 2, selector=settings, seed=7, by="redundancy")
    ignored = {"seconds"}
    assert again.model_dump(exclude=ignored) == plan.model_dump(exclude=ignored)


def test_one_token_responses_and_one_document() -> None:
    plan = diagnose(tiny.model("llama", layers=2), [Document("a", (5, 6), 1)], 1, selector="uniform", by="redundancy")
    assert plan.replace == [0]
    assert plan.acceptance_rate in (0.0, 1.0)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "diagnose.budget is 0, but this model has 4 attention layers: it must be from 1 to 3"),
        (4, "diagnose.budget is 4, but this model has 4 attention layers"),
        (40, "diagnose.budget is 40"),
    ],
)
def test_budgets_that_a_model_does_not_have(budget: int, message: str) -> None:
    with pytest.raises(RadistillError, match=message):
        diagnose(tiny.model("llama", layers=4), documents(), budget, by="redundancy")


def test_nan_logits_and_missing_documents_are_refused() -> None:
    model = tiny.model("llama")
    with pytest.raises(RadistillError, match="no documents to calibrate on"):
        diagnose(model, [], 1, by="redundancy")
    with pytest.raises(RadistillError, match=r"diagnose\.objective is 'speed', but it must be one of accept"):
        diagnose(model, documents(), 1, objective="speed", by="redundancy")
    with torch.no_grad():
        next(iter(model.anatomy.layers(model.network)[0].parameters())).fill_(float("nan"))
    with pytest.raises(RadistillError, match="NaN or infinite on the calibration data"):
        diagnose(model, documents(), 1, by="redundancy")


def test_documents_beyond_the_context_are_named() -> None:
    model = tiny.model("llama", max_position_embeddings=16)
    assert Trials(model, [Document("fits", tuple(range(5, 21)), 4)], KL).calibration_tokens == 16
    with pytest.raises(RadistillError, match=r"document long has 17 tokens, but the model's context is 16"):
        Trials(model, [Document("long", tuple(range(5, 22)), 4)], KL)


def test_plans_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny.model("llama", layers=4)
    plan = diagnose(model, documents(), 2, selector="uniform", by="redundancy")
    path = tmp_path / "plan.json"
    plan.save(path)
    good = read_json(path)

    write_json(path, good | {"replace": [2, 30]})
    with pytest.raises(RadistillError, match=r"plan\.json: replace\[1\] is 30, but this model has layers 0 to 3"):
        Plan.load(path).check(model.anatomy)
    write_json(path, good | {"num_layers": 30})
    with pytest.raises(RadistillError, match="made for a model of 30 layers, but this model has 4"):
        Plan.load(path).check(model.anatomy)
    for change, message in [
        ({"replace": [2, 0]}, "replace: must be sorted"),
        ({"layers": [1]}, "layers: Extra inputs are not permitted"),
        ({"version": 9}, "version: Input should be 1"),
    ]:
        write_json(path, good | change)
        with pytest.raises(RadistillError, match=message):
            Plan.load(path)
    path.write_text("{")
    with pytest.raises(RadistillError, match="not valid JSON"):
        Plan.load(path)
    with pytest.raises(RadistillError, match="no such file"):
        Plan.load(tmp_path / "none.json")


def test_ctrl_c_keeps_the_best_plan_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama", layers=6)
    settings = Bayes(trials=8, startup=8)
    value, judged = Trials.value, []

    def until_ctrl_c(self: Trials, layers: list[int]) -> float:
        if len(judged) == 6 + 3:
            raise KeyboardInterrupt
        judged.append((value(self, layers), sorted(layers)))
        return judged[-1][0]

    monkeypatch.setattr(Trials, "value", until_ctrl_c)
    with pytest.raises(SearchInterrupted) as interrupted:
        diagnose(model, documents(), 2, selector=settings, folder=tmp_path, by="redundancy")
    assert interrupted.value.plan.replace == max(judged[6:], key=lambda pair: pair[0])[1]
    assert len(interrupted.value.plan.search) == 9
    monkeypatch.setattr(Trials, "value", value)
    resumed = diagnose(model, documents(), 2, selector=settings, folder=tmp_path, by="redundancy")
    assert resumed.search == diagnose(model, documents(), 2, selector=settings, by="redundancy").search

    judged.clear()
    monkeypatch.setattr(Trials, "value", lambda self, layers: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) as at_once:
        diagnose(model, documents(), 2, selector=settings, by="redundancy")
    assert not isinstance(at_once.value, SearchInterrupted)


def test_layers_without_attention_are_not_candidates() -> None:
    model = tiny.model("granitemoehybrid")
    count = len(model.anatomy.attention_layers)
    plan = diagnose(model, documents(), count - 1, selector="uniform", by="redundancy")
    assert set(plan.replace) < set(model.anatomy.attention_layers)
