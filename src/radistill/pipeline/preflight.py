"""Everything that a run would refuse, as far as it can be told without weights: for `radistill run --dry-run`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import GatedRepoError
from transformers import PreTrainedConfig

from radistill.conversion import TARGETS, check_conversion
from radistill.conversion.seeing import seeing_config
from radistill.data.retrieval import check_contexts
from radistill.data.settings import DataSettings, HubData, JsonlData
from radistill.data.sources import draw
from radistill.diagnosis.diagnose import check_budget
from radistill.distillation.losses.hidden import check_same_width
from radistill.distillation.tracking import check_tracker
from radistill.errors import RadistillError
from radistill.models.anatomy import anatomy_of
from radistill.models.known_configs import known_config
from radistill.models.loading import load_config, load_tokenizer, skeleton
from radistill.models.sources import gguf_file
from radistill.pipeline.servers import check_servers, servers_of
from radistill.pipeline.tasks import check_tasks
from radistill.runs.arms import Arm
from radistill.runs.recipe import Recipe
from radistill.speculation.measure import check_smaller


@dataclass(frozen=True)
class Checked:
    """What a recipe's models are, after all checks.

    Attributes:
        recipe: with a target.
        base: config of the model to convert.
        teacher: config of the teacher, all of it where it reads images; None where the base teaches itself.
        warnings: what a run would refuse here, but perhaps not on the machine that it is meant for.
    """

    recipe: Recipe
    base: PreTrainedConfig
    teacher: PreTrainedConfig | None
    warnings: list[str]


def check(recipe: Recipe) -> Checked:
    """Check a recipe against its models, this machine and its data, without loading a weight.

    A file that is missing here, or a GPU, may be there where the recipe is to run, so these are warnings.

    Raises:
        RadistillError: for what no machine can run: a budget that the model does not have, a model that the target
            cannot hold, an initialisation that does not fit, a teacher that does not, broken data.
    """
    warnings: list[str] = []
    whole = _config(recipe.model, recipe.trust_remote_code, warnings, recipe.sees)
    base = whole.get_text_config()
    recipe = recipe.for_model(base)
    check_hybrids(recipe, base)
    check_tasks(recipe, getattr(base, "max_position_embeddings", None))
    configs: dict[str | None, PreTrainedConfig] = {}
    for arm in recipe.hybrids:
        if arm.distill is not None and arm.distill.select is not None:
            reference = arm.distill.select.reference
            try:
                load_config(reference, recipe.trust_remote_code)
            except RadistillError as error:  # a run that has yet to leave it may come first
                warnings.append(f"distill.select.reference: {error}")
            check_reference(reference, recipe.model)
        for training in arm.trainings:
            check_tracker(training.report_to, arm.field(training.section))
        if arm.teacher is None:
            continue
        if arm.teacher not in configs:
            configs[arm.teacher] = _config(arm.teacher, recipe.trust_remote_code, warnings, recipe.sees)
            if arm.sees:
                seeing_config(configs[arm.teacher], whole, (recipe.model, arm.teacher))
            _check_teacher(recipe.model, arm.teacher, base, configs[arm.teacher].get_text_config(), warnings)
        if drafts_as_it_is(recipe, arm):
            both = ((recipe.model, base), (arm.teacher, configs[arm.teacher].get_text_config()))
            drafter, target = (skeleton(config, source, recipe.trust_remote_code) for source, config in both)
            check_smaller(drafter, target, (recipe.model, arm.teacher))
        if arm.distill is not None and arm.distill.hidden is not None:
            check_same_width(configs[arm.teacher].get_text_config().hidden_size, base.hidden_size)
    if recipe.device == "cuda" and not torch.cuda.is_available():
        warnings.append("device is 'cuda', but torch sees no GPU here; a run on this machine would stop")
    check_servers(recipe)
    for field, server in servers_of(recipe).items():
        started = "vLLM, which a run starts, takes memory that is not counted here"
        warnings.append(f"{field}: {started if server.starts_vllm else f'{server.url} is not asked by a dry run'}")
    context = getattr(configs.get(recipe.teacher, base).get_text_config(), "max_position_embeddings", None)
    _check_data("data", recipe.data, recipe.seed, context, warnings)
    for stage, settings in recipe.own_data.items():
        _check_data(f"{stage}.data", settings, recipe.seed, context, warnings)
    return Checked(recipe, base, configs.get(recipe.teacher), warnings)


def check_hybrids(recipe: Recipe, base: PreTrainedConfig) -> None:
    """Check by the base's config alone that each hybrid of a recipe can be made of it.

    Raises:
        RadistillError: naming the budget that the model does not have, what the target cannot hold, or why the
            initialisation does not fit.
    """
    anatomy = anatomy_of(base)
    network = skeleton(base, recipe.model, recipe.trust_remote_code)
    for arm in recipe.hybrids:
        budget = recipe.diagnose.budget if arm.budget is None else arm.budget
        target = TARGETS[arm.target.kind]
        cut = not target.mixers
        try:
            check_conversion(recipe.model, network, arm.target, arm.init)
        except RadistillError as error:
            if arm.is_main:
                raise
            raise RadistillError(f"arms.{arm.name}: {error}") from None
        check_budget(budget, anatomy, target.keeps, arm.field("diagnose", "budget"), least=0 if cut else 1, cut=cut)


def drafts_as_it_is(recipe: Recipe, arm: Arm) -> bool:
    """Whether an arm's student is the whole model, which is to draft for the arm's teacher."""
    return (recipe.diagnose.budget if arm.budget is None else arm.budget) == 0


def check_reference(source: str, model: str) -> None:
    """Refuse a reference of `distill.select` with another tokenizer than the model, where both are at hand."""
    reference, own = _vocabulary(source), _vocabulary(model)
    if reference is not None and own is not None and reference != own:
        raise RadistillError(
            f"distill.select.reference: {source} has another tokenizer than {model}; name a model that was distilled "
            "from the same one before"
        )


def _config(source: str, trust_remote_code: bool, warnings: list[str], images: bool = False) -> PreTrainedConfig:
    try:
        return load_config(source, trust_remote_code, images)
    except RadistillError as error:
        is_here = gguf_file(source) is not None or Path(source).expanduser().exists()
        known = None if is_here else known_config(source)
        if known is None:
            raise
        gated = isinstance(error.__context__, GatedRepoError)
        reason = "the hub wants you to ask for access first" if gated else "the hub was not reached"
        warnings.append(f"{source}: config from the built-in table; {reason}")
        return known


def _check_teacher(
    model: str, source: str, base: PreTrainedConfig, teacher: PreTrainedConfig, warnings: list[str]
) -> None:
    """Compare the tokenizers where both are at hand; where they are not, the sizes of the vocabularies."""
    of_base, of_teacher = _vocabulary(model), _vocabulary(source)
    if of_base is not None and of_teacher is not None:
        if of_base != of_teacher:
            raise RadistillError(
                f"teacher {source} has another tokenizer than {model} ({len(of_teacher):,} tokens and "
                f"{len(of_base):,}); choose a teacher of the student's family"
            )
    elif base.vocab_size != teacher.vocab_size:
        warnings.append(
            f"teacher {source} has a vocabulary of {teacher.vocab_size:,} and {model} one of "
            f"{base.vocab_size:,}; a run stops unless the difference is only padding"
        )


def _vocabulary(source: str) -> dict[str, int] | None:
    if gguf_file(source) is not None:
        return None
    try:
        return load_tokenizer(source).get_vocab()
    except RadistillError:  # not at hand or broken: the run itself says which
        return None


def _check_data(section: str, settings: DataSettings, seed: int, context: int | None, warnings: list[str]) -> None:
    if isinstance(settings, HubData):
        warnings.append(f"{section}.id: {settings.id} is not looked into by a dry run")
    paths = (settings.path, settings.heldout_path) if isinstance(settings, JsonlData) else ()
    missing = [path for path in paths if path is not None and not path.exists()]
    try:
        check_contexts(settings, context)
        if not isinstance(settings, HubData):
            draw(settings, seed)
    except RadistillError as error:
        if not any(str(error).startswith(f"{path}:") for path in missing):
            # A field of these settings is named as if they were the recipe's own.
            field = section.removesuffix("data") if str(error).startswith("data.") else ""
            raise RadistillError(f"{field}{error}") from None
        warnings += [f"{path}: no such file here, where relative paths begin at {Path.cwd()}" for path in missing]
