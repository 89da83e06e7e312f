"""What a model is made of, as data and as a page for the terminal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedConfig, PreTrainedModel

from radistill.conversion.targets import obstacles_of
from radistill.models.anatomy import anatomy_of
from radistill.models.architectures import ARCHITECTURES
from radistill.models.loading import Model, skeleton
from radistill.models.unknown import config_of_any_type, describe_unknown
from radistill.texts import human_bytes, human_count, ranges

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

    Of a model type that is not in the table of `models.architectures`, see `models.unknown` for the keys.

    Raises:
        RadistillError: if there is no such model, or it is damaged as far as the files' headers tell.
    """
    config = config_of_any_type(source, trust_remote_code)
    if config.get_text_config().model_type not in ARCHITECTURES:
        return {**describe_unknown(config, source, trust_remote_code), **_target(config)}
    return _describe(skeleton(config, source, trust_remote_code), config.dtype, str(source))


def _describe(network: PreTrainedModel, dtype: torch.dtype | str | None, source: str) -> dict[str, Any]:
    config: PreTrainedConfig = network.config.get_text_config()
    anatomy = anatomy_of(config)
    parameters = anatomy.parameters(network)
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
        **_target(config),
    }


def _target(config: PreTrainedConfig) -> dict[str, Any]:
    first, obstacles = obstacles_of(config)
    return {"target": first, "in_the_way": obstacles}


def render(report: dict[str, Any]) -> RenderableType:
    """The page that `radistill inspect` prints, from what `inspect` returns."""
    if "entry" in report:
        return Group(_facts(report), Text(), Text(report["entry"]))
    return Group(_facts(report), Text(), _parameters(report["parameters"]), Text(), _verdict(report))


def layer_picture(report: dict[str, Any]) -> str:
    """One letter a layer: A attention, W attention within a sliding window, M Mamba or another state-space block, B
    both attention and a state-space block."""
    attention, ssm, sliding = (set(report[f"{kind}_layers"]) for kind in ("attention", "ssm", "sliding"))
    return "".join(
        "B" if i in attention & ssm else "M" if i in ssm else "W" if i in sliding else "A"
        for i in range(report["layers"])
    )


def _facts(report: dict[str, Any]) -> Table:
    """What is known; of a model type that is not in the table, that is not all."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()

    def known(key: str, form: Callable[[Any], str] = str) -> str:
        return "unknown" if report[key] is None else form(report[key])

    table.add_row("model", Text(report["source"], style="bold"))
    table.add_row("architecture", f"{report['model_type']}, stored in {report['dtype'] or 'an unstated type'}")
    table.add_row("layers", f"{known('layers')}, width {known('hidden_size')}")
    if "entry" not in report:
        _add_layers(table, report)
    table.add_row("heads", f"{known('heads')} of size {known('head_dim')}, {known('kv_heads')} for keys and values")
    tied = known("tied_embeddings", lambda tied: "tied to the output" if tied else "input and output apart")
    table.add_row("vocabulary", f"{known('vocab_size', '{:,} tokens'.format)}, embeddings {tied}")
    table.add_row("context", known("max_context", "{:,} tokens".format))
    per_token = known("kv_bytes_per_token", lambda size: f"{human_bytes(size)} a token in bfloat16")
    table.add_row("KV cache", per_token)
    if "entry" in report:
        table.add_row("parameters", known("parameters", lambda counts: human_count(counts["total"])))
        return table
    for tokens, size in report["kv_bytes"].items():
        beyond = "  (beyond the context)" if int(tokens) > report["max_context"] else ""
        table.add_row(f"  at {int(tokens) // 1024}k tokens", f"{human_bytes(size)}{beyond}")
    if report["ssm_layers"]:
        table.add_row("SSM state", f"{human_bytes(report['ssm_state_bytes'])} a sequence in float32, at any length")
    return table


def _add_layers(table: Table, report: dict[str, Any]) -> None:
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


def _verdict(report: dict[str, Any]) -> RenderableType:
    if report["target"] is not None:
        return Text.assemble(("yes", "bold green"), f"  the student target {report['target']} can hold this model")
    lines = [Text.assemble(("no", "bold red"), "  no student target can hold this model:")]
    for target, features in report["in_the_way"].items():
        lines += [Text(f"    {target}"), *(Text(f"      {feature}") for feature in features)]
    return Group(*lines)
