"""Memory of the stages of a run and its room on disk, where documents are taken to be as long as they can be."""

from collections.abc import Mapping

from radistill.diagnosis.full_model import room_for
from radistill.diagnosis.selectors import All, Gates
from radistill.distillation.losses.chunked import CHUNK_NUMBERS as DISTILL_CHUNK
from radistill.distillation.settings import DistillSettings, NextTokenSettings, TrainingSettings
from radistill.distillation.teacher_store.read import bytes_per_token
from radistill.models.anatomy import Anatomy
from radistill.models.logits import CHUNK_NUMBERS
from radistill.pipeline.shapes import HybridShape
from radistill.pipeline.work import BYTES, Work

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
    "largest. Logits of a step: tokens x vocabulary, of a few tokens at a time. Temporary buffers come on top."
)
"""How the terms are counted."""

# Of a draft's, in float32: the logits, the log-probabilities and the terms of the KL, which wait for the gradient.
_FLOAT32_COPIES_OF_A_GRADIENT = 3
# Of one chunk: the teacher's and the student's, whose gradient takes their place.
_LOGITS_OF_A_STEP = 2
# Of one chunk, in float32: of base and student the logits, divided, and their logarithms; of the KL, its terms.
_FLOAT32_COPIES_OF_A_COMPARISON = 8
# Of one chunk, in float32: the teacher's logits, their logarithms, and those without the largest.
_FLOAT32_COPIES_OF_A_STORE = 3
# Trained weights and both moments of AdamW; two checkpoints, and the best, are kept while another is being written.
_TENSORS_OF_A_CHECKPOINT = 3
_CHECKPOINTS = 3


def trained_parameters(training: TrainingSettings, shape: HybridShape) -> int:
    """Parameters that a stage of end-to-end training changes."""
    new, others = shape.new, sum(shape.parameters.values()) - shape.new - shape.frozen
    return new * training.trains(new=True) + others * training.trains(new=False)


def _trained_bytes(training: TrainingSettings, work: Work) -> int:
    """Bytes of a trained weight in end-to-end training, of its gradient, and of each of its moments."""
    return work.number if training.precision == "weights" else 4


def memory_of_stages(
    work: Work,
    shape: HybridShape,
    step_bytes: Mapping[str, int],
    loaded: Mapping[str, int],
    teacher: Anatomy | None = None,
    processes: int = 1,
) -> dict[str, dict[str, int]]:
    """What each stage holds at its peak: bytes by stage and term, the terms being those of `TERMS`.

    Args:
        work: what they do.
        shape: the hybrid.
        step_bytes: what autograd keeps in a step, by stage of end-to-end training.
        loaded: parameters of the models that stay loaded in all stages, by term; a teacher that is stored goes before
            there is a student, and comes back for `finetune`.
        teacher: another teacher; None for self-distillation.
        processes: that share the work; what is counted is one's.
    """
    recipe, number = work.recipe, work.number
    store = recipe.distill.teacher_store if recipe.distill is not None else None
    is_read = recipe.data.responses.needs_weights or recipe.finetune is not None or store is None or not store.server
    always = {term: size * number for term, size in loaded.items() if is_read or term != "teacher weights"}
    stages = {"data": always | _data(work, teacher or work.base)} if recipe.data.responses.needs_weights else {}
    stages["diagnose"] = always | _diagnose(work, shape)
    hybrid = {"student weights": sum(shape.parameters.values()) * number}
    with_teacher = always
    if store is not None:
        if store.server is None:
            documents = work.reads("store")
            tokens = work.lengths("store").tokens(store.tokens_per_batch, documents.train + documents.heldout)
            logits = min(tokens * work.base.vocab_size, CHUNK_NUMBERS)
            stages["store"] = always | {"logits of a step": _FLOAT32_COPIES_OF_A_STORE * logits * 4}
        always = {term: size for term, size in always.items() if term != "teacher weights"}
    if recipe.align is not None:
        in_diagnosis = recipe.diagnose.by == "replaceability"
        stages["align"] = (with_teacher if in_diagnosis else always) | hybrid | _align(work, shape, processes)
        stages["align"]["student weights"] += shape.block * (BYTES["float32"] - number)
    for training in work.trainings:
        if training is recipe.finetune:
            always = with_teacher  # its held-out measures ask the teacher itself
        stage = (with_teacher if training is recipe.connect else always) | hybrid | _training(work, training, shape)
        stage["student weights"] += trained_parameters(training, shape) * (_trained_bytes(training, work) - number)
        if training.select is not None:  # which is of the student's size
            stage["reference weights"] = hybrid["student weights"]
        stages[training.section] = stage | {"activations of a step": step_bytes[training.section]}
    stages["evaluate"] = always | hybrid | _evaluate(work)
    return stages


def recorded_bytes(work: Work, processes: int) -> tuple[int, int]:
    """What `align` records of the base in one pass: bytes in memory, or else on disk, where processes hand it over."""
    if work.recipe.align is None:
        return 0, 0
    needed = align_bytes_per_layer(work) * max(work.fits)
    return (needed, 0) if processes == 1 and needed <= work.recipe.align.memory_gib * 2**30 else (0, needed)


