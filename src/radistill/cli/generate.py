"""`radistill generate`: a model answers a prompt, with another model or a part of itself as its drafter."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radistill.cli.options import Device, Dtype, ModelSource, TrustRemoteCode

if TYPE_CHECKING:
    from radistill.models.loading import Model
    from radistill.speculation.masks import ComponentMask


def generate(
    model: ModelSource,
    prompt: Annotated[str, typer.Option("--prompt", help="What the user says.", show_default=False)],
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="MODEL", help="Another model with the same tokenizer, which drafts."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="A plan.json; the model drafts without the attention of its layers."),
    ] = None,
    skip: Annotated[
        str | None,
        typer.Option("--skip", help="Instead of a plan: layers whose attention is skipped (6,7,20-22), or a mask."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 128,
    draft_length: Annotated[int, typer.Option("--draft-length", help="Tokens drafted in a round.")] = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample among tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="For sampling.")] = 0,
    confidence: Annotated[
        float | None, typer.Option("--confidence", help="End a draft where its largest probability is below this.")
    ] = None,
    draft_cache: Annotated[
        str, typer.Option("--draft-cache", help="separate, or, without --draft, shared with the model's own cache.")
    ] = "separate",
    compare: Annotated[bool, typer.Option("--compare", help="Answer again without a draft.")] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer a prompt by speculative decoding: the text is the model's own, drafted by another model or a part of it.

    The text goes to standard output, acceptance and tokens per second to standard error.
    """
    import torch
    from transformers import TextStreamer

    from radistill.console import note
    from radistill.errors import RadistillError
    from radistill.models.generation import generate as generate_plainly
    from radistill.models.loading import load
    from radistill.speculation.decode import speculative_generate
    from radistill.texts import readable

    if sum(option is not None for option in (draft, plan, skip)) != 1:
        raise RadistillError("generate: say what drafts, with one of --draft, --plan and --skip")
    load_model = partial(load, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    other = None if draft is None else load_model(draft)  # first: it is small, and may not exist
    loaded = load_model(model)
    drafter = _mask(loaded, plan, skip) if other is None else other
    tokens = _prompt(loaded, prompt)

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(readable(text) if sys.stdout.isatty() else text, stream_end)

    streamer = Streamer(loaded.tokenizer, skip_special_tokens=True)

    def show(index: int, new: list[int]) -> None:
        for token in new:
            streamer.put(torch.tensor([token]))

    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    drafting: dict[str, Any] = {"draft_length": draft_length, "draft_cache": draft_cache, "confidence": confidence}
    decode = partial(speculative_generate, loaded, [tokens], drafter, **sampling, **drafting)
    if compare:
        decode(max_new_tokens=1)  # what only a first pass costs belongs to neither side
    decoded = decode(max_new_tokens=max_new_tokens, on_tokens=show)
    streamer.end()
    note(
        f"with draft: {decoded.tokens} tokens in {decoded.seconds:.2f} s, {decoded.tokens_per_second:.1f} tokens/s; "
        f"accepted {decoded.accepted} of {decoded.drafted} drafted ({decoded.acceptance_rate:.0%}), "
        f"{decoded.mean_accepted_length:.2f} a round in {decoded.rounds} rounds"
    )
    if compare:
        started = time.perf_counter()
        [plain] = generate_plainly(
            loaded, [tokens], max_new_tokens=max_new_tokens, **sampling, description="without draft"
        )
        speed = len(plain) / (time.perf_counter() - started)
        note(
            f"without draft: {speed:.1f} tokens/s; the draft makes it {decoded.tokens_per_second / speed:.2f} x as fast"
        )
        note(_verdict(loaded, tokens, plain, decoded.responses[0], sampled=temperature > 0))


def _mask(model: "Model", plan: Path | None, skip: str | None) -> "ComponentMask":
    from radistill.console import note
    from radistill.diagnosis.plan import Plan
    from radistill.speculation.masks import ComponentMask
    from radistill.speculation.presets import skipping

    if plan is not None:
        found = Plan.load(plan)
        found.check(model.anatomy, str(plan))
        if found.by != "redundancy":
            note(
                f"{plan}: its layers were chosen with fitted blocks in their place, and are skipped here; "
                "`radistill diagnose --by redundancy` finds layers that make a better draft"
            )
        return ComponentMask.of(found.replace, found.components)
    assert skip is not None
    return skipping(skip, model)


def _prompt(model: "Model", text: str) -> list[int]:
    from radistill.data.documents import prompt_tokens
    from radistill.data.examples import Example

    said = Example.of_user("--prompt", text) if model.tokenizer.chat_template else Example("--prompt", text=text)
    return prompt_tokens(said, model.tokenizer)


def _verdict(model: "Model", tokens: list[int], plain: list[int], drafted: list[int], sampled: bool) -> str:
    from radistill.speculation.prediction import find_parting

    if sampled:
        return "sampled texts differ: they have the same distribution, not the same random numbers"
    difference = find_parting(model, tokens, plain, drafted)
    if difference is None:
        return "both texts are the same"
    return (
        f"the texts part at token {difference.position}, where the model's two largest logits are "
        f"{difference.margin:.1e} apart"
    )
