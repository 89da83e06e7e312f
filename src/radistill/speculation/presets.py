"""Masks by name and from text: what a command line says about a draft.

A mask is written as words: `attention:6,7 mlp:0-3` names a component and its layers, `exit:24` leaves after 24 layers,
`layer-skip:33%` passes over the middle third of the layers, and a preset such as `attention-off` stands for a component
of every layer that has it.
"""

from collections.abc import Iterable

from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.speculation.masks import ComponentMask, masked_modules
from radistill.texts import ranges


def component_off(model: Model, component: Component) -> ComponentMask:
    """Skip a component in every layer that has it (for a hybrid's attention or SSM: arXiv 2605.01106).

    Raises:
        RadistillError: if no layer has it.
    """
    mask = _parts(model, range(model.anatomy.num_layers), (component,))
    if not mask.skipped:
        raise RadistillError(f"mask: {component.value}-off: no layer of this model has {component.value}")
    return mask


def early_exit(model: Model, kept: int) -> ComponentMask:
    """Skip every component of all layers but the first `kept`; the output head reads what they leave (LayerSkip,
    arXiv 2404.16710).

    Raises:
        RadistillError: if no layer is left, or none skipped.
    """
    layers = model.anatomy.num_layers
    if not 1 <= kept < layers:
        raise RadistillError(f"mask: exit:{kept} must leave after 1 to {layers - 1} of this model's {layers} layers")
    return _parts(model, range(kept, layers))


def layer_skip(model: Model, percent: int) -> ComponentMask:
    """Skip every component of so many percent of the layers, those in the middle (33: the layer skip of
    arXiv 2605.01106).

    Raises:
        RadistillError: if no layer is left, or none skipped.
    """
    layers = model.anatomy.num_layers
    count = round(layers * percent / 100)
    if not 0 < count < layers:
        raise RadistillError(
            f"mask: layer-skip:{percent}% skips {count} layers; it must be 1 to {layers - 1} of {layers}"
        )
    first = (layers - count) // 2
    return _parts(model, range(first, first + count))


def default_masks(model: Model) -> dict[str, ComponentMask]:
    """The drafts worth comparing in any model: without a component, without the middle third, and two early exits."""
    layers = model.anatomy.num_layers
    without = {f"{component.value}-off": _parts(model, range(layers), (component,)) for component in Component}
    masks = {name: mask for name, mask in without.items() if mask.skipped}
    if layers > 1:
        masks["layer-skip:33%"] = layer_skip(model, 33)
    exits = sorted({layers // 2, layers * 3 // 4} - {0, layers})
    return masks | {f"exit:{kept}": early_exit(model, kept) for kept in exits}


_PRESETS = {f"{component.value}-off": component for component in Component}
_HELP = f"write attention:6,7, ssm:0-5, mlp:3, exit:24 or layer-skip:33%, or a preset ({', '.join(_PRESETS)})"


def parse_mask(text: str, model: Model) -> ComponentMask:
    """Read a mask from words that are separated by spaces; together they skip what any of them skips.

    Raises:
        RadistillError: for a word that means nothing, or a component that the model does not have.
    """
    words = text.split()
    if not words:
        raise RadistillError(f"mask: is empty; {_HELP}")
    mask = ComponentMask(frozenset().union(*(_word(word, model).skipped for word in words)))
    masked_modules(model, mask)
    return mask


def skipping(text: str, model: Model) -> ComponentMask:
    """`parse_mask`, but for bare numbers of layers, `6,7,20-22`, which stand for their attention."""
    return parse_mask(f"attention:{text}" if text[:1].isdigit() else text, model)


def describe_mask(mask: ComponentMask) -> str:
    """The shortest text that `parse_mask` reads as this mask; "nothing" for an empty one."""
    words = []
    for component in Component:
        layers = sorted(layer for layer, part in mask.skipped if part is component)
        if layers:
            words.append(f"{component.value}:{ranges(layers).replace(' ', '')}")
    return " ".join(words) or "nothing"


def _word(word: str, model: Model) -> ComponentMask:
    if word in _PRESETS:
        return component_off(model, _PRESETS[word])
    name, _, numbers = word.partition(":")
    if name == "layer-skip" and numbers.endswith("%"):
        return layer_skip(model, _number(numbers[:-1], word))
    if name not in {"exit", *Component} or not numbers:
        raise RadistillError(f"mask: {word!r} means nothing; {_HELP}")
    if name == "exit":
        return early_exit(model, _number(numbers, word))
    layers: set[int] = set()
    for part in numbers.split(","):
        first, dash, last = part.partition("-")
        start = _number(first, word)
        end = _number(last, word) if dash else start
        if end < start:
            raise RadistillError(f"mask: {word!r} has the range {part}, which runs backwards")
        if end >= model.anatomy.num_layers:
            raise RadistillError(
                f"mask: {word!r}: layer {end} does not exist; layers are 0 to {model.anatomy.num_layers - 1}"
            )
        layers.update(range(start, end + 1))
    return ComponentMask(frozenset((layer, Component(name)) for layer in layers))


def _parts(model: Model, layers: Iterable[int], components: Iterable[Component] = tuple(Component)) -> ComponentMask:
    """Those of the components that these layers have."""
    every = ((layer, component) for layer in layers for component in components)
    return ComponentMask(frozenset(part for part in every if model.anatomy.modules(model.network, *part)))


def _number(text: str, word: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise RadistillError(f"mask: {word!r} has {text!r} where a layer's number belongs; {_HELP}")
    return int(text)
