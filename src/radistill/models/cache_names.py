"""What transformers calls a model's cache: `past_key_values` in older versions, `cache` in newer ones.

The argument of `forward` and the field of its output are renamed; the old names go with version 5.40. Which name is
right depends on the version and, for code that comes with a model, on the model. No other module spells the old one.
"""

import inspect
from typing import Any

from transformers import PreTrainedModel


def cache_argument(network: PreTrainedModel) -> str:
    """`cache` where the forward of `network` has an argument of that name, else `past_key_values`."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"


def cache_of(output: Any) -> Any:
    """The cache in what a forward has put out; None if it kept none."""
    found = getattr(output, "cache", None)
    return getattr(output, "past_key_values", None) if found is None else found
