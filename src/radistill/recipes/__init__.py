"""The recipes that come with the package: one YAML file each, which commands take by its name."""

from pathlib import Path


def shipped_recipes() -> dict[str, Path]:
    """The recipes in this folder, by their names."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def summary(path: Path) -> str:
    """The first sentence of a recipe's opening comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return text.partition(". ")[0].removesuffix(".") + "."
