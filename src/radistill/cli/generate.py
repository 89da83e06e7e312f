"""`radistill generate`: a model answers a prompt, with another model or a part of itself as its drafter."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from radistill.cli.options import Device, Dtype, ModelSource, TrustRemoteCode

if TYPE_CHECKING:
    from radistill.models.loading import Model
    from radistill.models.pictures import Images, Picture
    from radistill.speculation.decode import Decoded
    from radistill.speculation.masks import ComponentMask


def generate(
    model: ModelSource,
    prompt: Annotated[str, Option(help="What the user says.", show_default=False)],
    image: Annotated[
        list[Path] | None, Option(metavar="FILE", help="An image that stands before the prompt; may be repeated.")
    ] = None,
    draft: Annotated[
        str | None, Option(metavar="MODEL", help="Another model with the same tokenizer, which drafts.")
    ] = None,
    plan: Annotated[
        Path | None, Option(help="A plan.json; the model drafts without the attention of its layers.")
    ] = None,
    skip: Annotated[
        str | None, Option(help="Instead of a plan: layers whose attention is skipped (6,7,20-22), or a mask.")
    ] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest answer, in tokens.")] = 128,
    draft_length: Annotated[int, Option(help="Tokens drafted in a round.")] = 4,
    temperature: Annotated[float, Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, Option(help="Sample among tokens of this total probability.")] = 1.0,
    seed: Annotated[int, Option(min=0, help="For sampling.")] = 0,
    confidence: Annotated[
        float | None, Option(help="End a draft where its largest probability is below this; 0.5 with --branches.")
    ] = None,
    draft_cache: Annotated[
        str, Option(help="separate, or, without --draft, shared with the model's own cache.")
    ] = "separate",
    branches: Annotated[
        int | None, Option(metavar="N", min=1, help="With --draft: draft up to N branches while the model verifies.")
    ] = None,
    length: Annotated[
        Path | None, Option(metavar="FILE", help="With --branches: a network of `radistill drafter train-length`.")
    ] = None,
    compare: Annotated[
        bool, Option("--compare", help="Answer again without a draft; with --branches, without them too.")
    ] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer a prompt by speculative decoding: the text is the model's own, drafted by another model or a part of it.

    With `--image`, a drafter that reads images sees the same ones; another drafts from the text alone.

    The text goes to standard output, acceptance and tokens per second to standard error.
    """
    from contextlib import ExitStack

    import torch
    from transformers import TextStreamer

    from radistill.console import note
    from radistill.errors import RadistillError
    from radistill.models.generation import generate as generate_plainly
    from radistill.models.loading import load
    from radistill.models.pictures import Picture
    from radistill.speculation.decode import Decoded, speculative_generate
    from radistill.speculation.measure import check_smaller
    from radistill.texts import readable

    if sum(option is not None for option in (draft, plan, skip)) != 1:
        raise RadistillError("generate: say what drafts, with one of --draft, --plan and --skip")
    if branches is not None and draft is None:
        raise RadistillError("generate: --branches needs --draft MODEL: a model cannot draft while it verifies")
    if length is not None and branches is None:
        raise RadistillError("generate: --length needs --branches; without them nothing asks how long a branch is")
    if branches is not None and draft_cache != "separate":
        raise RadistillError(f"generate: --draft-cache is {draft_cache!r}, but branches have a cache of their own")
    if branches is not None and image:
        raise RadistillError("generate: --branches drafts from text alone; leave --image or --branches out")
    seen = tuple(Picture.of(str(file), Path(), "--image") for file in image or [])
    load_model = partial(load, dtype=dtype, device=device, trust_remote_code=trust_remote_code, images=bool(seen))
    other = None if draft is None else load_model(draft)  # first: it is small, and may not exist
    loaded = load_model(model)
    drafter = _mask(loaded, plan, skip) if other is None else other
    if other is not None:
        try:
            check_smaller(other.network, loaded.network, (other.source, loaded.source))
        except RadistillError as larger:  # which can make it slow, never wrong
            note(str(larger))
    tokens, shown = _prompt(loaded, prompt, seen)

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(readable(text) if sys.stdout.isatty() else text, stream_end)

    streamer = Streamer(loaded.tokenizer, skip_special_tokens=True)

    def show(index: int, new: list[int]) -> None:
        for token in new:
            streamer.put(torch.tensor([token]))

    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    drafting: dict[str, Any] = {"draft_length": draft_length, "draft_cache": draft_cache, "confidence": confidence}
    in_turn: Callable[..., Decoded] = partial(
        speculative_generate, loaded, [tokens], drafter, images=[shown], **sampling, **drafting
    )
    with ExitStack() as stack:
        decode = in_turn
        if branches is not None and other is not None:
            settings = {"draft_length": draft_length, "branches": branches} | sampling
            decode = stack.enter_context(_branching(loaded, tokens, other, confidence, length, **settings))
        if compare:
            decode(max_new_tokens=1)  # what only a first pass costs belongs to neither side
        decoded = decode(max_new_tokens=max_new_tokens, on_tokens=show)
    streamer.end()
    note(f"with draft: {decoded.summary}")
    if compare and branches is not None:
        in_turn(max_new_tokens=1)
        note(f"drafting and verifying in turn: {in_turn(max_new_tokens=max_new_tokens).summary}")
    if compare:
        started = time.perf_counter()
        [plain] = generate_plainly(
            loaded, [tokens], max_new_tokens=max_new_tokens, images=[shown], description="without draft", **sampling
        )
        speed = len(plain) / (time.perf_counter() - started)
        note(
            f"without draft: {speed:.1f} tokens/s; the draft makes it {decoded.tokens_per_second / speed:.2f} x as fast"
        )
        note(_verdict(loaded, tokens, shown, plain, decoded.responses[0], sampled=temperature > 0))


