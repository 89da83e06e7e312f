"""The component-aware table for a terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from radistill.diagnosis.components import ComponentTable
from radistill.report.numbers import EN_DASH, bytes_, percent, significant
from radistill.speculation.acceptance import DRAFT_LENGTHS


def component_table(measured: ComponentTable) -> Table:
    """What `measure_drafts` returns, in at most 80 columns; the last columns are what a draft leaves out."""
    stateful = measured.ssm_state_bytes > 0
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = _caption(measured)
    table.add_column("draft", min_width=13, max_width=16, overflow="fold")
    table.add_column("tokens\naccepted", justify="right", no_wrap=True)
    for length in DRAFT_LENGTHS:
        table.add_column(f"of\n{length}", justify="right", no_wrap=True)
    table.add_column("PPL\nratio", justify="right", no_wrap=True)
    table.add_column("without\nweights", justify="right", no_wrap=True)
    table.add_column("KV a\ntoken", justify="right", no_wrap=True)
    if stateful:
        table.add_column("SSM\nstate", justify="right", no_wrap=True)
    for draft in measured.drafts:
        lengths = [f"{draft.mean_accepted_length[length]:.2f}" for length in DRAFT_LENGTHS]
        left_out = [_share(draft.parameters, measured.parameters), bytes_(draft.kv_bytes_per_token)]
        left_out += [bytes_(draft.ssm_state_bytes)] if stateful else []
        ratio = significant(draft.perplexity_ratio) if draft.perplexity_ratio is not None else "inf"
        table.add_row(Text(draft.name), percent(draft.acceptance_rate), *lengths, ratio, *left_out)
    return table


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if part else EN_DASH


def _caption(measured: ComponentTable) -> Text:
    perplexity = "not finite" if measured.perplexity is None else significant(measured.perplexity)
    state = f", {bytes_(measured.ssm_state_bytes)} of SSM state" if measured.ssm_state_bytes else ""
    return Text(
        f"{measured.model}: perplexity {perplexity}, {measured.parameters:,} weights, "
        f"{bytes_(measured.kv_bytes_per_token)} of KV a token{state}. Measured on "
        f"{measured.n_tokens:,} response tokens of {measured.n_documents} documents. "
        "`of 4`: tokens accepted a round when 4 are drafted, greedily."
    )
