"""GGUF files: read exactly, converted once, never answered with another file's weights."""

from pathlib import Path

import pytest
import tiny_gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from radistill.errors import RadistillError
from radistill.models import gguf
from radistill.models.loading import Model, load


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test; the real model's is shared, so that it is converted once for all runs."""
    folder = tmp_path / "cache"
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("RADISTILL_CACHE", str(folder))
    return folder


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, whoever converts a file fails."""

    def refuse(path: Path, folder: Path) -> None:
        pytest.fail(f"{path} is converted again")

    monkeypatch.setattr(gguf, "_convert", refuse)


def test_weights_tokenizer_and_template_survive(tmp_path: Path) -> None:
    expected = tiny_gguf.write(tmp_path / "model.gguf")
    model = load(tmp_path / "model.gguf")
    weights = model.network.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    assert model.network.config.rms_norm_eps == float(torch.tensor(expected.config.rms_norm_eps))
    assert not model.network.training
    text = "Grüße, 世界!\n"
    assert model.tokenizer.decode(model.tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert (model.tokenizer.pad_token, model.tokenizer.bos_token, model.tokenizer.eos_token) == (
        tiny.PAD,
        tiny.BOS,
        tiny.END,
    )
    assert model.network.generation_config.eos_token_id == 259
    assert model.tokenizer.chat_template == tiny.CHAT_TEMPLATE


def test_second_load_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    tiny_gguf.write(path)
    first = load(path)
    assert capfd.readouterr().err.count("\n") == 1, "one line says what takes so long, and no library's bar"
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
    second = load(str(path))
    assert second.fingerprint == first.fingerprint
    assert capfd.readouterr().err == ""
    renamed = path.rename(tmp_path / "another.gguf")
    assert load(renamed).fingerprint == first.fingerprint, "the bytes count, not the name"


def test_another_file_under_the_same_name_is_another_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny_gguf.write(path)
    first = load(path)
    expected = tiny_gguf.write(path, seed=1)
    second = load(path)
    assert second.fingerprint != first.fingerprint
    assert torch.equal(second.network.lm_head.weight, expected.lm_head.weight)


def test_a_killed_conversion_leaves_nothing_behind(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    tiny_gguf.write(path)

    def interrupted(path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(path)
    assert [entry for entry in (cache / "gguf").iterdir() if entry.is_dir()] == []
    assert load(path).anatomy.num_layers == 2


def test_a_gguf_model_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "model.gguf")
    model = load(tmp_path / "model.gguf")
    model.save(tmp_path / "plain")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(network.lm_head.weight, model.network.lm_head.weight)
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template == tiny.CHAT_TEMPLATE


def test_files_that_are_no_gguf(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"")
    with pytest.raises(RadistillError, match=r"model\.gguf: not a GGUF file"):
        load(path)
    path.write_bytes(b"\x80\x00\x00\x00safetensors")
    with pytest.raises(RadistillError, match=r"model\.gguf: not a GGUF file"):
        load(path)
    tiny_gguf.write(path)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(RadistillError, match=r"model\.gguf: transformers cannot read this GGUF file"):
        load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RadistillError, match=r"model\.gguf: transformers cannot read this GGUF file"):
        load(path)
    assert [entry for entry in (cache / "gguf").iterdir() if entry.is_dir()] == []


def test_a_missing_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translate = tiny_gguf._translate
    monkeypatch.setattr(
        tiny_gguf, "_translate", lambda name: translate(name).replace("blk.1.ffn_up", "blk.1.ffn_gate_shexp")
    )
    tiny_gguf.write(tmp_path / "model.gguf")
    with pytest.raises(RadistillError, match=r"model\.gguf: .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path / "model.gguf")


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    tiny_gguf.write(tmp_path / "model.gguf")
    cache.write_text("a file where a folder should be")
    with pytest.raises(RadistillError, match="set RADISTILL_CACHE to a folder with room"):
        load(tmp_path / "model.gguf")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RADISTILL_CACHE", str(tmp_path / "own"))
    assert gguf.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("RADISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert gguf.cache_folder() == tmp_path / "xdg" / "radistill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gguf.cache_folder() == tmp_path / ".cache" / "radistill"


@pytest.mark.real
def test_smollm2_from_its_package(smollm2: Model, no_conversion: None) -> None:
    again = load("smollm2-135m")
    assert again.fingerprint == smollm2.fingerprint
    assert (again.anatomy.num_layers, again.anatomy.num_heads, again.anatomy.num_kv_heads) == (30, 9, 3)
    assert again.anatomy.kv_bytes_per_token() == 23040
    assert sum(again.anatomy.parameters(again.network).values()) == 134515008
    assert again.network.config.rms_norm_eps == 9.999999747378752e-06
    assert again.tokenizer.pad_token_id == again.tokenizer.eos_token_id == 2
    assert again.network.generation_config.eos_token_id == 2
    prompt = again.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = again.network.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in again.tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