@contextmanager
def _branching(
    model: "Model", tokens: list[int], drafter: "Model", confidence: float | None, length: Path | None, **settings: Any
) -> Iterator[Callable[..., "Decoded"]]:
    """Decoding in which another process drafts, which is there until the block ends."""
    from radistill.speculation.branching.length import CONFIDENCE, Length, load_length
    from radistill.speculation.branching.loop import branching_generate
    from radistill.speculation.branching.process import draft_process

    network = None if length is None else load_length(length, model, drafter, settings["draft_length"])
    decides = Length(CONFIDENCE if confidence is None else confidence, network)
    with draft_process(drafter, model) as process:
        yield partial(branching_generate, model, [tokens], process, length=decides, **settings)


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


def _prompt(model: "Model", text: str, seen: "tuple[Picture, ...]") -> "tuple[list[int], Images | None]":
    from radistill.data.documents import prompt_tokens
    from radistill.data.examples import Example, with_images
    from radistill.errors import RadistillError
    from radistill.models.pictures import Images

    if seen and model.reader is None:
        raise RadistillError(f"--image: {model.source} reads no images")
    chat = bool(model.tokenizer.chat_template)
    if seen and not chat:
        raise RadistillError(f"--image: {model.source} has no chat template, which says where the images stand")
    said = Example.of_user("--prompt", text) if chat else Example("--prompt", text=text)
    tokens = prompt_tokens(with_images(said, seen, "--image"), model.tokenizer, reader=model.reader)
    return tokens, Images(seen, model.reader) if seen and model.reader else None


def _verdict(
    model: "Model", tokens: list[int], shown: "Images | None", plain: list[int], drafted: list[int], sampled: bool
) -> str:
    from radistill.speculation.prediction import find_parting

    if sampled:
        return "sampled texts may differ: they have the same distribution, not the same random numbers"
    difference = find_parting(model, tokens, plain, drafted, shown)
    if difference is None:
        return "both texts are the same"
    return (
        f"the texts part at token {difference.position}, where the model's two largest logits are "
        f"{difference.margin:.1e} apart"
    )
