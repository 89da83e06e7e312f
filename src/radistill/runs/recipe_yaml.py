"""YAML as recipes need it: a key that is given twice is an error, and errors are one line."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from radistill.errors import RadistillError


class _Loader(yaml.SafeLoader):
    """PyYAML silently takes the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # the base class refuses it
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a recipe file holds.

    Raises:
        RadistillError: if the file cannot be read, is not YAML, or is no mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise RadistillError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise RadistillError(f"{path}: is a folder, not a recipe") from None
    except OSError as error:
        raise RadistillError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RadistillError(f"{path}: not valid YAML (not UTF-8 text: {error.reason})") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RadistillError(f"{path}{line}: not valid YAML ({error.problem or error.context})") from None
    except yaml.YAMLError as error:
        raise RadistillError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        what = "is empty" if data is None else "is not a recipe"
        raise RadistillError(f"{path}: {what}; a recipe is a mapping of fields such as `model: smollm2-135m`")
    return data
