"""What is known of the model that a student comes from: its name, where it is published, and its licence."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from radistill.errors import RadistillError
from radistill.files import read_text, read_yaml
from radistill.models.aliases import ALIASES
from radistill.models.checkpoint import own_files
from radistill.models.gguf.file import read_contents

_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Lineage:
    """The source model.

    Attributes:
        name: what people call it; never a path on this machine.
        hub: its id on the Hugging Face hub, or None if nothing says so.
        licence: the licence's identifier as the source states it, or "unknown".
        stated_in: where the source states it, in words; "" if nowhere.
        terms: text of the licence that came with the source, or "".
    """

    name: str
    hub: str | None
    licence: str = UNKNOWN
    stated_in: str = ""
    terms: str = ""

    @property
    def url(self) -> str | None:
        """Where the source is published."""
        return None if self.hub is None else f"https://huggingface.co/{self.hub}"


def lineage_of(source: str) -> Lineage:
    """What can be told of a source model from files on this machine. Nothing is downloaded.

    Args:
        source: alias, folder, GGUF file or hub id, as the recipe names it.
    """
    if source in ALIASES:
        alias = ALIASES[source]
        packaged = alias.packaged_file()
        known = Lineage(source, alias.hub) if packaged is None else _from_gguf(packaged)
        return Lineage(alias.hub, alias.hub, known.licence, known.stated_in, known.terms)
    path = Path(source).expanduser()
    if path.is_file():
        return _from_gguf(path)
    if path.is_dir():
        return _from_folder(path)
    if not _HUB_ID.fullmatch(source) or source.startswith((".", "/", "~")):
        return Lineage(path.name, None)
    card = try_to_load_from_cache(source, "README.md")
    licence = _front_matter(Path(card)).get("license") if isinstance(card, str) else None
    return Lineage(source, source) if not licence else Lineage(source, source, str(licence), "its model card")


def _from_gguf(path: Path) -> Lineage:
    try:
        metadata = read_contents(path).metadata
    except RadistillError:  # a run may outlive its source
        return Lineage(path.name, None)

    def text(key: str) -> str:
        return str(metadata.get(f"general.{key}", ""))

    hub = text("source.huggingface.repository") or text("base_model.0.repo_url").partition("huggingface.co/")[2]
    licence = text("license")
    return Lineage(
        text("name") or path.name,
        hub if _HUB_ID.fullmatch(hub) else None,
        licence or UNKNOWN,
        "the metadata of its GGUF file (general.license)" if licence else "",
    )


def _from_folder(path: Path) -> Lineage:
    card = next(map(_front_matter, own_files(path, ["README.md"])), {})
    terms = next(iter(own_files(path, _LICENCE_FILES)), None)
    licence = card.get("license")
    stated = [
        *(["its model card"] if licence else []),
        *([f"its file {terms.name}, copied here"] if terms else []),
    ]
    return Lineage(
        path.resolve().name,
        None,
        str(licence) if licence else "other" if terms else UNKNOWN,
        " and ".join(stated),
        terms.read_text(encoding="utf-8", errors="replace") if terms else "",
    )


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty if there is none."""
    try:
        text = read_text(path)
        if not text.startswith("---\n"):
            return {}
        head = read_yaml(text.split("\n---", 1)[0].removeprefix("---\n"), str(path))
    except RadistillError:
        return {}
    return head if isinstance(head, dict) else {}
