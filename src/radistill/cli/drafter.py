"""`radistill drafter`: what makes, measures and checks another model that drafts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, Typer

from radistill.cli.options import Device, Dtype, JsonFile, ModelSource, Threads, TrustRemoteCode, lengths, temperatures
from radistill.cli.run import run

if TYPE_CHECKING:
    from radistill.models.loading import Model

drafter = Typer(
    help="Another model that drafts for a target: train one, say what it is worth, check that engines serve both.",
    no_args_is_help=True,
)
drafter.command("train", help="Run the recipe of a drafter; the same as `radistill run`.")(run)

_Draft = Annotated[str, Argument(help="The drafter: a model with the same tokenizer.", show_default=False)]
_Data = Annotated[str, Option(help="Prompts: reasoning-gym:TASK, or a .jsonl file. The target answers them.")]
_PROMPTS = "reasoning-gym:gsm_symbolic"


def _pair(target: str, draft: str, **loading: Any) -> "tuple[Model, Model]":
    """A target and its drafter, which can draft for it. The drafter is loaded first: it is small, and may not exist."""
    from radistill.models.loading import load
    from radistill.speculation.measure import check_drafter

    drafts = load(draft, **loading)
    loaded = load(target, **loading)
    check_drafter(loaded, drafts)
    return loaded, drafts


@drafter.command()
def measure(
    target: ModelSource,
    draft: Annotated[
        str | None, Argument(help="Another model with the same tokenizer, which drafts.", show_default=False)
    ] = None,
    skip: Annotated[
        str | None, Option(metavar="WORDS", help="Instead of DRAFT: what the target skips when it drafts itself.")
    ] = None,
    data: _Data = _PROMPTS,
    count: Annotated[int, Option(min=2, help="How many prompts; intervals are over them.")] = 16,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest answer, in tokens.")] = 96,
    temperature: Annotated[str, Option(help="Temperatures, as 0,0.6,1; 0 is greedy.")] = "0,1",
    context: Annotated[str, Option(help="Tokens in the cache while steps are timed.")] = "512",
    batch_size: Annotated[str, Option(help="Sequences at once meanwhile.")] = "1",
    branches: Annotated[
        int | None, Option(metavar="N", min=1, help="Also time and simulate drafting N branches meanwhile.")
    ] = None,
    out: Annotated[Path, Option("--out", "-o", metavar="FILE", help="Where every figure is written.")] = Path(
        "drafter.json"
    ),
    seed: Annotated[int, Option(min=0, help="Decides which prompts are drawn, and sampling.")] = 0,
    threads: Threads = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Say whether a drafter will pay: how many of its tokens the target accepts, what a round costs, what follows.

    Nothing is decoded with the drafter: one pass over the target's own answers tells what it would accept.
    """
    from functools import partial

    from radistill.console import note, show
    from radistill.data.prepare import has_images, load_data
    from radistill.errors import RadistillError
    from radistill.files import output_place, write_json
    from radistill.models.loading import load
    from radistill.provenance import machine, seed_everything, versions
    from radistill.report.drafter_table import drafter_tables
    from radistill.speculation.branching.measure import measure_overlap
    from radistill.speculation.measure import check_drafter, measure_drafter
    from radistill.speculation.presets import skipping

    if (draft is None) == (skip is None):
        raise RadistillError("drafter measure: say what drafts, with DRAFT or with --skip")
    if branches is not None and draft is None:
        raise RadistillError("drafter measure: --branches needs DRAFT: a model cannot draft while it verifies")
    out = output_place(out)
    degrees, contexts = temperatures(temperature), lengths(context, "--context")
    sizes = lengths(batch_size, "--batch-size")
    if branches is not None and 1 not in sizes:
        raise RadistillError("drafter measure: --branches are for one sequence; put 1 among --batch-size")
    seed_everything(seed, threads)
    seen = has_images(data, seed)
    if branches is not None and seen:
        raise RadistillError("drafter measure: --branches drafts from text alone, but --data has images")
    load_model = partial(load, dtype=dtype, device=device, trust_remote_code=trust_remote_code, images=seen)
    other = None if draft is None else load_model(draft)
    model = load_model(target)
    proposes = other or skipping(skip or "", model)
    check_drafter(model, proposes, contexts)
    answers = {
        degree: load_data(data, model, count, seed, max_new_tokens, temperature=degree, rewrite=True)
        for degree in degrees
    }
    figures = measure_drafter(model, proposes, answers, contexts=contexts, batch_sizes=sizes)
    overlaps = []
    if branches is not None and other is not None:
        plain = {one.costs.context: one.costs.plain for one in figures.outcomes if one.costs.batch_size == 1}
        overlaps = measure_overlap(model, other, answers, plain, branches=branches)
    settings = {"data": data, "count": count, "max_new_tokens": max_new_tokens, "seed": seed, "dtype": dtype}
    about = {"settings": settings | {"device": device}, "versions": versions(), "machine": machine()}
    write_json(out, figures.to_json() | {"overlaps": [one.to_json() for one in overlaps]} | about)
    note(f"{out}: every figure")
    show(drafter_tables(figures))
    for one in overlaps:
        place = f"context {one.context}, temperature {one.temperature:g}, {one.branches} branches meanwhile"
        show(f"{place}: {one.verdict}")


