"""`radistill drafter measure`: whether a drafter will pay."""

from pathlib import Path
from typing import Annotated

import typer

from radistill.cli.options import Device, Dtype, ModelSource, TrustRemoteCode, lengths, temperatures


def measure(
    target: ModelSource,
    draft: Annotated[
        str | None, typer.Argument(help="Another model with the same tokenizer, which drafts.", show_default=False)
    ] = None,
    skip: Annotated[
        str | None,
        typer.Option("--skip", metavar="WORDS", help="Instead of DRAFT: what the target skips when it drafts itself."),
    ] = None,
    data: Annotated[
        str, typer.Option("--data", help="Prompts: reasoning-gym:TASK, or a .jsonl file. The target answers them.")
    ] = "reasoning-gym:gsm_symbolic",
    count: Annotated[int, typer.Option("--count", min=2, help="How many prompts; intervals are over them.")] = 16,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 96,
    temperature: Annotated[str, typer.Option("--temperature", help="Temperatures, as 0,0.6,1; 0 is greedy.")] = "0,1",
    context: Annotated[str, typer.Option("--context", help="Tokens in the cache while steps are timed.")] = "512",
    batch_size: Annotated[str, typer.Option("--batch-size", help="Sequences at once meanwhile.")] = "1",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where every figure is written.")] = Path(
        "drafter.json"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which prompts are drawn, and sampling.")] = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Of torch.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Say whether a drafter will pay: how many of its tokens the target accepts, what a round costs, what follows.

    Nothing is decoded with the drafter: one pass over the target's own answers tells what it would accept.
    """
    from radistill.console import note, show
    from radistill.data.prepare import load_data
    from radistill.errors import RadistillError
    from radistill.files import output_place, write_json
    from radistill.models.loading import load
    from radistill.provenance import machine, seed_everything, versions
    from radistill.report.drafter_table import drafter_tables
    from radistill.speculation.measure import check_drafter, measure_drafter
    from radistill.speculation.presets import skipping

    if (draft is None) == (skip is None):
        raise RadistillError("drafter measure: say what drafts, with DRAFT or with --skip")
    out = output_place(out)
    degrees, contexts, sizes = (
        temperatures(temperature),
        lengths(context, "--context"),
        lengths(batch_size, "--batch-size"),
    )
    seed_everything(seed, threads)
    other = None if draft is None else load(draft, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    model = load(target, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    proposes = other or skipping(skip or "", model)
    check_drafter(model, proposes, contexts)
    answers = {
        degree: load_data(data, model, count, seed, max_new_tokens, temperature=degree, rewrite=True)
        for degree in degrees
    }
    figures = measure_drafter(model, proposes, answers, contexts=contexts, batch_sizes=sizes)
    settings = {"data": data, "count": count, "max_new_tokens": max_new_tokens, "seed": seed, "dtype": dtype}
    about = {"settings": settings | {"device": device}, "versions": versions(), "machine": machine()}
    write_json(out, figures.to_json() | about)
    note(f"{out}: every figure")
    show(drafter_tables(figures))
