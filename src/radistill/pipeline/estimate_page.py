"""The page that a dry run prints."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from radistill.console import show
from radistill.conversion.targets import TARGETS
from radistill.diagnosis.plan import draft_of
from radistill.pipeline.estimate import Estimate
from radistill.pipeline.memory import FORMULAS, TERMS
from radistill.pipeline.work import Work
from radistill.texts import human_bytes, human_count

WIDTH = 100


def print_estimate(found: Estimate) -> None:
    """Print an estimate on standard output, at most 100 columns wide."""
    show(page(found), widest=WIDTH)


def page(found: Estimate) -> RenderableType:
    """What a dry run prints."""
    parts = [_models(found), _memory(found), _work_page(found.work), _times(found)]
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
    models, anatomies = found.models, [model.anatomy for model in found.models]
    table = _table("", *(model.role for model in models))
    for component in models[0].parameters:
        counts = [model.parameters[component] for model in models]
        if any(counts):
            table.add_row(component, *(f"{count:,}" for count in counts))
    table.add_row("total", *(f"{model.total:,}" for model in models), style="bold")
    table.add_row("in new blocks", *(_or_blank(model.new_parameters) for model in models))
    table.add_row("trained end to end", *(_or_blank(model.trained_parameters) for model in models))
    table.add_row(
        "attention layers", *(f"{len(anatomy.attention_layers)} of {anatomy.num_layers}" for anatomy in anatomies)
    )
    table.add_row("KV cache a token", *(human_bytes(anatomy.kv_bytes_per_token()) for anatomy in anatomies))
    table.add_row("SSM state a sequence", *(human_bytes(anatomy.ssm_state_bytes()) for anatomy in anatomies))
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
    kept += ", and what align records for the fits, in parts where there is less room" if found.recorded else ""
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
    by, goes = work.recipe.diagnose.by, TARGETS[work.recipe.target.kind].goes
    splits = ", ".join(f"{count:,} {split}" for split, count in work.documents.items())
    table.add_row("data", f"{splits} documents of at most {work.document_tokens:,} tokens")
    if work.generated_tokens:
        table.add_row("", f"the teacher writes at most {human_count(work.generated_tokens)} tokens")
    table.add_row(
        "diagnose",
        f"{_count(work.passes, 'forward pass')} over {human_count(work.calibration_tokens)} calibration tokens, "
        f"to judge layers {draft_of(by, goes)}",
    )
    if work.align_blocks:
        table.add_row(
            "align",
            f"{_count(work.align_blocks, 'block')}, {human_count(work.align_tokens)} tokens through each, "
            f"{_count(work.align_passes, 'pass')} of the base over the training documents"
            + ("; all before the search" if by == "replaceability" else ""),
        )
    for training in work.trainings:
        tokens = work.step_tokens(training)
        steps, total = _count(training.steps, "step"), human_count(training.steps * tokens)
        table.add_row(training.section, f"{steps} of at most {tokens:,} tokens, {total} in all")
        if training.on_policy is not None:
            last_step = max(2, training.steps)
            first, last = (training.on_policy.share_at(step, last_step) for step in (1, last_step))
            share = f"{first:.0%}" if first == last else f"{first:.0%} to {last:.0%}"
            table.add_row("", f"the student writes {share} of its batches itself")
    return _section("work, at most", table)


def _times(found: Estimate) -> RenderableType:
    several = found.processes > 1
    table = _table("", "one process", *([f"{found.processes} processes"] if several else []))
    for one in found.times:
        shared = one.in_processes(found.processes)
        table.add_row(one.stage, _long(one.seconds), *([_long(shared)] if several else []))
    shares = [one.in_processes(found.processes) for one in found.times]
    alone = sum(one.seconds for one in found.times)
    together = sum(share or one.seconds for share, one in zip(shares, found.times, strict=True))
    table.add_row("total", _long(alone), *([_long(together)] if several else []), style="bold")
    notes = [Text(f"On {found.device}; what is not computed in matrix products comes on top.", style="dim")]
    if None in shares:
        way_out = "A training without a time has a gradient_accumulation that is no multiple of the processes."
        notes.append(Text(way_out, style="dim"))
    return _section("time at most, by arithmetic, for documents that are all as long as allowed", table, *notes)


def _long(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: int, what: str) -> str:
    plural = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{plural}"
