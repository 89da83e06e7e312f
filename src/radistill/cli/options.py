"""Options and arguments that several commands have."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from radistill.files import output_place

ModelSource = Annotated[str, Argument(help="Hub id, folder, GGUF file or alias.", show_default=False)]
Dtype = Annotated[str, Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str, Option(help="Such as cpu or cuda:0.")]
Threads = Annotated[int | None, Option(min=1, max=1024, help="Of torch.")]
TrustRemoteCode = Annotated[bool, Option("--trust-remote-code", help="Run Python code that comes with the model.")]


def _output_file(path: Path | None) -> Path | None:
    return None if path is None else output_place(path)


JsonFile = Annotated[
    Path | None, Option("--json", metavar="FILE", help="Write the figures there too.", callback=_output_file)
]

LATEST = Path("runs/latest")

RecipePath = Annotated[
    Path | None,
    Argument(
        metavar="[RECIPE]",
        help="A recipe (YAML), or the name of one that `radistill recipes` lists. Left out, the run folder's own "
        "recipe.yaml.",
        show_default=False,
    ),
]
Out = Annotated[Path, Option("--out", "-o", metavar="FOLDER", help="The run folder.", show_default=False)]
Set = Annotated[
    list[str] | None,
    Option("--set", "-s", metavar="FIELD=VALUE", help="Override a field, for example distill.steps=20. Repeatable."),
]

By = Annotated[
    str | None,
    Option(
        metavar="replaceability|redundancy",
        help="How layers are judged: by drafts with a fitted block in place of attention (replaceability), or by "
        "drafts that skip it (redundancy: RAD as published). Left out, what the recipe says, which by default is "
        "replaceability.",
        show_default=False,
    ),
]


def by_override(by: str | None) -> list[str]:
    """What `--by` stands for among the overrides of `--set`, after which it comes."""
    return [] if by is None else [f"diagnose.by={by}"]


def recipe_of(recipe: Path | None, out: Path) -> Path:
    """The recipe that was named, or else the run folder's own; RadistillError if there is none.

    A file comes before a recipe of the package that has its name.
    """
    from radistill.errors import RadistillError
    from radistill.runs.folder import RunFolder

    if recipe is not None:
        # A name such as qwen3-0.6b has what looks like a suffix.
        is_path = recipe.exists() or recipe.suffix in (".yaml", ".yml") or len(recipe.parts) > 1
        return recipe if is_path else shipped(str(recipe))
    own = RunFolder(out).recipe
    if not own.exists():
        raise RadistillError(f"{own}: no such recipe; name one, for example: radistill run quickstart")
    return own


def shipped(name: str) -> Path:
    """A recipe of the package by its name; RadistillError if there is none."""
    from radistill.errors import RadistillError
    from radistill.recipes import shipped_recipes

    found = shipped_recipes()
    if name not in found:
        raise RadistillError(f"{name}: no such file, and no recipe of Radistill; those are {', '.join(found)}")
    return found[name]


def run_stage(stage: str, recipe: Path | None, out: Path, overrides: list[str]) -> None:
    """Run one stage of a recipe."""
    from radistill.pipeline.run import run
    from radistill.runs.recipe import load_recipe

    run(load_recipe(recipe_of(recipe, out), overrides), out, [stage])


def lengths(text: str, option: str = "--contexts") -> tuple[int, ...]:
    """Whole numbers above 0, as in `--contexts 128,512`; RadistillError if it is anything else."""
    from radistill.errors import RadistillError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words) or len(set(words)) < len(words):
        things = "numbers of tokens, as 128,512,2048" if option != "--batch-size" else "whole numbers, as 1,4"
        raise RadistillError(f"{option} {text!r}: must be different {things}")
    return tuple(map(int, words))


def temperatures(text: str) -> tuple[float, ...]:
    """Temperatures, as in `--temperature 0,0.6`; RadistillError if it is anything else."""
    from radistill.errors import RadistillError

    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 <= one < float("inf") for one in found) or len(set(found)) < len(found):
        raise RadistillError(f"--temperature {text!r}: must be different numbers of at least 0, as 0,0.6,1")
    return found
