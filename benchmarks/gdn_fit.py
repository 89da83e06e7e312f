"""How much of an attention a fitted block explains: Gated DeltaNet beside Mamba-2, on the same tokens and steps.

    python benchmarks/gdn_fit.py [--layers 6 15 26] [--steps 240] [--threads 2]

Blocks are fitted to attentions of SmolLM2-135M as `align` fits them, on exercises of the generator. Reported is the
share of the attention's output that a block leaves unexplained on other exercises. SmolLM2 has no QK-norm, so that no
target would put Gated DeltaNet into it: the blocks are fitted beside the model.

- `mamba2`: the blocks of `granite-hybrid` as `init: fitted` starts them;
- `gdn`: Gated DeltaNet as `init: fitted` starts it, from attention's queries, keys and values;
- `gdn, drawn`: the same, from `init: random`.

The result is written to benchmarks/results/gdn_fit.json.
"""

from typing import Any

import torch
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from common.result import options, write_result
from radistill import convert, load
from radistill.data.settings import ReasoningGymData
from radistill.data.sources import draw
from radistill.distillation.activations import Pass, recorded_attentions
from radistill.distillation.align import AlignSettings, fit_block, split_documents
from radistill.mixers.gdn import GDN
from radistill.mixers.gdn.delta.install import SWAP as DELTA
from radistill.mixers.interface import AttentionShape, Context, Mixer
from radistill.mixers.mamba2 import MAMBA2
from radistill.models.loading import Model
from radistill.models.sequences import Document

DOCUMENTS = 500


def documents(model: Model) -> list[Document]:
    """Exercises with their answers, as the model reads them."""
    settings = ReasoningGymData(tasks={"gsm_symbolic": {}}, train=DOCUMENTS, heldout=1)
    found = []
    for example in draw(settings, 0).train:
        answer = (example.verifier or {}).get("answer", "")
        messages = [*example.messages, {"role": "assistant", "content": str(answer)}]
        tokens = model.tokenizer.apply_chat_template(messages, return_dict=False)
        found.append(Document(example.id, tuple(tokens), 1))
    return found


def gdn_block(model: Model, layer: int, init: str) -> torch.nn.Module:
    """A Gated DeltaNet block with the geometry that the target `qwen3.5` would choose."""
    shape = model.anatomy
    config = Qwen3_5TextConfig(
        vocab_size=8,
        hidden_size=shape.hidden_size,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=shape.num_kv_heads,
        linear_num_value_heads=shape.num_heads,
        linear_key_head_dim=shape.head_dim,
        linear_value_head_dim=shape.head_dim,
        rms_norm_eps=model.network.config.rms_norm_eps,
    )
    block = Qwen3_5GatedDeltaNet(config, 0)
    attention: Any = shape.mixer(model.network, layer)
    sizes = AttentionShape(shape.num_heads, shape.num_kv_heads, shape.head_dim, bias=False)
    with torch.no_grad():
        GDN.initialisations[init].fill(block, attention, Context(sizes, torch.Generator().manual_seed(layer)))
    DELTA.use(block)
    return block


def mamba_block(model: Model, layer: int) -> torch.nn.Module:
    """The block that `granite-hybrid` would have."""
    student = convert(model, [layer], target="granite-hybrid", init="fitted")
    return student.anatomy.mixer(student.network, layer)


def main() -> None:
    """Fit every kind of block to every layer."""
    given = options(__doc__, layers=[6, 15, 26], steps=240, threads=2, seed=0)
    model, settings = load("smollm2-135m"), AlignSettings(steps=given.steps)
    train, apart = split_documents(documents(model), settings)
    splits, which = (train, apart), Pass(list(given.layers), None)
    with recorded_attentions(model, which, splits, settings.tokens_per_batch) as recorded:
        cached, held = recorded
    unexplained: dict[str, dict[str, float]] = {}
    for layer in given.layers:
        blocks: dict[str, tuple[torch.nn.Module, Mixer]] = {
            "mamba2": (mamba_block(model, layer), MAMBA2),
            "gdn": (gdn_block(model, layer, "fitted"), GDN),
            "gdn, drawn": (gdn_block(model, layer, "random"), GDN),
        }
        for name, (block, mixer) in blocks.items():
            fit = fit_block(block, layer, mixer, cached[layer], held[layer], settings, given.seed)
            unexplained.setdefault(name, {})[str(layer)] = round(fit.unexplained_after, 4)
            print(f"layer {layer}, {name}: {fit.unexplained_after:.4f} unexplained, {fit.seconds:.0f} s", flush=True)
    tokens = sum(len(document.tokens) for document in train)
    write_result("gdn_fit", unexplained=unexplained, steps=given.steps, tokens=tokens, seed=given.seed)


if __name__ == "__main__":
    main()
