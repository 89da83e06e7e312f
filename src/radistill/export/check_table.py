"""What engines made of a drafter, for a terminal."""

from rich.table import Table

from radistill.console import table
from radistill.export.drafter_check import DrafterCheck, Served
from radistill.report.numbers import EN_DASH, percent


def check_table(found: DrafterCheck) -> Table:
    """A row for each engine, and a line on those that cannot serve the pair."""
    made = table(_caption(found), "engine", "same tokens", "accepted", "a round", "tokens/s", "plain", "ratio")
    for served in found.engines:
        if served.ran:
            made.add_row(served.engine, *_cells(served))
        elif served.obstacle is not None:
            made.add_row(served.engine, *[EN_DASH] * 6)
    return made


def _cells(served: Served) -> list[str]:
    plain, drafted = served.plain_tokens_per_second, served.tokens_per_second
    return [
        f"{served.equal} of {served.tokens}" + (" (near tie)" if served.near_ties and not served.different else ""),
        percent(served.acceptance_rate),
        f"{served.accepted / max(1, served.rounds):.2f}",
        EN_DASH if drafted is None else f"{drafted:.1f}",
        EN_DASH if plain is None else f"{plain:.1f}",
        EN_DASH if drafted is None or plain is None else f"{drafted / plain:.2f}",
    ]


def _caption(found: DrafterCheck) -> str:
    lines = [
        f"{found.draft} drafts {found.draft_length} tokens a round for {found.target}, greedily. `accepted`: of the "
        "drafted tokens; `ratio`: speed with the drafter over plain, on these prompts."
    ]
    for served in found.engines:
        if served.obstacle is not None:
            lines.append(f"{served.engine} does not serve this pair: {served.obstacle}.")
        elif not served.ran:
            lines.append(f"{served.engine} was not run; nothing that is known of it stands in the way.")
        elif served.different:
            lines.append(f"{served.engine} CHANGES the text of {served.different} prompts.")
        if served.peculiar:
            lines.append(
                f"{served.engine} writes {served.peculiar} texts in its own way, without the drafter too; it may end "
                "them at other tokens."
            )
    return " ".join(lines)
