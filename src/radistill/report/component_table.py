"""The component-aware tables for a terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from radistill.console import table
from radistill.diagnosis.components import ALPHA_LENGTHS, ComponentTable, DraftFigures
from radistill.report.drafter_table import payoff_cells
from radistill.report.numbers import EN_DASH, bytes_, interval, percent, significant
from radistill.speculation.payoff import Estimate


def component_tables(measured: ComponentTable) -> Group:
    """What `measure_drafts` returns, in at most 80 columns."""
    parts = [_distances(measured), _acceptance(measured)]
    if measured.latencies is None:
        return Group(*parts)
    return Group(*parts, _payoffs(measured), _best(measured))


def _distances(measured: ComponentTable) -> Table:
    stateful = measured.ssm_state_bytes > 0
    headings = ["PPL\nratio", "TV", "KL", "without\nweights", "KV a\ntoken", *(["SSM\nstate"] if stateful else [])]
    made = table(_caption(measured), "draft", *headings)
    for draft in measured.drafts:
        left_out = [_share(draft.parameters, measured.parameters), bytes_(draft.kv_bytes_per_token)]
        left_out += [bytes_(draft.ssm_state_bytes)] if stateful else []
        ratio, kl = ("inf" if one is None else significant(one.value) for one in (draft.perplexity_ratio, draft.kl))
        made.add_row(Text(draft.name), ratio, f"{draft.tv.value:.2f}", kl, *left_out)
    return made


def _acceptance(measured: ComponentTable) -> Table:
    made = table(
        "In per cent, at temperature T: acceptance of a token, and α of k, accepted over drafted tokens when k are "
        "drafted, with its 95 % interval over documents. At 0 greedily, above it with drafts that are sampled too.",
        *("draft", "T", "token", *(f"α of {length}" for length in ALPHA_LENGTHS)),
    )
    for draft in measured.drafts:
        for name, one in zip(_once(draft), draft.temperatures, strict=True):
            alphas = [_percents(one.alpha[length]) for length in ALPHA_LENGTHS]
            made.add_row(name, f"{one.temperature:g}", significant(100 * one.rate.value), *alphas)
    return made


def _payoffs(measured: ComponentTable) -> Table:
    assert measured.latencies is not None
    made = table(
        f"A step of the model takes {1000 * measured.latencies.verify(1):.3g} ms with {measured.latencies.context} "
        "tokens in the cache. Speed over plain decoding as the timed components predict it, at the best draft length "
        "k, with its 95 % interval over documents; acceptance that it needs to be as fast, and has.",
        *("draft", "step\nms", "T", "k", "speed", "needs", "has", "pays"),
    )
    for draft in measured.drafts:
        for name, one in zip(_once(draft), draft.temperatures, strict=True):
            assert one.payoff is not None
            step = significant(1000 * (draft.step_seconds or 0)) if name.plain else ""
            made.add_row(name, step, f"{one.temperature:g}", *payoff_cells(one.payoff), one.payoff.speedup.above_one)
    return made


def _best(measured: ComponentTable) -> Text:
    """The verdict on what promises most."""
    found = [(one.payoff, one, draft) for draft in measured.drafts for one in draft.temperatures if one.payoff]
    payoff, one, draft = max(found, key=lambda each: each[0].speedup.value)
    return Text(f"The fastest, {draft.name} at temperature {one.temperature:g}: {payoff.verdict}")


def _once(draft: DraftFigures) -> list[Text]:
    """The draft's name in the first of its rows."""
    return [Text(draft.name), *(Text() for _ in draft.temperatures[1:])]


def _percents(estimate: Estimate) -> str:
    return f"{significant(100 * estimate.value)} ({interval(estimate.interval)})"


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if part else EN_DASH


def _caption(measured: ComponentTable) -> str:
    perplexity = "not finite" if measured.perplexity is None else significant(measured.perplexity)
    state = f", {bytes_(measured.ssm_state_bytes)} of SSM state" if measured.ssm_state_bytes else ""
    return (
        f"{measured.model}: perplexity {perplexity}, {measured.parameters:,} weights, "
        f"{bytes_(measured.kv_bytes_per_token)} of KV a token{state}. Measured on "
        f"{measured.n_tokens:,} response tokens of {measured.n_documents} documents. "
        "TV and KL (nats a token) say how far the draft's next-token distribution is from the model's."
    )
