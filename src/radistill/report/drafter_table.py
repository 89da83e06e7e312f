"""What a drafter brings, for a terminal: acceptance, seconds, speed, and a verdict for each."""

from rich.console import Group
from rich.table import Table

from radistill.console import table
from radistill.report.numbers import EN_DASH, interval, percent, significant
from radistill.speculation.measure import DrafterFigures, Outcome
from radistill.speculation.payoff import Payoff, RoundCosts

_SHOWN = (1, 2, 4, 8, 16)
_VERIFIED = (2, 3, 5, 9, 17)
_PLACE = "context\n× batch"


def drafter_tables(figures: DrafterFigures) -> Group:
    """What `measure_drafter` returns, in at most 80 columns."""
    lines = [f"{_place(outcome)}: {outcome.payoff.verdict}" for outcome in figures.outcomes]
    return Group(_acceptance(figures), _costs(figures), _payoffs(figures), *lines)


def _acceptance(figures: DrafterFigures) -> Table:
    made = table(
        f"{figures.drafter} drafts for {figures.target}. Acceptance of a token, with its 95 % interval, on "
        f"{figures.documents} answers of the target at each temperature. `of 4`: tokens accepted a round when 4 are "
        "drafted. Drafts are greedy, sampled, or, as vLLM and llama.cpp draft, the likeliest token.",
        *("temper-\nature", "drafts", "accepted", *(f"of {length}" for length in _SHOWN)),
    )
    for one in figures.acceptances:
        rate = f"{percent(one.rate.value)} ({interval(one.rate.interval)})"
        accepted = [f"{one.accepted[length].value:.2f}" for length in _SHOWN]
        made.add_row(f"{one.temperature:g}", one.rule, rate, *accepted)
    return made


def _costs(figures: DrafterFigures) -> Table:
    made = table(
        "Milliseconds on this machine: a step of the target, a step of the drafter, and the target's pass over so "
        "many tokens with all that belongs to it.",
        *(_PLACE, "drafts", "target", "drafter", *(f"pass\nof {count}" for count in _VERIFIED)),
    )
    for place, rule, costs in _each_once(figures.outcomes):
        seconds = [costs.plain, costs.draft_step, *(costs.verify[count] for count in _VERIFIED)]
        made.add_row(place, rule, *(significant(1000 * one) for one in seconds))
    return made


def _payoffs(figures: DrafterFigures) -> Table:
    made = table(
        "Speed over plain decoding at the best draft length, with its 95 % interval over answers and timings; "
        "acceptance that it needs to be as fast, and has.",
        *(_PLACE, "temper-\nature", "drafts", "draft\nlength", "speed", "needs", "has"),
    )
    for outcome in figures.outcomes:
        where = f"{outcome.costs.context} × {outcome.costs.batch_size}"
        made.add_row(where, f"{outcome.temperature:g}", outcome.rule, *payoff_cells(outcome.payoff))
    return made


def payoff_cells(payoff: Payoff) -> list[str]:
    """Best draft length, speed with its interval, acceptance that it needs and has."""
    low, high = payoff.speedup.interval
    return [
        str(payoff.draft_length),
        f"{payoff.speedup.value:.2f} ({low:.2f}{EN_DASH}{high:.2f})",
        EN_DASH if payoff.break_even is None else percent(payoff.break_even, 0),
        percent(payoff.acceptance, 0),
    ]


def _each_once(outcomes: list[Outcome]) -> list[tuple[str, str, RoundCosts]]:
    """Costs do not depend on the temperature."""
    found = {(f"{one.costs.context} × {one.costs.batch_size}", one.rule): one.costs for one in outcomes}
    return [(*key, costs) for key, costs in found.items()]


def _place(outcome: Outcome) -> str:
    where = f"context {outcome.costs.context}, batch {outcome.costs.batch_size}"
    return f"{where}, temperature {outcome.temperature:g}, {outcome.rule} drafts"
