"""Alignment on tiny models: each block learns its attention, and nothing else changes."""

from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from radistill.conversion import GraniteHybridSettings, convert
from radistill.distillation.activations import Pass, passes, recorded_attentions
from radistill.distillation.align import AlignSettings, align
from radistill.errors import RadistillError
from radistill.models.loading import Model, load
from radistill.models.sequences import Document, collate
from radistill.processes import Processes

SETTINGS = AlignSettings(steps=60, learning_rate=1e-2, tokens_per_batch=200)
SHORT = SETTINGS.model_copy(update={"steps": 6})


def documents(count: int = 12, words: int = 200) -> list[Document]:
    """Random tokens; the fewer `words`, the more of what one document teaches holds in another."""
    generator = torch.Generator().manual_seed(9)
    return [
        Document(str(n), tuple(torch.randint(4, words, (20 + n % 12,), generator=generator).tolist()), 5)
        for n in range(count)
    ]


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


@pytest.mark.parametrize("init", ["zero", "random"])
def test_blocks_learn_their_attention_and_nothing_else_changes(init: str) -> None:
    teacher = tiny.model("llama")
    student = convert(teacher, [1, 2], init=init)
    before, teacher_before = weights(student), weights(teacher)
    result = align(student, teacher, documents(48, words=24), SETTINGS, replace=[1, 2])
    for fit in result.layers:
        assert fit.unexplained_before >= 1  # both initialisations put out zero
        assert fit.unexplained_after < 0.8 * fit.unexplained_before
        assert len(fit.losses) == 60
        assert len(fit.gradient_norms) == 10
        assert min(fit.gradient_norms) > 0
    changed = {name for name, tensor in weights(student).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.mamba.", "model.layers.2.mamba.")) for name in changed)
    assert all(torch.equal(tensor, teacher_before[name]) for name, tensor in weights(teacher).items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.network.parameters())


def test_the_unexplained_share_is_what_its_name_says() -> None:
    """Against a plain loop over documents and tokens, in float64, one document at a time."""
    teacher = tiny.model("qwen2")
    student = convert(teacher, [1], init="zero")
    docs = documents()
    result = align(student, teacher, docs, SHORT.model_copy(update={"held_out": 0.25}), replace=[1])
    errors, outputs = [], []
    for document in docs[9:]:
        batch = collate([document], 0)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        attention = teacher.anatomy.mixer(teacher.network, 1)
        handle = attention.register_forward_hook(
            lambda module, args, kwargs, output, seen=seen: seen.append((kwargs["hidden_states"], output[0])),
            with_kwargs=True,
        )
        with torch.no_grad():
            teacher.network(input_ids=batch.input_ids)
            handle.remove()
            got = student.anatomy.mixer(student.network, 1)(seen[0][0])
        for time in range(got.shape[1]):
            errors.append((got[0, time] - seen[0][1][0, time]).double().square().sum())
            outputs.append(seen[0][1][0, time].double())
    mean = sum(outputs) / len(outputs)
    variance = sum((output - mean).square().sum() for output in outputs)
    assert result.layers[0].unexplained_after == pytest.approx(float(sum(errors) / variance), rel=1e-4)


def read_by(student: Model, layers: list[int]) -> set[int]:
    """The layers whose blocks read anything from now on: those that are fitted, and not restored."""
    found: set[int] = set()
    for layer in layers:
        block = student.anatomy.mixer(student.network, layer)
        block.register_forward_pre_hook(lambda *_, layer=layer: found.add(layer))
    return found


def test_a_killed_alignment_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    whole = convert(teacher, [0, 2], init="zero")
    expected = align(whole, teacher, documents(), SHORT, replace=[0, 2])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    cut = convert(teacher, [0, 2], init="zero")
    cut.anatomy.mixer(cut.network, 2).register_forward_pre_hook(die)
    with pytest.raises(KeyboardInterrupt):
        align(cut, teacher, documents(), SHORT, replace=[0, 2], folder=tmp_path)
    resumed = convert(teacher, [0, 2], init="zero")
    fitted = read_by(resumed, [0, 2])
    result = align(resumed, teacher, documents(), SHORT, replace=[0, 2], folder=tmp_path)
    assert fitted == {2}
    assert [layer.losses for layer in result.layers] == [layer.losses for layer in expected.layers]
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(resumed).items())

    again = convert(teacher, [0, 2], init="zero")
    other = SHORT.model_copy(update={"learning_rate": 5e-3})
    fitted = read_by(again, [0, 2])
    align(again, teacher, documents(), other, replace=[0, 2], folder=tmp_path)
    assert fitted == {0, 2}  # what was fitted with other settings is not taken


