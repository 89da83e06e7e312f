"""Memory of the stages of a run and its room on disk, where documents are taken to be as long as they can be."""

import math
from dataclasses import dataclass

from radistill.conversion import TARGETS
from radistill.data.settings import DataSettings
from radistill.diagnosis.selectors import All, Curve, Greedy
from radistill.distillation.heldout import CHUNK_NUMBERS as COMPARISON_CHUNK
from radistill.distillation.losses.chunked import CHUNK_NUMBERS as DISTILL_CHUNK
from radistill.distillation.settings import DistillSettings, FinetuneSettings, TrainingSettings
from radistill.distillation.teacher_store.layout import bytes_per_token
from radistill.models.anatomy import Anatomy
from radistill.pipeline.shapes import Batch, HybridShape
from radistill.runs.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2}

TERMS = (
    "base weights",
    "teacher weights",
    "student weights",
    "reference weights",
    "fitted blocks",
    "KV cache of a batch",
    "cached activations",
    "cached logits",
    "gradients",
    "Adam moments",
    "activations of a step",
    "logits of a step",
)
"""The terms of `memory_of_stages`, in the order of a listing."""

FORMULAS = (
    "Weights, fitted blocks, gradients: parameters x bytes of a number; Adam moments: at most twice the gradients. KV "
    "cache: while answers are generated. Cached activations: tokens x width x layers, in and out for align. "
    "Activations of a step: what autograd keeps, counted in a forward pass on tensors without data, with transformers' "
    "own torch code; kernels for GPUs keep less; with gradient_checkpointing, the inputs of layers and the rest of the "
    "largest. Logits of a step: tokens x vocabulary, in diagnose once and in float32 twice; in distill and evaluate, "
    "of a few tokens at a time. Temporary buffers come on top."
)
"""How the terms are counted."""

# Of the full model's, in float32: the logits and the log-probabilities. A draft's are compared a few tokens at a time.
_FLOAT32_COPIES_OF_LOGITS = 2
# Of one chunk: the teacher's and the student's, whose gradient takes their place.
_LOGITS_OF_A_STEP = 2
# Of one chunk, in float32: of base and student the logits, divided, and their logarithms; of the KL, its terms.
_FLOAT32_COPIES_OF_A_COMPARISON = 8
# Of one chunk, in float32: the teacher's logits, their logarithms, and those without the largest.
_FLOAT32_COPIES_OF_A_STORE = 3
# Trained weights and both moments of AdamW; two checkpoints, and the best, are kept while another is being written.
_TENSORS_OF_A_CHECKPOINT = 3
_CHECKPOINTS = 3


@dataclass(frozen=True)
class Lengths:
    """How long documents and responses can become under a recipe, in tokens.

    Attributes:
        document: longest document.
        response: most response tokens of one document.
        trained: most tokens of one training document whose logits are learnt.
    """

    document: int
    response: int
    trained: int

    def tokens(self, tokens_per_batch: int, documents: int) -> int:
        """Most padded tokens of one batch: a document that is longer than the limit gets a batch of its own."""
        return min(max(tokens_per_batch, self.document), documents * self.document)

    def batch(self, tokens_per_batch: int, documents: int) -> Batch:
        """A batch of that many tokens whose rows are as long as documents can be."""
        tokens = self.tokens(tokens_per_batch, documents)
        rows = math.ceil(tokens / self.document)
        return Batch(rows, math.ceil(tokens / rows))


def lengths(recipe: Recipe, context: int) -> Lengths:
    """Upper bounds that follow from the recipe and the context length of the model."""
    data = recipe.data
    document = data.longest(context)
    response = document - 1
    if data.responses.source == "teacher":
        response = min(response, data.responses.max_new_tokens)
    return Lengths(document, response, trained=response if data.loss_on == "response" else document - 1)


def step_lengths(recipe: Recipe, bounds: Lengths, context: int) -> Lengths:
    """Upper bounds in a step of `distill`, where the student may write longer responses than the documents'."""
    if recipe.distill is None or recipe.distill.on_policy is None:
        return bounds
    written = recipe.distill.on_policy.max_new_tokens
    document = max(bounds.document, min(context, bounds.document - 1 + written))
    return Lengths(document, max(bounds.response, written), max(bounds.trained, written))


