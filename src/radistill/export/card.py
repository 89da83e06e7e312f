"""The model card: what the model is, how it was made, what was measured, and whose terms apply."""

import html
import re
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from radistill.conversion.targets import gguf_formats, target_of
from radistill.diagnosis.plan import Plan
from radistill.export.source import Source
from radistill.models.anatomy import Anatomy, anatomy_of
from radistill.provenance import versions
from radistill.report.numbers import layer_list, percent, significant, whole
from radistill.report.page import outdated
from radistill.report.results import footnotes, rows_of
from radistill.runs.folder import MAIN
from radistill.texts import readable


def model_card(source: Source) -> str:
    """The card in Markdown, with the front matter that the Hugging Face hub reads."""
    run, anatomy, target = source.run, anatomy_of(source.config), target_of(source.config)
    arm = source.hybrid.arm if source.hybrid is not None else None
    return (
        _template()
        .render(
            front_matter=yaml.safe_dump(_front_matter(source, anatomy), sort_keys=False, allow_unicode=True).rstrip(),
            name=source.name,
            base=source.base,
            teacher=source.teacher,
            arm=source.arm if source.arm != MAIN else "",
            run=run,
            plan=_plan_facts(source.plan, _blocks(anatomy)),
            cut=None if source.plan is None or not source.is_cut else source.plan.num_layers,
            architecture=", ".join(source.config.architectures or [anatomy.model_type]),
            blocks=_blocks(anatomy),
            remarks=[] if target is None else target.remarks(source.config),
            gguf=source.config.model_type in gguf_formats(),
            layers=anatomy.num_layers,
            ssm_layers=layer_list(list(anatomy.ssm_layers)),
            attention_layers=layer_list(list(anatomy.attention_layers)),
            rows=[] if run is None else rows_of(run),
            footnotes=[] if run is None or not run.evaluation else footnotes(run),
            trained=arm is None or bool(arm.trainings),
            outdated=run is not None and outdated(run),
            recipe="" if run is None or run.recipe is None else _public_recipe(run.recipe.fields),
            versions=versions() if run is None else run.versions,
            seed=None if run is None else run.record.get("seed"),
        )
        .rstrip()
        + "\n"
    )


def _blocks(anatomy: Anatomy) -> str:
    """What stands in place of attention."""
    mixer = anatomy.architecture.mixer
    return "state-space" if mixer is None else mixer.title


def _front_matter(source: Source, anatomy: Anatomy) -> dict[str, Any]:
    base, mixer = source.base, anatomy.architecture.mixer
    kind = "speculative-decoding" if source.is_cut else "hybrid"
    front: dict[str, Any] = {
        "license": "unknown" if base is None else base.licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["radistill", kind, *([mixer.kind] if mixer else []), anatomy.model_type, "distillation"],
    }
    if base is not None and base.hub is not None:
        front = {"base_model": base.hub, "base_model_relation": "finetune", **front}
    return front


def _plan_facts(plan: Plan | None, blocks: str) -> list[tuple[str, str]]:
    """What the plan says about itself, in words."""
    if plan is None:
        return []
    if plan.whole_layers and not plan.replace:  # its figures would be of a draft that skips nothing
        return [("layers of the base cut", layer_list([]))]
    draft = "draft with fitted blocks" if plan.by == "replaceability" else "skip draft"
    return [
        (
            "layers of the base cut" if plan.whole_layers else f"attention replaced by {blocks} in layers",
            layer_list(plan.replace),
        ),
        ("chosen by", f"{plan.selector.get('kind')}, {plan.by}"),
        (f"objective ({plan.objective['name']})", significant(plan.objective["value"])),
        (f"tokens of the {draft} that the base accepts", percent(plan.acceptance_rate)),
        (f"KL of the {draft}, nats a token", significant(plan.kl)),
        ("calibration tokens that the search read", whole(plan.forward_tokens)),
    ]


def _public_recipe(recipe: dict[str, Any]) -> str:
    """The recipe as YAML. Paths and storage URLs of the machine of the run are not for others: they are cut short."""

    def shorten(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shorten(item) for item in value]
        if isinstance(value, str) and "://" in value:  # may hold a password
            return f"{value.partition('://')[0]}://…"
        if isinstance(value, str) and value.startswith(("/", "~")):
            return value.rstrip("/").rpartition("/")[2]
        return value

    return yaml.safe_dump(shorten(recipe), sort_keys=False, allow_unicode=True).rstrip()


def _plain(value: Any) -> str:
    """A value as Markdown that shows its text, on one line, and does nothing else; `Markup` is Markdown of our own."""
    if isinstance(value, Markup):
        return str(value)
    text = html.escape(_one_line(value), quote=False)
    return re.sub(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def _code(value: Any) -> Markup:
    """A value as a span of code; a table takes no bare pipe, not even there."""
    text = _one_line(value).replace("|", "\\|")
    fence = _fence(text, least=1)
    return Markup(f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}")


def _block(text: str) -> Markup:
    """YAML as a block of code that nothing in it ends."""
    fence = _fence(text, least=3)
    return Markup(f"{fence}yaml\n{readable(text)}\n{fence}")


def _one_line(value: Any) -> str:
    return re.sub(r"\s*\n\s*", " ", readable(value))


def _fence(text: str, least: int) -> str:
    """More backticks than a text has anywhere in a row."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("radistill", "export"),
        autoescape=False,  # that is for HTML
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "block": _block}
    return environment.get_template("card.md.j2")
