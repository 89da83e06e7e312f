"""All selectors on one problem, ranked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from radistill.console import console, table
from radistill.diagnosis.search import Found, search
from radistill.diagnosis.selectors.base import Selector
from radistill.diagnosis.trials import Trials


def rank_selectors(
    selectors: Sequence[Selector],
    trials: Trials,
    budget: int,
    *,
    seed: int,
    passes: float,
    folder: Path | None,
    free: bool = False,
) -> list[Found]:
    """Let each selector search with the same forward tokens to spend, and rank what they found.

    The arguments are those of `search`. Ctrl-C ends the comparison with the selectors that were run by then.

    Returns:
        The best first, by the objective; of equals, the one with the lower layers.
    """
    found: list[Found] = []
    for selector in selectors:
        try:
            found.append(search(selector, trials, budget, seed=seed, passes=passes, folder=folder, free=free))
        except KeyboardInterrupt:
            if not found:
                raise
            found[-1] = replace(found[-1], interrupted=True)
        if found[-1].interrupted:
            break
    return sorted(found, key=lambda one: (-one.value, one.selection.layers))


def print_ranking(found: Sequence[Found], trials: Trials) -> None:
    """Print a table of what the selectors found, on the terminal; "of 4" is the accepted tokens a round of 4."""
    headings = ("selector", "value", "KL", "accepted", "of 4", "passes", "seconds")
    made = table(f"value: {trials.objective.name}", *headings)
    for one in found:
        draft = one.judgement
        made.add_row(
            one.selector.kind,
            f"{one.value:.4f}",
            f"{draft.kl:.4f}",
            f"{draft.acceptance_rate:.1%}",
            f"{draft.mean_accepted_length[4]:.3f}",
            f"{one.forward_tokens / trials.calibration_tokens:.1f}",
            f"{one.seconds:.0f}",
        )
    console.print(made)
