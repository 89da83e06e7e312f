"""Block influence against the residual stream followed by hand."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

import tiny
from radistill.diagnosis.full_model import FullModel
from radistill.diagnosis.selectors.block_influence import similarities
from radistill.models.loading import Model
from radistill.models.sequences import Document, collate

DOCUMENTS = [Document("a", tuple(range(5, 25)), 4), Document("b", (7, 9), 1), Document("c", tuple(range(30, 42)), 1)]


def by_hand(model: Model, document: Document) -> torch.Tensor:
    """[layers] sums over the document's tokens, from what layers and attention hand out, where norms come first."""
    entered, added = {}, {}
    handles = []
    multiplier = getattr(model.network.config, "residual_multiplier", 1.0)
    for number, layer in enumerate(model.anatomy.layers(model.network)):
        handles.append(layer.register_forward_pre_hook(lambda m, args, n=number: entered.update({n: args[0]})))
        if number in model.anatomy.attention_layers:
            attention = model.anatomy.mixer(model.network, number)
            handles.append(attention.register_forward_hook(lambda m, a, out, n=number: added.update({n: out[0]})))
    with torch.no_grad():
        model.network(input_ids=torch.tensor([document.tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    sums = []
    for layer in model.anatomy.attention_layers:
        before, after = entered[layer][0].double(), (entered[layer] + multiplier * added[layer])[0].double()
        sums.append(sum(cosine_similarity(b, a, dim=0) for b, a in zip(before, after, strict=True)))
    return torch.stack(sums)


@pytest.mark.parametrize("family", ["llama", "granite", "granitemoehybrid", "granitemoehybrid-experts"])
def test_similarities_are_those_of_the_residual_stream(family: str) -> None:
    model = tiny.model(family)
    found = similarities(FullModel(model, collate(DOCUMENTS, 0), None), model.anatomy.attention_layers)
    expected = sum(by_hand(model, document) for document in DOCUMENTS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.network.modules())


def test_norms_after_attention_are_part_of_what_it_adds() -> None:
    model = tiny.model("gemma2")
    with torch.no_grad():
        for layer in model.anatomy.layers(model.network):
            layer.post_attention_layernorm.weight.fill_(-1.0)  # gemma's norms multiply by 1 + weight
    found = similarities(FullModel(model, collate(DOCUMENTS, 0), None), model.anatomy.attention_layers)
    tokens = sum(len(document.tokens) for document in DOCUMENTS)
    torch.testing.assert_close(found, torch.full_like(found, tokens))  # attention adds nothing
