"""Building a network from another one's tensors, without ever holding a third copy."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from radistill.errors import RadistillError


def assemble(
    network_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    source: Mapping[str, Tensor],
    source_names: Callable[[str], tuple[str, ...]],
    *,
    new: tuple[str, ...],
    dropped: tuple[str, ...],
    share: bool,
    written: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    silent: tuple[str, ...] = ("_proj.bias",),
) -> PreTrainedModel:
    """Build `network_class(config)` on the meta device and give it tensors.

    Each parameter is, in this order: NaN if it belongs to a new block; the source's tensor of the same name; the
    source's tensors that `source_names` lists, joined along the first dimension; zero if it is one that the source may
    lack.

    Args:
        network_class: class of the new network; its only buffers are those of its rotary embedding.
        config: its config.
        source: state dict of the source.
        source_names: maps a parameter's name to the source's names.
        new: prefixes of the parameters that the source does not have.
        dropped: prefixes of the source's parameters that the new network does not have.
        share: use the source's tensors themselves where nothing has to be joined, instead of clones.
        written: how the new network stores the source's tensor for the parameter of that name: itself, or a new one.
        silent: endings of parameters that are zero where the source has none; by default, attention biases.

    Raises:
        RadistillError: if a parameter has no counterpart on either side.
    """
    with torch.device("meta"):
        network = network_class(config)
    first = next(iter(source.values()))
    dtype, device = first.dtype, first.device
    tied = set(network.all_tied_weights_keys)
    used: set[str] = set()
    tensors: dict[str, Tensor] = {}
    for name, empty in network.state_dict().items():
        if name in tied:
            continue
        if name.startswith(new):
            tensors[name] = torch.full(empty.shape, torch.nan, dtype=dtype, device=device)
            continue
        parts = (name,) if name in source else source_names(name)
        if all(part in source for part in parts):
            used.update(parts)
            found = [source[part] for part in parts]
            tensor = written(name, torch.cat(found) if len(found) > 1 else found[0])
            tensors[name] = tensor.clone() if tensor is found[0] and not share else tensor
        elif name.endswith(silent):
            tensors[name] = torch.zeros(empty.shape, dtype=dtype, device=device)
        else:
            raise RadistillError(f"the source model has no {' or '.join(parts)}, which {network_class.__name__} needs")
    leftover = [name for name in source if name not in used | tied and not name.startswith(dropped)]
    if leftover:
        raise RadistillError(f"{network_class.__name__} has no place for the source model's {leftover[0]}")

    network.load_state_dict(tensors, strict=False, assign=True)
    network.tie_weights()
    for module in network.modules():
        # Rotary frequencies are buffers that no checkpoint holds; they follow from the config.
        if (rotary := getattr(module, "rotary_emb", None)) is not None:
            module.rotary_emb = type(rotary)(rotary.config).to(device)
    held = (*network.named_parameters(), *network.named_buffers())
    unfilled = [name for name, tensor in held if tensor.is_meta]
    if unfilled:
        raise RuntimeError(f"left on the meta device: {unfilled}")
    return network.eval()


def unwritten(module: nn.Module) -> str | None:
    """Name of the first parameter of `module` that holds a NaN, or None."""
    return next((name for name, value in module.named_parameters() if value.isnan().any()), None)
