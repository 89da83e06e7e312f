"""A loss in the place of the output embedding: the same as on the network's own logits, wrapped or not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import tiny
from radistill.distillation.losses.chunked import chunked_sum
from radistill.models.divergence import forward_kl
from radistill.models.logits import ResponseStates, at_output, response_logits, response_states
from radistill.models.sequences import Document, collate

BATCH = collate([Document("a", tuple(range(5, 20)), 9), Document("b", tuple(range(30, 34)), 1)], 0)
# What an architecture does to its logits, where the tiny model would do nothing.
SETTINGS: dict[str, dict[str, Any]] = {
    "falcon_h1": {"lm_head_multiplier": 1.7},
    "gemma2": {"final_logit_softcapping": 2.0},
}


def network(family: str, **settings: Any) -> PreTrainedModel:
    return tiny.build(family, **{**SETTINGS.get(family, {}), **settings})


def loss(teacher: Tensor, student: Tensor, targets: Tensor) -> Tensor:
    return forward_kl(teacher, student) + nn.functional.cross_entropy(student, targets, reduction="none")


def chunked(student: ResponseStates) -> Tensor:
    with torch.no_grad():
        teacher = response_states(tiny.build("llama", seed=5), BATCH)
    return chunked_sum(loss, teacher, student, 2000, 600)


def plain(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        teacher = response_logits(tiny.build("llama", seed=5), BATCH)
    student = response_logits(model, BATCH)
    return loss(teacher.logits, student.logits, student.targets).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By the name of the parameter in a model that is not wrapped."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            whole = getattr(parameter.grad, "full_tensor", lambda grad=parameter.grad: grad)()
            found[name.removeprefix("module.")] = whole.clone()
    return found


def expected_gradients(family: str = "llama", frozen: str = "") -> dict[str, Tensor]:
    model = network(family)
    freeze(model, frozen)
    plain(model).backward()
    return gradients(model)


def freeze(model: nn.Module, part: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not part or part not in name)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, reference in expected.items():
        difference = (found[name] - reference).norm()
        assert difference <= 1e-5 * reference.norm() + 1e-7, f"{name}: {difference} of {reference.norm()}"


@pytest.mark.parametrize("family", tiny.FAMILIES | tiny.REFUSED)
@torch.no_grad()
def test_states_give_the_logits_of_every_architecture(family: str) -> None:
    model = network(family)
    expected, found = response_logits(model, BATCH), response_states(model, BATCH)
    assert found.hidden.shape == (6 + 3, 32)
    torch.testing.assert_close(found.logits(slice(None)), expected.logits, rtol=0, atol=0)
    assert torch.equal(found.targets, expected.targets)
    torch.testing.assert_close(found.logits(slice(2, 5), 100), expected.logits[2:5, :100], rtol=1e-5, atol=1e-5)
    head = model.get_output_embeddings()
    assert not head._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize("family", SETTINGS)
@torch.no_grad()
def test_the_settings_above_do_something(family: str) -> None:
    changed, neutral = (response_logits(model, BATCH).logits for model in (network(family), tiny.build(family)))
    assert (changed - neutral).abs().max() > 0.1


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *SETTINGS])
def test_all_gradients_are_those_of_the_plain_loss(family: str) -> None:
    model = network(family)
    total = at_output(model, BATCH, chunked)
    torch.testing.assert_close(total, plain(model))
    total.backward()
    assert_same(gradients(model), expected_gradients(family))


def test_a_failed_forward_leaves_no_hook() -> None:
    model = network("llama")

    def fail(states: ResponseStates) -> Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        at_output(model, BATCH, fail)
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert not model._forward_hooks


def test_gradient_checkpointing_changes_nothing() -> None:
    model = network("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    at_output(model, BATCH, chunked).backward()
    assert_same(gradients(model), expected_gradients())


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """A process group of one: wrappers take all their steps in it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("frozen", ["", "embed_tokens", "self_attn"])
@pytest.mark.parametrize("find_unused_parameters", [False, True])
def test_distributed_data_parallel(family: str, frozen: str, find_unused_parameters: bool) -> None:
    model = network(family)
    freeze(model, frozen)
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused_parameters)
    for _ in range(2):  # the second step finds out whether the first was finished
        wrapped.zero_grad()
        at_output(wrapped, BATCH, chunked).backward()
    assert_same(gradients(wrapped), expected_gradients(family, frozen))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("frozen", ["", "lm_head"])
def test_fully_sharded(family: str, frozen: str) -> None:
    """With the root's weights sharded again after the forward, so that the backward must gather them."""
    model = network(family)
    freeze(model, frozen)
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for _ in range(2):
        model.zero_grad()
        at_output(model, BATCH, chunked).backward()
    assert_same(gradients(model), expected_gradients(family, frozen))
