"""Memory of the stages of a run, and the room it takes on disk. Upper bounds: documents may be shorter than they can be."""

from dataclasses import dataclass

from radistill.models.anatomy import Anatomy
from radistill.pipeline.recipe import Recipe
from radistill.pipeline.shapes import Batch, HybridShape

BYTES = {"float32": 4, "bfloat16": 2}

FORMULAS = {
    "base weights": "parameters × bytes of a number",
    "teacher weights": "parameters × bytes of a number",
    "student weights": "parameters × bytes of a number",
    "cached activations": "diagnose: layers × tokens × width; align: 2 × tokens × width × layers at once",
    "cached logits": "calibration response tokens × vocabulary",
    "gradients": "trained parameters × bytes of a number",
    "Adam moments": "2 × trained parameters × bytes of a number",
    "activations of a step": "what autograd keeps for backward, counted on tensors without data",
    "logits of a step": "diagnose: response tokens × vocabulary × 6; distill: the same × 4",
}
"""Each term of `memory_of_stages`, in the order of a listing, and how it is counted."""

# Draft logits and, in float32, both log-probabilities, the probability, their difference and its product.
_FLOAT32_COPIES_OF_LOGITS = 5
# The teacher's and the student's logits, and the student's gradient before and after the choice of response tokens.
_LOGITS_OF_A_STEP = 4
# Trained weights and both moments of AdamW; two checkpoints are kept while a third is being written.
_TENSORS_OF_A_CHECKPOINT = 3
_CHECKPOINTS = 3


@dataclass(frozen=True)
class Lengths:
    """How long documents and responses can become under a recipe, in tokens.

    Attributes:
        document: longest document.
        response: most response tokens of one document.
    """

    document: int
    response: int

    def batch(self, tokens_per_batch: int, documents: int) -> Batch:
        """The largest batch: as many of the longest documents as fit, at least one."""
        return Batch(min(max(1, tokens_per_batch // self.document), documents), self.document)


def lengths(recipe: Recipe, context: int) -> Lengths:
    """Upper bounds that follow from the recipe and the context length of the model."""
    data = recipe.data
    document = min(data.max_length, context)
    response = document - 1
    if data.loss_on == "response" and data.responses.source == "teacher":
        response = min(response, data.responses.max_new_tokens)
    return Lengths(document, response)


def trained_parameters(recipe: Recipe, shape: HybridShape) -> int:
    """Parameters that end-to-end training changes."""
    if recipe.distill is None:
        return 0
    return sum(shape.parameters.values()) if recipe.distill.other_learning_rate > 0 else shape.new


def memory_of_stages(
    recipe: Recipe,
    base: Anatomy,
    shape: HybridShape,
    bounds: Lengths,
    *,
    base_parameters: int,
    teacher_parameters: int | None,
    with_align: bool,
) -> dict[str, dict[str, int]]:
    """What each stage of one hybrid holds at its peak: bytes by stage and term.

    Args:
        recipe: the recipe.
        base: the model to convert.
        shape: the hybrid.
        bounds: lengths of documents.
        base_parameters: of the base, which stays loaded in all stages.
        teacher_parameters: of another teacher, which does too; None for self-distillation.
        with_align: whether this hybrid's blocks are fitted layer by layer.
    """
    number = BYTES[recipe.dtype]
    loaded = {"base weights": base_parameters * number}
    if teacher_parameters is not None:
        loaded["teacher weights"] = teacher_parameters * number
    stages = {"diagnose": loaded | _diagnose(recipe, base, bounds)}
    hybrid = {"student weights": sum(shape.parameters.values()) * number}
    if with_align:
        stages["align"] = loaded | hybrid | _align(recipe, base, shape, bounds)
    if recipe.distill is not None:
        stages["distill"] = loaded | hybrid | _distill(recipe, base, shape, bounds)
    return stages


def layers_at_once(recipe: Recipe, base: Anatomy, bounds: Lengths) -> int:
    """Layers whose activations `align` records in one pass of the base."""
    assert recipe.align is not None
    per_layer = align_bytes_per_layer(recipe, base, bounds)
    return min(max(1, int(recipe.align.memory_gib * 2**30 // per_layer)), recipe.diagnose.budget)


def align_bytes_per_layer(recipe: Recipe, base: Anatomy, bounds: Lengths) -> int:
    """Input and output of one attention for all training documents."""
    return 2 * recipe.data.train * bounds.document * base.hidden_size * BYTES[recipe.dtype]


def disk_bytes(recipe: Recipe, shape: HybridShape, with_align: bool) -> int:
    """Room that one hybrid takes in the run folder: before and after training, fitted blocks, checkpoints."""
    weights = sum(shape.parameters.values())
    checkpoints = _CHECKPOINTS * _TENSORS_OF_A_CHECKPOINT * trained_parameters(recipe, shape)
    return (2 * weights + (shape.new if with_align else 0) + checkpoints) * BYTES[recipe.dtype]


def _diagnose(recipe: Recipe, base: Anatomy, bounds: Lengths) -> dict[str, int]:
    number = BYTES[recipe.dtype]
    documents = recipe.data.calibration
    batch = bounds.batch(recipe.diagnose.tokens_per_batch, documents)
    copies = number + 4 * _FLOAT32_COPIES_OF_LOGITS
    return {
        "cached activations": base.num_layers * documents * bounds.document * base.hidden_size * number,
        "cached logits": documents * bounds.response * base.vocab_size * number,
        "logits of a step": batch.rows * bounds.response * base.vocab_size * copies,
    }


def _align(recipe: Recipe, base: Anatomy, shape: HybridShape, bounds: Lengths) -> dict[str, int]:
    number = BYTES[recipe.dtype]
    return {
        "cached activations": layers_at_once(recipe, base, bounds) * align_bytes_per_layer(recipe, base, bounds),
        "gradients": shape.block * number,
        "Adam moments": 2 * shape.block * number,
        "activations of a step": shape.block_bytes,
    }


def _distill(recipe: Recipe, base: Anatomy, shape: HybridShape, bounds: Lengths) -> dict[str, int]:
    assert recipe.distill is not None
    number = BYTES[recipe.dtype]
    batch = bounds.batch(recipe.distill.tokens_per_batch, recipe.data.train)
    trained = trained_parameters(recipe, shape) * number
    terms = {
        "gradients": trained,
        "Adam moments": 2 * trained,
        "logits of a step": _LOGITS_OF_A_STEP * batch.rows * bounds.response * base.vocab_size * number,
    }
    return terms if shape.step_bytes is None else terms | {"activations of a step": shape.step_bytes}