def test_students_of_other_settings_share_a_folder_and_nothing_else(tmp_path: Path) -> None:
    """Blocks of the same shapes and weights whose geometry differs: two groups of four states, one of eight."""
    teacher = tiny.model("llama")
    fits = []
    for groups, state in ((1, 8), (2, 4)):
        target = GraniteHybridSettings(groups=groups, state=state)
        for _ in range(2):  # once fitted, once restored
            student = convert(teacher, [1], target=target)
            fit = align(student, teacher, documents(), SHORT, replace=[1], folder=tmp_path).layers[0]
            fits.append((fit, student))
    (first, student), (restored, again), (other, _), (other_restored, _) = fits
    assert (restored, other_restored) == (first, other)
    assert first.losses != other.losses
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(student).items())
    assert len(list(tmp_path.glob("layer-001-*.safetensors"))) == len(list(tmp_path.glob("layer-001-*.json"))) == 2


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "record cut": lambda record, weights: record.write_bytes(record.read_bytes()[:100]),
    "record empty": lambda record, weights: record.write_text(""),
    "record of nothing": lambda record, weights: record.write_text("[]"),
    "record without a fit": lambda record, weights: record.write_text("{}"),
    "record of words": lambda record, weights: record.write_text(
        record.read_text().replace('"steps": 6', '"steps": "x"')
    ),
    "weights cut": lambda record, weights: weights.write_bytes(weights.read_bytes()[:-1]),
    "weights flipped": lambda record, weights: weights.write_bytes(weights.read_bytes()[:-1] + b"x"),
    "weights gone": lambda record, weights: weights.unlink(),
}


def test_damaged_files_count_as_not_done(tmp_path: Path) -> None:
    teacher, settings = tiny.model("llama"), SHORT
    student = convert(teacher, [1])
    expected = align(student, teacher, documents(), settings, replace=[1], folder=tmp_path).layers[0]
    (record,), (kept,) = tmp_path.glob("*.json"), tmp_path.glob("*.safetensors")
    for what, damage in DAMAGE.items():
        damage(record, kept)
        again = convert(teacher, [1])
        fitted = read_by(again, [1])
        found = align(again, teacher, documents(), settings, replace=[1], folder=tmp_path).layers[0]
        assert fitted == {1}, what
        assert found.losses == expected.losses, what
        assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(student).items()), what


def test_small_updates_reach_blocks_in_bfloat16(tmp_path: Path) -> None:
    """One batch, again and again, at rates whose steps are below what bfloat16 can add to a weight."""
    import radistill.distillation.align as module

    settings = AlignSettings(
        steps=20, learning_rate=1e-5, other_learning_rate=1e-6, tokens_per_batch=10_000, solve_output=False
    )
    source, losses = tiny.save("llama", tmp_path), {}
    for dtype in (torch.float32, torch.bfloat16):
        teacher = load(source, dtype=str(dtype).removeprefix("torch."))
        student = convert(teacher, [1], init="transfer", target=GraniteHybridSettings(groups="heads"))
        losses[dtype] = align(student, teacher, documents(), settings, replace=[1]).layers[0].losses
        assert {parameter.dtype for parameter in student.network.parameters()} == {dtype}
    assert all(later < earlier for earlier, later in pairwise(losses[torch.bfloat16]))
    gained, gained_in_float32 = (found[0] - found[-1] for found in reversed(losses.values()))
    assert gained == pytest.approx(gained_in_float32, rel=0.1)

    # The control: the same steps on the weights as they are.
    student = convert(teacher, [1], init="transfer", target=GraniteHybridSettings(groups="heads"))
    block, before = student.anatomy.mixer(student.network, 1), weights(student)
    with recorded_attentions(teacher, Pass([1], None), [documents()[:10]], settings.tokens_per_batch) as (recorded,):
        lost, _ = module._train(block, 1, recorded[1], module._variance(recorded[1]), settings, 0)
    assert lost[0] - lost[-1] < 0.1 * gained
    projection = "model.layers.1.mamba.in_proj.weight"
    assert (weights(student)[projection] == before[projection]).float().mean() > 0.99


