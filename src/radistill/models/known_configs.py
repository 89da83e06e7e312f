"""Configs of well-known models, as published, for estimates where the hub cannot be reached.

Only a dry run reads `known_configs.json`; a run itself loads the config that comes with the weights.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from radistill.files import read_json
from radistill.models.aliases import ALIASES

KNOWN_CONFIGS: dict[str, dict[str, Any]] = read_json(Path(__file__).with_suffix(".json"))


def known_config(source: str) -> PreTrainedConfig | None:
    """The config of a hub id or alias from the table; None if it is not in there."""
    fields = KNOWN_CONFIGS.get(ALIASES[source].hub if source in ALIASES else source)
    return None if fields is None else AutoConfig.for_model(**fields)
