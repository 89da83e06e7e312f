"""`radistill drafter check`: a target and its drafter in the engines that serve them."""

from typing import Annotated

import typer

from radistill.cli.options import Dtype, JsonFile, ModelSource, TrustRemoteCode


def check(
    target: ModelSource,
    draft: Annotated[str, typer.Argument(help="The drafter: a model with the same tokenizer.", show_default=False)],
    data: Annotated[
        str, typer.Option("--data", help="Prompts: reasoning-gym:TASK, or a .jsonl file.")
    ] = "reasoning-gym:gsm_symbolic",
    count: Annotated[int, typer.Option("--count", min=1, help="How many prompts.")] = 4,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest response, in tokens.")] = 64,
    draft_length: Annotated[int, typer.Option("--draft-length", min=1, help="Tokens drafted in a round.")] = 4,
    json_file: JsonFile = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which prompts are drawn.")] = 0,
    dtype: Dtype = "float32",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Let transformers, llama.cpp and Radistill write greedily with a drafter, and compare with the target's own text.

    An engine that changes the text, beyond ties that rounding decides, makes the exit status 1. llama.cpp runs on GGUF
    files that are written for the check. vLLM wants an environment of its own: only its known conditions are checked.
    """
    from functools import partial

    from radistill.console import show
    from radistill.data.prepare import load_data
    from radistill.export.check_table import check_table
    from radistill.export.drafter_check import check_engines
    from radistill.files import write_json
    from radistill.models.loading import load
    from radistill.speculation.measure import check_drafter

    load_model = partial(load, dtype=dtype, trust_remote_code=trust_remote_code)
    drafter, loaded = load_model(draft), load_model(target)
    check_drafter(loaded, drafter)
    documents = load_data(data, loaded, count, seed=seed, max_new_tokens=1)
    prompts = [document.tokens[: document.response_start] for document in documents]
    found = check_engines(loaded, drafter, prompts, draft_length=draft_length, max_new_tokens=max_new_tokens)
    if json_file is not None:
        write_json(json_file, found.to_json())
    show(check_table(found))
    if any(engine.different for engine in found.engines):
        raise typer.Exit(1)
