"""What a model is made of, as data and as a page for the terminal."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedConfig, PreTrainedModel

from radistill.models.anatomy import anatomy_of
from radistill.models.features import blocking_features
from radistill.models.loading import Model, load_config, skeleton

TARGET = "granite-hybrid"
CONTEXTS = (4096, 32768, 131072)

_LAYERS_PER_ROW = 60
_LAYERS_PER_GROUP = 10
_BAR_WIDTH = 24
_STYLES = {"A": "bold cyan", "W": "bold yellow", "M": "bold magenta", "B": "bold blue"}


def inspect(model: Model) -> dict[str, Any]:
    """Anatomy, parameters and memory of a loaded model, as JSON-able data; `docs/reference/models.md` has the keys."""
    return _describe(model.network, model.network.dtype, model.source)


def inspect_source(source: str | Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """As `inspect`, from the config alone: no weight is loaded, and from a hub none is downloaded.

    Raises:
        RadistillError: if there is no such model, or it is damaged as far as the files' headers tell.
    """
    config = load_config(source, trust_remote_code)
    anatomy_of(config)
    return _describe(skeleton(config, source, trust_remote_code), config.dtype, str(source))


def _describe(network: PreTrainedModel, dtype: torch.dtype | str | None, source: str) -> dict[str, Any]:
    config: PreTrainedConfig = network.config.get_text_config()
    anatomy = anatomy_of(config)
    parameters = anatomy.parameters(network)
    obstacles = blocking_features(config)
    return {
        "source": source,
        "model_type": anatomy.model_type,
        "layers": anatomy.num_layers,
        "hidden_size": anatomy.hidden_size,
        "heads": anatomy.num_heads,
        "kv_heads": anatomy.num_kv_heads,
        "head_dim": anatomy.head_dim,
        "vocab_size": anatomy.vocab_size,
        "max_context": config.max_position_embeddings,
        "tied_embeddings": bool(config.tie_word_embeddings),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "attention_layers": list(anatomy.attention_layers),
        "ssm_layers": list(anatomy.ssm_layers),
        "sliding_window": anatomy.sliding_window,
        "sliding_layers": list(anatomy.sliding_layers),
        "parameters": {**parameters, "total": sum(parameters.values())},
        "kv_bytes_per_token": anatomy.kv_bytes_per_token(),
        "kv_bytes": {str(tokens): anatomy.kv_bytes(tokens) for tokens in CONTEXTS},
        "ssm_state_bytes": anatomy.ssm_state_bytes(),
        "target": {"name": TARGET, "holds": not obstacles, "in_the_way": obstacles},
    }


def render(report: dict[str, Any]) -> RenderableType:
    """The page that `radistill inspect` prints, from what `inspect` returns."""
    return Group(_facts(report), Text(), _parameters(report["parameters"]), Text(), _verdict(report["target"]))


def layer_picture(report: dict[str, Any]) -> str:
    """One letter a layer: A attention, W attention within a sliding window, M Mamba or another state-space block, B
    both attention and a state-space block."""
    attention, ssm, sliding = (set(report[f"{kind}_layers"]) for kind in ("attention", "ssm", "sliding"))
    return "".join(
        "B" if i in attention & ssm else "M" if i in ssm else "W" if i in sliding else "A"
        for i in range(report["layers"])
    )


def ranges(indices: Iterable[int]) -> str:
    """Ascending indices in short: "0-5, 8"; "none" if there are none."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans) or "none"


def human_bytes(number: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1, with at most one decimal: "22.5 KiB"."""
    amount = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{round(amount, 1):g} {unit}"
        amount /= 1024
    return f"{round(amount, 1):g} TiB"


def human_count(number: int) -> str:
    """A count with three digits and a unit: "135M"."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _facts(report: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    tied = "tied to the output" if report["tied_embeddings"] else "input and output apart"
    heads = f"{report['heads']} of size {report['head_dim']}, {report['kv_heads']} for keys and values"
    table.add_row("model", Text(report["source"], style="bold"))
    table.add_row("architecture", f"{report['model_type']}, stored in {report['dtype'] or 'an unstated type'}")
    table.add_row("layers", f"{report['layers']}, width {report['hidden_size']}")
    table.add_row("", _coloured(layer_picture(report)))
    both = sorted(set(report["attention_layers"]) & set(report["ssm_layers"]))
    full = [layer for layer in report["attention_layers"] if layer not in {*report["sliding_layers"], *both}]
    table.add_row("  A attention", ranges(full))
    if report["sliding_layers"]:
        window = f"{ranges(report['sliding_layers'])}, each sees {report['sliding_window']:,} tokens"
        table.add_row("  W windowed", window)
    table.add_row("  M state space", ranges(layer for layer in report["ssm_layers"] if layer not in both))
    if both:
        table.add_row("  B both", ranges(both))
    table.add_row("heads", heads)
    table.add_row("vocabulary", f"{report['vocab_size']:,} tokens, embeddings {tied}")
    table.add_row("context", f"{report['max_context']:,} tokens")
    table.add_row("KV cache", f"{human_bytes(report['kv_bytes_per_token'])} a token in bfloat16")
    for tokens, size in report["kv_bytes"].items():
        beyond = "  (beyond the context)" if int(tokens) > report["max_context"] else ""
        table.add_row(f"  at {int(tokens) // 1024}k tokens", f"{human_bytes(size)}{beyond}")
    if report["ssm_layers"]:
        table.add_row("SSM state", f"{human_bytes(report['ssm_state_bytes'])} a sequence in float32, at any length")
    return table


def _coloured(picture: str) -> Text:
    text = Text()
    for layer, letter in enumerate(picture):
        if layer and layer % _LAYERS_PER_ROW == 0:
            text.append("\n")
        elif layer and layer % _LAYERS_PER_GROUP == 0:
            text.append(" ")
        text.append(letter, style=_STYLES[letter])
    return text


def _parameters(parameters: dict[str, int]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    table.add_column("parameters", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    total = parameters["total"]
    for name, count in parameters.items():
        if count and name != "total":
            share = count / total
            table.add_row(name, human_count(count), f"{share:.1%}", Text("█" * round(share * _BAR_WIDTH), style="cyan"))
    table.add_row(Text("total", style="bold"), Text(human_count(total), style="bold"), "", "")
    return table


def _verdict(target: dict[str, Any]) -> RenderableType:
    if target["holds"]:
        return Text.assemble(("yes", "bold green"), f"  the student target {target['name']} can hold this model")
    lines = [Text.assemble(("no", "bold red"), f"  the student target {target['name']} cannot hold this model:")]
    return Group(*lines, *(Text(f"      {feature}") for feature in target["in_the_way"]))
