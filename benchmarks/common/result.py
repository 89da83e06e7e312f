"""What every benchmark has beside its measurement: a command line, and a result with versions and machine."""

import argparse
from pathlib import Path
from typing import Any

from radistill.files import read_json, write_json
from radistill.provenance import machine, seed_everything, versions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def parser_of(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser that explains itself with a script's docstring.

    Args:
        description: the docstring.
        defaults: options by name; each has the type of its default, and a list takes several values.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        one, several = (default[0], "+") if isinstance(default, list) else (default, None)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(one), nargs=several, default=default)
    return parser


def options(description: str | None, **defaults: Any) -> argparse.Namespace:
    """What the command line says; `seed` and `threads`, where they are among the options, are set already."""
    given = parser_of(description, **defaults).parse_args()
    seed_everything(vars(given).get("seed", 0), vars(given).get("threads"))
    return given


def write_result(name: str, **figures: Any) -> dict[str, Any]:
    """Write the figures, with versions and machine, to benchmarks/results/NAME.json; returns what was written."""
    result = figures | {"versions": versions(), "machine": machine()}
    write_json(RESULTS / f"{name}.json", result)
    return result


def add_part(name: str, part: str, figures: dict[str, Any]) -> None:
    """Add figures, or replace those of the same names, in a part of benchmarks/results/NAME.json; all else stays."""
    path = RESULTS / f"{name}.json"
    whole = dict(read_json(path)) if path.exists() else {}
    write_json(path, whole | {part: whole.get(part, {}) | figures})
