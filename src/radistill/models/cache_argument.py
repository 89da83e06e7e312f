"""What the cache of a network's forward is called: transformers 5.24 renamed it, and warns of the old name."""

import inspect

from transformers import PreTrainedModel


def cache_argument(network: PreTrainedModel) -> str:
    """`cache` where the forward of `network` has an argument of that name, `past_key_values` where it does not."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
