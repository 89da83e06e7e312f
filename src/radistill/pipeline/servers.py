"""The servers that a recipe names: what can be told of them before any is asked."""

from radistill.conversion import TARGETS
from radistill.errors import RadistillError
from radistill.mixers.gdn import GDN
from radistill.models.server.settings import ServerSettings
from radistill.models.server.vllm import check_dtype, python_with_vllm
from radistill.runs.recipe import Recipe


def servers_of(recipe: Recipe) -> dict[str, ServerSettings]:
    """By the name of the field, each server that a run would ask."""
    found = {
        f"{arm.field('distill')}.teacher_store.server": arm.distill.teacher_store.server
        for arm in recipe.hybrids
        if arm.distill is not None and arm.distill.teacher_store is not None
    }
    data = {"data": recipe.data, **{f"{stage}.data": settings for stage, settings in recipe.own_data.items()}}
    found |= {f"{section}.responses.server": settings.responses.server for section, settings in data.items()}
    found["evaluate.server"] = recipe.evaluate.server
    return {field: server for field, server in found.items() if server is not None}


def check_servers(recipe: Recipe) -> None:
    """Refuse vLLM where it is not, and for a hybrid that it does not compute here.

    Raises:
        RadistillError: naming the field.
    """
    for field, server in servers_of(recipe).items():
        if server.starts_vllm:
            try:
                python_with_vllm()
                if field == "evaluate.server":
                    check_dtype("the hybrid", recipe.dtype, GDN in TARGETS[recipe.target.kind].mixers)
            except RadistillError as error:
                raise RadistillError(f"{field}: {error}") from None
