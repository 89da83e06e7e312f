"""Block influence: how far a layer's attention turns the residual stream, read off one forward pass.

ShortGPT (arXiv 2403.03853) measures a layer by 1 - cos(its input, its output), as is done here where whole layers go.
Where only attention does, it alone is measured, as in arXiv 2406.15786: 1 - cos(x, x + what attention adds to x). Both
are averaged over tokens.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from radistill.diagnosis.full_model import FullModel
from radistill.diagnosis.selectors.base import Problem, Selection, Selector, best_by_rank, passes_by_rank
from radistill.models.anatomy import Component
from radistill.speculation.masks import ComponentMask, masked


class BlockInfluence(Selector):
    """The layers whose attention changes the direction of the residual stream least."""

    kind: Literal["block-influence"] = "block-influence"

    def most_passes(self, candidates: int, sizes: range) -> int:
        """See `select`."""
        return 2 + passes_by_rank(sizes)

    def select(self, problem: Problem) -> Selection:
        """Choose the layers with the smallest block influence."""
        trials = problem.trials
        # The attention of every layer is computed twice, once with its layer and once for what it adds: at most 2.
        trials.spend(2 * trials.calibration_tokens)
        measure = partial(similarities, layers=problem.candidates, components=trials.components)
        sums = torch.stack(trials.each(measure)).sum(dim=0)
        tokens = sum(len(document.tokens) for document in trials.documents)
        scores = dict(zip(problem.candidates, (sums / tokens).tolist(), strict=True))
        part = "attention" if trials.components == (Component.ATTENTION,) else "the layer"
        return Selection(
            best_by_rank(problem, scores), scores, f"cosine of the residual stream before and after {part}"
        )


def similarities(
    full: FullModel, layers: Sequence[int], components: Sequence[Component] = (Component.ATTENTION,)
) -> Tensor:
    """Cosine similarity of the residual stream before and after these components of each layer, summed over tokens.

    What attention adds is what its layer adds when the MLP is silent; so norms after attention and multipliers on the
    residual are accounted for, whatever the architecture calls them.

    Returns:
        [layers], float64. A token whose residual stream is zero on one side counts as 0.
    """
    model, batch = full.model, full.batch
    blocks = model.anatomy.layers(model.network)
    found: dict[int, Tensor] = {}

    def measure(layer: int) -> Any:
        has_mlp = model.anatomy.modules(model.network, layer, Component.MLP)
        stays = has_mlp and Component.MLP not in components
        silent = ComponentMask(frozenset({(layer, Component.MLP)} if stays else ()))

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            with masked(model, silent):
                output = module.forward(*args, **kwargs)
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            found[layer] = (cosine * batch.attention_mask).double().sum().cpu()

        return blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)

    with ExitStack() as stack, torch.inference_mode():
        for layer in layers:
            stack.enter_context(measure(layer))
        model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=1)
    return torch.stack([found[layer] for layer in layers])
