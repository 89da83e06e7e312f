"""The page that a dry run prints."""

import math

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from radistill.console import show
from radistill.pipeline.estimate import Estimate, Work
from radistill.pipeline.memory import FORMULAS, TERMS
from radistill.texts import human_bytes, human_count

WIDTH = 100


def print_estimate(found: Estimate) -> None:
    """Print an estimate on standard output, at most 100 columns wide."""
    show(page(found), widest=WIDTH)


def page(found: Estimate) -> RenderableType:
    """What a dry run prints."""
    parts = [_models(found), _memory(found), _work_page(found.work)]
    if found.warnings:
        parts.append(_section("warnings", *(Text(f"! {warning}", style="yellow") for warning in found.warnings)))
    else:
        parts.append(Text("nothing stands in the way of a run on this machine", style="green"))
    return Group(*parts)


def _section(title: str, *content: RenderableType) -> RenderableType:
    return Group(Text(title, style="bold"), Padding(Group(*content), (0, 0, 1, 2), expand=False))


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _models(found: Estimate) -> RenderableType:
    models = found.models
    table = _table("", *(model.role for model in models))
    for component in models[0].parameters:
        counts = [model.parameters[component] for model in models]
        if any(counts):
            table.add_row(component, *(f"{count:,}" for count in counts))
    table.add_row("total", *(f"{model.total:,}" for model in models), style="bold")
    table.add_row("in new blocks", *(_or_blank(model.new_parameters) for model in models))
    table.add_row("trained end to end", *(_or_blank(model.trained_parameters) for model in models))
    table.add_row("attention layers", *(f"{model.attention_layers} of {model.layers}" for model in models))
    table.add_row("KV cache a token", *(human_bytes(model.kv_bytes_per_token) for model in models))
    table.add_row("SSM state a sequence", *(human_bytes(model.ssm_state_bytes) for model in models))
    names = ", ".join(f"{model.role} {model.source}" for model in models)
    return _section("parameters", table, Text(names, style="dim"))


def _or_blank(count: int) -> str:
    return f"{count:,}" if count else ""


def _memory(found: Estimate) -> RenderableType:
    table = _table("", *found.memory)
    for term in TERMS:
        sizes = [stage.get(term) for stage in found.memory.values()]
        if any(sizes):
            table.add_row(term, *(_gib(size) for size in sizes))
    totals = [sum(stage.values()) for stage in found.memory.values()]
    table.add_row("total", *(_gib(total) for total in totals), style="bold")
    kept = "students before and after, fitted blocks, three checkpoints"
    kept += ", the stored teacher" if "store" in found.memory else ""
    disk = f"On disk at most {_gib(found.disk)} GiB: {kept}."
    title = "memory in GiB, estimated for documents that are all as long as allowed"
    return _section(title, table, Text(FORMULAS, style="dim"), Text(disk))


def _gib(size: int | None) -> str:
    if not size:
        return ""
    return f"{size / 2**30:.1f}" if size >= 2**30 else f"{size / 2**30:.3f}"


def _work_page(work: Work) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    splits = ", ".join(f"{count:,} {split}" for split, count in work.documents.items())
    table.add_row("data", f"{splits} documents of at most {work.document_tokens:,} tokens")
    if work.generated_tokens:
        written = human_count(work.generated_tokens)
        table.add_row("", f"the teacher writes at most {written} tokens")
    table.add_row(
        "diagnose",
        f"{_count(work.passes, 'forward pass')} over {human_count(work.calibration_tokens)} calibration tokens, "
        f"to judge layers {work.draft}",
    )
    minutes = math.ceil(work.passes * work.pass_seconds / 60)
    if work.minutes is None or minutes <= work.minutes:
        table.add_row("", f"about {minutes:,} min on a CPU like this one, if every document is as long as it may be")
    else:
        table.add_row("", f"{work.minutes:g} min (diagnose.minutes) of the {minutes:,} that it might take here")
    if work.align_blocks:
        table.add_row(
            "align",
            f"{_count(work.align_blocks, 'block')}, {human_count(work.align_tokens)} tokens through each, "
            f"{_count(work.align_passes, 'pass')} of the base over the training documents"
            + ("; all before the search" if work.by == "replaceability" else ""),
        )
    if work.steps:
        total = human_count(work.distill_tokens)
        table.add_row("distill", f"{_count(work.steps, 'step')} of at most {work.step_tokens:,} tokens, {total} in all")
    if work.on_policy is not None:
        first, last = (work.on_policy.share_at(step, max(2, work.steps)) for step in (1, max(2, work.steps)))
        share = f"{first:.0%}" if first == last else f"{first:.0%} to {last:.0%}"
        table.add_row("", f"the student writes {share} of its batches itself")
    if work.finetune_steps:
        total = human_count(work.finetune_steps * work.finetune_step_tokens)
        steps = _count(work.finetune_steps, "step")
        table.add_row("finetune", f"{steps} of at most {work.finetune_step_tokens:,} tokens, {total} in all")
    return _section("work, at most", table)


def _count(number: int, what: str) -> str:
    plural = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{plural}"