@drafter.command()
def check(
    target: ModelSource,
    draft: _Draft,
    data: Annotated[str, Option(help="Prompts: reasoning-gym:TASK, or a .jsonl file.")] = _PROMPTS,
    count: Annotated[int, Option(min=1, help="How many prompts.")] = 4,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest response, in tokens.")] = 64,
    draft_length: Annotated[int, Option(min=1, help="Tokens drafted in a round.")] = 4,
    json_file: JsonFile = None,
    seed: Annotated[int, Option(min=0, help="Decides which prompts are drawn.")] = 0,
    dtype: Dtype = "float32",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Let transformers, llama.cpp and Radistill write greedily with a drafter, and compare with the target's own text.

    An engine that changes the text, beyond ties that rounding decides, makes the exit status 1. llama.cpp runs on GGUF
    files that are written for the check. vLLM wants an environment of its own: only its known conditions are checked.
    """
    from radistill.console import show
    from radistill.data.prepare import load_data
    from radistill.export.check_table import check_table
    from radistill.export.drafter_check import check_engines
    from radistill.files import write_json

    loaded, drafts = _pair(target, draft, dtype=dtype, trust_remote_code=trust_remote_code)
    documents = load_data(data, loaded, count, seed=seed, max_new_tokens=1)
    prompts = [document.tokens[: document.response_start] for document in documents]
    found = check_engines(loaded, drafts, prompts, draft_length=draft_length, max_new_tokens=max_new_tokens)
    if json_file is not None:
        write_json(json_file, found.to_json())
    show(check_table(found))
    if any(engine.different for engine in found.engines):
        raise Exit(1)


@drafter.command()
def train_length(
    target: ModelSource,
    draft: _Draft,
    out: Annotated[Path, Option("--out", "-o", metavar="FILE", help="Where the network is written.")] = Path(
        "hrad.safetensors"
    ),
    data: _Data = _PROMPTS,
    count: Annotated[int, Option(min=8, help="How many; every fourth is held out.")] = 64,
    max_new_tokens: Annotated[int, Option(min=2, help="Longest answer, in tokens.")] = 96,
    draft_length: Annotated[int, Option(min=2, help="That you will decode with.")] = 4,
    confidence: Annotated[float | None, Option(min=0, max=1, help="Of confidence alone, in the comparison.")] = None,
    seed: Annotated[int, Option(min=0, help="Decides prompts, first weights and order.")] = 0,
    threads: Threads = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train the small network (H-RAD) that says how much of a branch is verified, for `generate --length`.

    The target answers the prompts greedily. The last line says whether the network is better than confidence alone.
    """
    from radistill.console import note
    from radistill.data.prepare import load_data
    from radistill.files import output_place
    from radistill.provenance import seed_everything
    from radistill.speculation.branching.length import CONFIDENCE, save_length
    from radistill.speculation.branching.training import train_length as train

    out = output_place(out)
    seed_everything(seed, threads)
    model, drafts = _pair(target, draft, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    answers = load_data(data, model, count, seed, max_new_tokens, rewrite=True)
    least = CONFIDENCE if confidence is None else confidence
    network, figures = train(model, drafts, answers, draft_length=draft_length, confidence=least, seed=seed)
    save_length(network, out, model, drafts, draft_length)
    note(f"{out}: trained on {figures.trained:,} rounds of draft length {draft_length}")
    note(figures.verdict)