def reading(recipe: Recipe, stage: str) -> Recipe:
    """The recipe with what `align`, `distill` or `finetune` reads as its data."""
    own = recipe.own_data.get(stage)
    return recipe if own is None else recipe.model_copy(update={"data": own})


def lengths_in_stages(recipe: Recipe, context: int) -> dict[str, Lengths]:
    """Upper bounds by what is read: `data` (the recipe's), `align`, `store`, `distill` and `finetune`."""
    read = {stage: lengths(reading(recipe, stage), context) for stage in ("align", "distill", "finetune")}
    of_documents = read["distill"]
    return read | {
        "data": lengths(recipe, context),
        "store": of_documents,
        "distill": step_lengths(recipe, of_documents, context),
    }


def trainings(recipe: Recipe) -> list[DistillSettings | FinetuneSettings]:
    """The stages of end-to-end training that a recipe has."""
    return [training for training in (recipe.distill, recipe.finetune) if training is not None]


def trained_parameters(training: TrainingSettings, shape: HybridShape) -> int:
    """Parameters that a stage of end-to-end training changes."""
    new, others = shape.new, sum(shape.parameters.values()) - shape.new
    return new * training.trains(new=True) + others * training.trains(new=False)


def trained_bytes(training: TrainingSettings, recipe: Recipe) -> int:
    """Bytes of a trained weight in end-to-end training, of its gradient, and of each of its moments."""
    return BYTES[recipe.dtype] if training.precision == "weights" else 4


def memory_of_stages(
    recipe: Recipe,
    base: Anatomy,
    shape: HybridShape,
    bounds: dict[str, Lengths],
    step_bytes: dict[str, int],
    loaded: dict[str, int],
    teacher: Anatomy | None = None,
) -> dict[str, dict[str, int]]:
    """What each stage holds at its peak: bytes by stage and term, the terms being those of `TERMS`.

    Args:
        recipe: the recipe.
        base: the model to convert.
        shape: the hybrid.
        bounds: from `lengths_in_stages`.
        step_bytes: what autograd keeps in a step, by stage of end-to-end training.
        loaded: parameters of the models that stay loaded in all stages, by term; a teacher that is stored goes before
            there is a student, and comes back for `finetune`.
        teacher: another teacher; None for self-distillation.
    """
    number = BYTES[recipe.dtype]
    always = {term: parameters * number for term, parameters in loaded.items()}
    stages = (
        {"data": always | _data(recipe, teacher or base, bounds["data"])}
        if recipe.data.responses.source != "data"
        else {}
    )
    stages["diagnose"] = always | _diagnose(recipe, base, shape, bounds["data"])
    hybrid = {"student weights": sum(shape.parameters.values()) * number}
    with_teacher = always
    if recipe.distill is not None and recipe.distill.teacher_store is not None:
        stages["store"] = always | _store(reading(recipe, "distill"), base, bounds["store"])
        always = {term: size for term, size in always.items() if term != "teacher weights"}
    if recipe.align is not None:
        in_diagnosis = recipe.diagnose.by == "replaceability"
        terms = _align(reading(recipe, "align"), base, shape, bounds["align"])
        stages["align"] = (with_teacher if in_diagnosis else always) | hybrid | terms
        stages["align"]["student weights"] += shape.block * (BYTES["float32"] - number)
    for training in trainings(recipe):
        if training is not recipe.distill:
            always = with_teacher  # its held-out measures ask the teacher itself
        read, longest = reading(recipe, training.section), bounds[training.section]
        stage = always | hybrid | _training(training, read, base, shape, longest)
        stage["student weights"] += trained_parameters(training, shape) * (trained_bytes(training, recipe) - number)
        if training.select is not None:  # which is of the student's size
            stage["reference weights"] = hybrid["student weights"]
        stages[training.section] = stage | {"activations of a step": step_bytes[training.section]}
    stages["evaluate"] = always | hybrid | _evaluate(recipe, base, bounds["data"])
    return stages


