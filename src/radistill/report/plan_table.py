"""Plans side by side for a terminal."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from radistill.diagnosis.plan import Plan
from radistill.report.numbers import EN_DASH, duration, layer_list, percent, significant, whole

_LAYERS_PER_GROUP = 10
_HASH_LETTERS = 12


def plan_table(plans: Mapping[str, Plan]) -> Table:
    """Plans by name, one column each; a row whose cells differ is marked and bold. Two plans fit into 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = Text("layers: A attention, R replaced, M state space already" + "; ≠ differs" * (len(plans) > 1))
    table.add_column("", width=1)
    table.add_column("", style="dim", no_wrap=True)
    for name in plans:
        table.add_column(Text(name), overflow="fold", ratio=1)
    columns = [_rows(plan) for plan in plans.values()]
    if len(plans) > 1:
        sets = [set(plan.replace) for plan in plans.values()]
        for column, own in zip(columns, sets, strict=True):
            others = set().union(*(other for other in sets if other is not own))
            column["  only here"] = layer_list(sorted(own - others))
    labels = list(dict.fromkeys(label for column in columns for label in column))
    for label in sorted(labels, key=_position):
        cells = [column.get(label, EN_DASH) for column in columns]
        differs = len(set(cells)) > 1
        table.add_row("≠" if differs else "", label, *map(Text, cells), style="bold" if differs else None)
    return table


def layer_strip(plan: Plan) -> str:
    """One letter a layer, in groups of ten: R replaced, M state space before, A attention that stays."""
    ssm, replaced = set(plan.ssm_layers), set(plan.replace)
    letters = "".join("R" if n in replaced else "M" if n in ssm else "A" for n in range(plan.num_layers))
    return " ".join(letters[at : at + _LAYERS_PER_GROUP] for at in range(0, len(letters), _LAYERS_PER_GROUP))


_ORDER = (
    "model", "fingerprint", "layers", "replaced", "  only here", "chosen by", "objective", "acceptance", "accepted of",
    "KL, nats", "selector", "judged sets", "seconds", "tokens", "calibration", "seed",
)  # fmt: skip


def _position(label: str) -> int:
    return next((place for place, start in enumerate(_ORDER) if label.startswith(start)), len(_ORDER))


def _rows(plan: Plan) -> dict[str, str]:
    settings = [f"{key} {value}" for key, value in plan.selector.items() if key != "kind"]
    value = plan.objective["value"]
    further = [
        f"{key} {extra if isinstance(extra, str) else significant(extra)}"
        for key, extra in plan.objective.items()
        if key not in ("name", "value") and not isinstance(extra, dict)
    ]
    return {
        "model": plan.model,
        "fingerprint": plan.model_fingerprint[:_HASH_LETTERS],
        "layers": layer_strip(plan),
        "replaced": f"{len(plan.replace)}: {layer_list(plan.replace)}",
        "chosen by": plan.by,
        "objective": ", ".join([f"{plan.objective['name']} {significant(value, 4)}", *further]),
        "acceptance": percent(plan.acceptance_rate),
        **({} if plan.sampled_acceptance is None else {"acceptance, sampled": percent(plan.sampled_acceptance)}),
        **{f"accepted of {length}": significant(mean) for length, mean in sorted(plan.mean_accepted_length.items())},
        "KL, nats": significant(plan.kl),
        "selector": ", ".join([str(plan.selector.get("kind", EN_DASH)), *settings]),
        "judged sets": whole(len(plan.search)),
        "seconds": duration(plan.seconds),
        "tokens": whole(plan.forward_tokens),
        "calibration": plan.calibration_hash[:_HASH_LETTERS],
        "seed": str(plan.seed),
        **plan.versions,
    }