def align_bytes_per_layer(work: Work) -> int:
    """Input and output of one attention, for as many training tokens as the steps can use and an eighth to measure."""
    align = work.recipe.align
    assert align is not None
    used = align.steps * align.tokens_per_batch
    tokens = min(work.reads("align").train * work.lengths("align").document, used + used // 8 + align.tokens_per_batch)
    return 2 * tokens * work.base.hidden_size * work.number


def disk_bytes(work: Work, shape: HybridShape) -> int:
    """Room that one hybrid takes in the run folder: before, between and after trainings, fitted blocks, checkpoints."""
    weights = sum(shape.parameters.values())
    students = 2 if work.recipe.finetune is None else 3
    kept = (students * weights + work.align_blocks * shape.block) * work.number
    # Those of one stage are gone before the next begins.
    return kept + max((_checkpoint_bytes(work, training, shape) for training in work.trainings), default=0)


def _checkpoint_bytes(work: Work, training: TrainingSettings, shape: HybridShape) -> int:
    checkpoints = _CHECKPOINTS if training.keep == "last" else _CHECKPOINTS + 1
    tensors = checkpoints * _TENSORS_OF_A_CHECKPOINT * trained_parameters(training, shape)
    return tensors * _trained_bytes(training, work)


def store_bytes(work: Work) -> int:
    """Room on disk of the stored teacher; 0 without one."""
    distill, documents = work.recipe.distill, work.reads("store")
    if distill is None or distill.teacher_store is None:
        return 0
    top_k = min(distill.teacher_store.top_k, work.base.vocab_size)
    return (documents.train + documents.heldout) * work.lengths("store").trained * bytes_per_token(top_k)


def _data(work: Work, teacher: Anatomy) -> dict[str, int]:
    settings = work.recipe.data.responses
    tokens = settings.batch_size * (work.lengths("data").document + settings.max_new_tokens)
    return {"KV cache of a batch": tokens * teacher.kv_bytes_per_token(work.number)}


def _diagnose(work: Work, shape: HybridShape) -> dict[str, int]:
    number, base, settings, bounds = work.number, work.base, work.recipe.diagnose, work.lengths("data")
    documents = work.recipe.data.calibration
    response_tokens = min(bounds.tokens(settings.tokens_per_batch, documents), documents * bounds.response)
    states = logits = 0
    # Those of the trade-off's held-out texts lie beside the others.
    for split in ("calibration", "heldout") if settings.draws_tradeoff else ("calibration",):
        count = getattr(work.recipe.data, split)
        tokens = count * bounds.document + work.retrieval_tokens(split)
        room = room_for(base, number, tokens, settings.memory_gib)
        states += room.states + count * bounds.response * base.hidden_size * number
        logits += min(room.logits, 4 * base.vocab_size * count * bounds.response)
    step = _FLOAT32_COPIES_OF_A_COMPARISON * min(response_tokens * base.vocab_size, CHUNK_NUMBERS) * 4
    if isinstance(settings.selector, Gates | All):  # which takes a gradient through them
        step += response_tokens * base.vocab_size * (number + 4 * _FLOAT32_COPIES_OF_A_GRADIENT)
    terms = {"cached activations": states, "cached logits": logits, "logits of a step": step}
    return _blocks_to_choose_by(work, shape) | terms


def _align(work: Work, shape: HybridShape, processes: int) -> dict[str, int]:
    number = BYTES["float32"]  # of what is trained, whatever the rest is in
    return _blocks_to_choose_by(work, shape) | {
        "cached activations": recorded_bytes(work, processes)[0],
        "gradients": shape.block * number,
        "Adam moments": 2 * shape.block * number,
        "activations of a step": shape.block_bytes or 0,
    }


def _blocks_to_choose_by(work: Work, shape: HybridShape) -> dict[str, int]:
    """Where layers are judged by fitted blocks: these, which stay beside the student that the last one is fitted in."""
    if work.recipe.diagnose.by == "redundancy":
        return {}
    return {"fitted blocks": work.align_blocks * shape.block * work.number}


def _training(work: Work, training: DistillSettings | NextTokenSettings, shape: HybridShape) -> dict[str, int]:
    base, longest = work.base, work.reads(training.section).train * work.lengths(training.section).trained
    response_tokens = min(work.tokens(training.section, training.tokens_per_batch), longest)
    trained = trained_parameters(training, shape) * _trained_bytes(training, work)
    number = BYTES["bfloat16"] if training.precision == "bfloat16" else work.number
    beside = training.taught and training.teacher_store is None
    logits = (_LOGITS_OF_A_STEP if beside else 1) * min(response_tokens * base.vocab_size, DISTILL_CHUNK) * number
    if training.trains(new=False):
        logits += base.vocab_size * base.hidden_size * 4  # the gradient of the output embedding is added up in float32
    return {"gradients": trained, "Adam moments": 2 * trained, "logits of a step": logits}


def _evaluate(work: Work) -> dict[str, int]:
    settings, documents, bounds = work.recipe.evaluate, work.recipe.data.heldout, work.lengths("data")
    response_tokens = min(bounds.tokens(settings.tokens_per_batch, documents), documents * bounds.response)
    logits = min(response_tokens * work.base.vocab_size, CHUNK_NUMBERS)
    terms = {"logits of a step": _FLOAT32_COPIES_OF_A_COMPARISON * logits * 4}
    if settings.exact_match:
        tokens = min(settings.batch_size, documents) * (bounds.document + settings.max_new_tokens)
        terms["KV cache of a batch"] = tokens * work.base.kv_bytes_per_token(work.number)
    return terms