def layers_at_once(recipe: Recipe, base: Anatomy, bounds: Lengths) -> int:
    """Layers whose activations `align` records in one pass of the base."""
    assert recipe.align is not None
    per_layer = align_bytes_per_layer(recipe, base, bounds)
    return min(max(1, int(recipe.align.memory_gib * 2**30 // per_layer)), max(_fits(recipe, base)))


def align_passes(recipe: Recipe, base: Anatomy, bounds: Lengths) -> int:
    """Passes of the base over the training documents, in which `align` records activations."""
    if recipe.align is None:
        return 0
    at_once = layers_at_once(recipe, base, bounds)
    return sum(math.ceil(blocks / at_once) for blocks in _fits(recipe, base))


def fitted_blocks(recipe: Recipe, base: Anatomy) -> int:
    """How many blocks `align` fits: those that the hybrid needs, or one for every attention to choose by."""
    return sum(_fits(recipe, base)) if recipe.align is not None else 0


def _fits(recipe: Recipe, base: Anatomy) -> list[int]:
    """Blocks by the student that they are fitted in, as `fit_blocks` has them."""
    if recipe.diagnose.by == "redundancy":
        return [recipe.diagnose.sizes[-1]]
    return [len(group) for group in TARGETS[recipe.target.kind].students(base.attention_layers)]


def align_bytes_per_layer(recipe: Recipe, base: Anatomy, bounds: Lengths) -> int:
    """Input and output of one attention, for as many training tokens as the steps can use and an eighth to measure."""
    assert recipe.align is not None
    used = recipe.align.steps * recipe.align.tokens_per_batch
    tokens = min(recipe.data.train * bounds.document, used + used // 8 + recipe.align.tokens_per_batch)
    return 2 * tokens * base.hidden_size * BYTES[recipe.dtype]


def disk_bytes(recipe: Recipe, base: Anatomy, shape: HybridShape) -> int:
    """Room that one hybrid takes in the run folder: before, between and after trainings, fitted blocks, checkpoints."""
    weights = sum(shape.parameters.values())
    students = 2 if recipe.finetune is None else 3
    kept = (students * weights + fitted_blocks(recipe, base) * shape.block) * BYTES[recipe.dtype]
    # Those of one stage are gone before the next begins.
    return kept + max((_checkpoint_bytes(training, recipe, shape) for training in trainings(recipe)), default=0)


def _checkpoint_bytes(training: TrainingSettings, recipe: Recipe, shape: HybridShape) -> int:
    checkpoints = _CHECKPOINTS if training.keep == "last" else _CHECKPOINTS + 1
    tensors = checkpoints * _TENSORS_OF_A_CHECKPOINT * trained_parameters(training, shape)
    return tensors * trained_bytes(training, recipe)


def store_bytes(recipe: Recipe, base: Anatomy, bounds: Lengths) -> int:
    """Room on disk of the stored teacher; 0 without one."""
    if recipe.distill is None or recipe.distill.teacher_store is None:
        return 0
    top_k = min(recipe.distill.teacher_store.top_k, base.vocab_size)
    return (recipe.data.train + recipe.data.heldout) * bounds.trained * bytes_per_token(top_k)


def _data(recipe: Recipe, teacher: Anatomy, bounds: Lengths) -> dict[str, int]:
    settings = recipe.data.responses
    tokens = settings.batch_size * (bounds.document + settings.max_new_tokens)
    return {"KV cache of a batch": tokens * teacher.kv_bytes_per_token(BYTES[recipe.dtype])}


def retrieval_tokens(data: DataSettings, split: str) -> int:
    """Tokens of the retrieval texts of a split."""
    return 0 if data.retrieval is None else sum(data.retrieval.contexts) * int(getattr(data.retrieval, split))


def _diagnose(recipe: Recipe, base: Anatomy, shape: HybridShape, bounds: Lengths) -> dict[str, int]:
    number = BYTES[recipe.dtype]
    documents, texts = recipe.data.calibration, retrieval_tokens(recipe.data, "calibration")
    response_tokens = min(bounds.tokens(recipe.diagnose.tokens_per_batch, documents), documents * bounds.response)
    copies = number + 4 * _FLOAT32_COPIES_OF_LOGITS
    draws = recipe.diagnose.draws_tradeoff
    # The full model's, and those of the set that a search stays near.
    kept = 2 if isinstance(recipe.diagnose.selector, Greedy | All | Curve) or draws else 1
    tokens, logits = kept * (documents * bounds.document + texts), documents * bounds.response
    if draws:  # on the held-out texts, beside the others
        tokens += recipe.data.heldout * bounds.document + retrieval_tokens(recipe.data, "heldout")
        logits += recipe.data.heldout * bounds.response
    return _blocks_to_choose_by(recipe, base, shape) | {
        "cached activations": (base.num_layers + 1) * tokens * base.hidden_size * number,
        "cached logits": logits * base.vocab_size * 4,
        "logits of a step": response_tokens * base.vocab_size * copies,
    }


def _align(recipe: Recipe, base: Anatomy, shape: HybridShape, bounds: Lengths) -> dict[str, int]:
    number = BYTES["float32"]  # of what is trained, whatever the rest is in
    return _blocks_to_choose_by(recipe, base, shape) | {
        "cached activations": layers_at_once(recipe, base, bounds) * align_bytes_per_layer(recipe, base, bounds),
        "gradients": shape.block * number,
        "Adam moments": 2 * shape.block * number,
        "activations of a step": shape.block_bytes or 0,
    }


def _blocks_to_choose_by(recipe: Recipe, base: Anatomy, shape: HybridShape) -> dict[str, int]:
    """Where layers are judged by fitted blocks: these, which stay beside the student that the last one is fitted in."""
    if recipe.diagnose.by == "redundancy":
        return {}
    return {"fitted blocks": fitted_blocks(recipe, base) * shape.block * BYTES[recipe.dtype]}


def _store(recipe: Recipe, base: Anatomy, bounds: Lengths) -> dict[str, int]:
    assert recipe.distill is not None
    assert recipe.distill.teacher_store is not None
    tokens = bounds.tokens(recipe.distill.teacher_store.tokens_per_batch, recipe.data.train + recipe.data.heldout)
    logits = min(tokens * base.vocab_size, COMPARISON_CHUNK)
    return {"logits of a step": _FLOAT32_COPIES_OF_A_STORE * logits * 4}


def _training(
    training: DistillSettings | FinetuneSettings, recipe: Recipe, base: Anatomy, shape: HybridShape, bounds: Lengths
) -> dict[str, int]:
    number = BYTES[recipe.dtype]
    documents = recipe.data.train
    response_tokens = min(bounds.tokens(training.tokens_per_batch, documents), documents * bounds.trained)
    trained = trained_parameters(training, shape) * trained_bytes(training, recipe)
    if training.precision == "bfloat16":
        number = BYTES[training.precision]
    beside = training.taught and training.teacher_store is None
    logits = (_LOGITS_OF_A_STEP if beside else 1) * min(response_tokens * base.vocab_size, DISTILL_CHUNK) * number
    if training.trains(new=False):
        logits += base.vocab_size * base.hidden_size * 4  # the gradient of the output embedding is added up in float32
    return {
        "gradients": trained,
        "Adam moments": 2 * trained,
        "logits of a step": logits,
    }


def _evaluate(recipe: Recipe, base: Anatomy, bounds: Lengths) -> dict[str, int]:
    number, settings, documents = BYTES[recipe.dtype], recipe.evaluate, recipe.data.heldout
    response_tokens = min(bounds.tokens(settings.tokens_per_batch, documents), documents * bounds.response)
    logits = min(response_tokens * base.vocab_size, COMPARISON_CHUNK)
    terms = {"logits of a step": _FLOAT32_COPIES_OF_A_COMPARISON * logits * 4}
    if settings.exact_match:
        tokens = min(settings.batch_size, documents) * (bounds.document + settings.max_new_tokens)
        terms["KV cache of a batch"] = tokens * base.kv_bytes_per_token(number)
    return terms
