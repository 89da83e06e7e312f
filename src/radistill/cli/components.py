"""`radistill components`: what a model can draft without."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from radistill.cli.options import Device, Dtype, JsonFile, ModelSource, TrustRemoteCode, temperatures

if TYPE_CHECKING:
    from radistill.models.sequences import Document


def components(
    model: ModelSource,
    data: Annotated[
        str, Option(help="Documents: reasoning-gym:TASK, or a .jsonl file; missing responses are written.")
    ] = "reasoning-gym:gsm_symbolic",
    count: Annotated[
        int, Option(min=2, help="How many documents; intervals are over them. --search reads as many more.")
    ] = 16,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest response that the model writes.")] = 96,
    masks: Annotated[
        list[str] | None,
        Option("--mask", metavar="WORDS", help="One more draft, as `attention:6,7 mlp:3 exit:24`. Repeatable."),
    ] = None,
    plan: Annotated[Path | None, Option(help="One more draft: the attention that this plan replaces is off.")] = None,
    temperature: Annotated[str, Option(help="Temperatures, as 0,0.6; 0 is greedy.")] = "0,0.6",
    context: Annotated[int, Option(min=1, help="Tokens in the cache while the components are timed.")] = 512,
    timing: Annotated[
        bool, Option("--timing/--no-timing", help="Time the components, and predict speeds from them.")
    ] = True,
    search: Annotated[
        int | None,
        Option(min=1, metavar="PARTS", help="One more draft: the fastest found that skips at most so many parts."),
    ] = None,
    passes: Annotated[
        float, Option(min=1, help="What --search may spend, in passes of the model over its documents.")
    ] = 100,
    json_file: JsonFile = None,
    seed: Annotated[int, Option(min=0, help="Decides which documents are drawn.")] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure drafts of a model that switch a class of components off: attention, state space, MLP, whole layers.

    For each: how far its predictions are from the full model's, how many of its tokens the full model accepts, the
    weights, KV cache and state that it does without, and whether it would make decoding faster.
    """
    from radistill.console import show
    from radistill.data.prepare import load_data
    from radistill.diagnosis.components import measure_drafts
    from radistill.diagnosis.draft_search import check_most, find_draft
    from radistill.diagnosis.latency import timed_once
    from radistill.diagnosis.plan import Plan
    from radistill.errors import RadistillError
    from radistill.files import write_json
    from radistill.models.loading import load
    from radistill.report.component_table import component_tables
    from radistill.speculation.masks import ComponentMask
    from radistill.speculation.presets import default_masks, parse_mask

    degrees = temperatures(temperature)
    if search is not None and not timing:
        raise RadistillError("--search looks for speed, which --no-timing leaves out; leave one of the two out")
    found = None if plan is None else Plan.load(plan)
    loaded = load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    drafts = default_masks(loaded)
    for text in masks or []:
        drafts[text] = parse_mask(text, loaded)
    if found is not None:
        found.check(loaded.anatomy, str(plan))
        drafts[str(plan)] = ComponentMask.of(found.replace, found.components)
    latencies = timed_once(loaded, context, None, "--context") if timing else None
    write = partial(load_data, data, loaded, seed=seed, max_new_tokens=max_new_tokens)
    both: list[Document] = []
    if search is not None and latencies is not None:
        check_most(latencies, search)
        # The search has documents of its own: what is chosen on some looks better on these than it is.
        both = write(2 * count)
        drafts["found"] = find_draft(loaded, both[count:], latencies, search, passes=passes, seed=seed)
    documents = {
        degree: both[:count] if both and not degree else write(count, temperature=degree) for degree in degrees
    }
    measured = measure_drafts(loaded, documents, drafts, latencies=latencies)
    if json_file is not None:
        write_json(json_file, measured.to_json())
    show(component_tables(measured))