def test_little_memory_means_more_passes_or_shards_on_disk_and_the_same_blocks(tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    roomy, tight, stored = (convert(teacher, [0, 1], init="zero") for _ in range(3))
    little = SHORT.model_copy(update={"memory_gib": 1e-9})
    align(roomy, teacher, documents(), SHORT, replace=[0, 1])
    align(tight, teacher, documents(), little, replace=[0, 1])
    align(stored, teacher, documents(), little, replace=[0, 1], folder=tmp_path)
    for one in (tight, stored):
        assert all(torch.equal(tensor, weights(roomy)[name]) for name, tensor in weights(one).items())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}  # and no activations


@pytest.mark.parametrize(("count", "fails", "left"), [(1, True, 0), (2, True, 1), (2, False, 0)])
def test_another_process_may_read_activations_when_one_has_failed(
    count: int, fails: bool, left: int, tmp_path: Path
) -> None:
    class Two(Processes):
        """The main one of several that nobody answers."""

        def share(self, units: Any, compute: Any, told: Any = None) -> Any:
            return [compute(unit) for unit in units]

    folder = tmp_path / "activations"
    with (
        suppress(ZeroDivisionError),
        recorded_attentions(tiny.model("llama"), Pass([0], folder), [documents(4)], 64, Two(count=count)),
    ):
        assert list(folder.iterdir())
        if fails:
            raise ZeroDivisionError
    assert folder.exists() == bool(left)


def test_activations_go_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def how(gib: float, free: int, folder: Path | None = tmp_path) -> list[tuple[list[int], bool]]:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, free))
        found = passes([3, 5, 7, 9], 2**20, gib, folder)
        return [(one.layers, one.folder is not None) for one in found]

    everything = [([3, 5, 7, 9], False)]
    assert how(4 / 1024, 0) == how(1, 2**40) == everything
    assert how(1 / 1024, 2**40) == [([3, 5, 7, 9], True)]
    assert how(1 / 1024, 6 * 2**20) == [([3, 5, 7], True), ([9], True)]
    assert how(2 / 1024, 4 * 2**20) == [([3, 5], False), ([7, 9], False)]
    assert how(1e-9, 2**40, None) == [([layer], False) for layer in (3, 5, 7, 9)]
    assert passes([], 2**20, 1, None) == []
    with pytest.raises(RadistillError, match="several processes need a folder"):
        passes([1], 2**20, 1, None, Processes(count=2))


def test_bad_input_is_refused_in_one_line() -> None:
    teacher = tiny.model("llama")
    with pytest.raises(RadistillError, match="0 documents are too few to fit on"):
        align(convert(teacher, [1], init="zero"), teacher, [], SETTINGS, replace=[1])
    too_fast = SETTINGS.model_copy(update={"learning_rate": 1e19})
    with pytest.raises(RadistillError, match="the fit of layer 1 diverged at step"):
        align(convert(teacher, [1], init="zero"), teacher, documents(), too_fast, replace=[1])
    student = convert(teacher, [1], init="zero")
    with torch.no_grad():
        teacher.network.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(RadistillError, match="the attention of layer 1 has inputs or outputs that are not finite"):
        align(student, teacher, documents(), SETTINGS, replace=[1])


def test_a_fit_that_does_not_help_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps this large end, finite, in a block that does nothing."""
    teacher = tiny.model("llama")
    settings = SETTINGS.model_copy(update={"learning_rate": 10, "solve_output": False})
    fit = align(convert(teacher, [1], init="zero"), teacher, documents(), settings, replace=[1]).layers[0]
    assert fit.unexplained_after >= fit.unexplained_before
    assert "the fit of layer 1 did not help" in " ".join(capsys.readouterr().err.split())


def test_one_token_documents() -> None:
    teacher = tiny.model("llama")
    docs = [Document("a", (5, 6), 1), Document("b", (7, 8), 1)]
    result = align(convert(teacher, [1], init="zero"), teacher, docs, AlignSettings(steps=2), replace=[1])
    assert result.tokens == 2
