"""Loading: bit for bit what was saved, or one line that says what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from radistill.errors import RadistillError
from radistill.models.checkpoint import WEIGHT_INDEX
from radistill.models.loading import check_device, load, load_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama on disk, saved by transformers alone."""
    return tiny.save("llama", tmp_path / "llama", layers=2)


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "qwen3", "mixtral"])
def test_load_and_save_change_nothing(family: str, tmp_path: Path) -> None:
    original = tiny.model(family, layers=3)
    loaded = load(tiny.save(family, tmp_path / "saved", layers=3))
    loaded.save(tmp_path / "again")
    again = load(str(tmp_path / "again"))
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    for model in (loaded, again):
        assert not model.network.training
        assert model.anatomy == original.anatomy
        assert model.network.dtype == torch.float32
        with torch.no_grad():
            assert torch.equal(model.network(tokens).logits, original.network(tokens).logits)
        assert model.fingerprint == original.fingerprint
        assert model.pad_token_id == 256
        assert model.tokenizer.chat_template == tiny.CHAT_TEMPLATE
        assert model.tokenizer.eos_token == tiny.END
        assert model.network.generation_config.eos_token_id == 259
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "saved"], "no temporary files are left"


def test_dtype(folder: Path) -> None:
    assert load(folder, dtype="bfloat16").network.dtype == torch.bfloat16
    with pytest.raises(RadistillError, match="dtype is 'int8'; it can be float32, bfloat16, float16"):
        load(folder, dtype="int8")


def test_device() -> None:
    assert check_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99", "meta", ""):
        with pytest.raises(RadistillError, match="device is "):
            check_device(name)


def test_a_missing_pad_token_becomes_the_end_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    model = load(folder)
    assert model.tokenizer.pad_token == tiny.END
    assert model.pad_token_id == 259


def test_fingerprint_depends_on_every_weight_and_on_the_config(folder: Path) -> None:
    first = load(folder)
    second = load(folder)
    with torch.no_grad():
        second.network.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    assert second.fingerprint != first.fingerprint
    edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 20000.0})
    assert load(folder).fingerprint != first.fingerprint


def test_fingerprint_does_not_depend_on_where_a_model_lies(folder: Path) -> None:
    first = load(folder)
    edit_config(folder, _name_or_path="elsewhere", transformers_version="5.0.0")
    moved = folder.rename(folder.parent / "moved")
    second = load(moved)
    assert second.fingerprint == first.fingerprint
    assert len(first.fingerprint) == 64


def test_save_replaces_a_model_but_nothing_else(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    model.save(folder)
    assert load(folder).fingerprint == model.fingerprint
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(RadistillError, match="home: holds files that are no model"):
        model.save(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(RadistillError, match=r"thesis\.tex: is a file"):
        model.save(tmp_path / "home" / "thesis.tex")


def test_save_keeps_sampling_settings(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    model.network.generation_config.temperature = 0.6  # without do_sample, as many published models have it
    model.save(tmp_path / "saved")
    assert load(tmp_path / "saved").network.generation_config.temperature == 0.6


def test_shards(tmp_path: Path) -> None:
    network = tiny.build("llama")
    network.save_pretrained(tmp_path, max_shard_size="50KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).network.lm_head.weight, network.lm_head.weight)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(RadistillError, match=f"{shard.name}: damaged or cut off"):
        load(tmp_path)
    shard.unlink()
    with pytest.raises(RadistillError, match=f"{shard.name}: no such file, so weights are missing"):
        load(tmp_path)


def test_a_folder_of_models_names_them(tmp_path: Path) -> None:
    """As a run's folder is one."""
    tiny.save("llama", tmp_path / "run" / "student")
    with pytest.raises(
        RadistillError, match=r"no config\.json; a folder in it may be the one you want: .*run/student$"
    ):
        load(tmp_path / "run")


# How to spoil a model folder, and what the one line must say.
SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a model, because it has no config.json"),
    "config cut off": (
        lambda f: (f / "config.json").write_text('{"model_type": "lla'),
        r"config\.json: not valid JSON",
    ),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: .* names no model_type"),
    "config of nothing": (lambda f: (f / "config.json").write_text("{}"), r"config\.json: .* names no model_type"),
    "wrong type in config": (lambda f: edit_config(f, hidden_size="wide"), r"config\.json: transformers refuses"),
    "unheard-of model type": (lambda f: edit_config(f, model_type="qwen9"), r"config\.json: .*qwen9"),
    "known to transformers only": (lambda f: edit_config(f, model_type="bert"), r"'bert' is not .* \(llama, mistral"),
    "quantised": (lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}), "quant_method='gptq'"),
    "code of its own": (
        lambda f: edit_config(f, model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        r"runs Python code of its own \(auto_map\)",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
    "only a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"weights are in pytorch_model\.bin, but only safetensors are read",
    ),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        r"model\.safetensors: damaged or cut off",
    ),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors: damaged or cut off"),
    "weights garbled": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 1000),
        r"model\.safetensors: damaged or cut off",
    ),
    "one weight missing": (
        lambda f: edit_weights(f, lambda w: w.pop("model.layers.1.self_attn.k_proj.weight")),
        r"1 weights are missing, the first of them model\.layers\.1\.self_attn\.k_proj\.weight",
    ),
    "a layer too few": (lambda f: edit_config(f, num_hidden_layers=3), r"9 weights are missing, .* model\.layers\.2\."),
    "padding token beyond the vocabulary": (
        lambda f: edit_config(f, pad_token_id=999),
        "no network can be built from its config.json",
    ),
    "other width": (lambda f: edit_config(f, intermediate_size=80), "do not fit config.json"),
    "a vocabulary that no file here holds": (
        lambda f: edit_config(f, vocab_size=2**40),
        r"config\.json asks for 70,\d{3},\d{3},\d{3},\d{3} weights, but the files hold \d",
    ),
    "a million layers": (
        lambda f: edit_config(f, num_hidden_layers=10**6),
        r"config\.json: its sizes cannot be those of a network \(num_hidden_layers is 1000000\)",
    ),
    "no heads": (lambda f: edit_config(f, num_attention_heads=0), r"config\.json: .*zero"),
    "NaN in config": (lambda f: edit_config(f, rope_theta=float("nan")), r"config\.json: not valid JSON \(NaN"),
    "a key twice in config": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama", "model_type": "qwen2"}'),
        r"config\.json: not valid JSON \(model_type is given twice",
    ),
    "an index of numbers": (
        lambda f: ((f / "model.safetensors").unlink(), (f / WEIGHT_INDEX).write_text('{"weight_map": {"a": 3}}')),
        r"model\.safetensors\.index\.json: weight_map\.a: Input should be a valid string",
    ),
    "a header of gigabytes": (
        lambda f: (f / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}"),
        r"model\.safetensors: damaged or cut off",
    ),
    "NaN": (
        lambda f: edit_weights(f, lambda w: w["model.layers.0.mlp.up_proj.weight"][0].fill_(float("nan"))),
        r"model\.layers\.0\.mlp\.up_proj\.weight holds NaN or infinite weights",
    ),
    "infinity": (
        lambda f: edit_weights(f, lambda w: w["model.norm.weight"][:1].fill_(float("inf"))),
        r"model\.norm\.weight holds NaN or infinite weights",
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("tokenizer*")],
        r"the tokenizer is missing; copy tokenizer\.json",
    ),
    "tokenizer cut off": (
        lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", '),
        "the tokenizer cannot be read",
    ),
    "tokenizer of another model": (
        lambda f: (edit_config(f, vocab_size=200, pad_token_id=None), edit_weights(f, _cut_vocabulary)),
        "pad_token is token 256, but the network embeds only 0 to 199",
    ),
}


def _cut_vocabulary(weights: dict[str, torch.Tensor]) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:200].clone()


@pytest.mark.parametrize("fault", SPOILED)
def test_each_fault_is_named_in_one_line(fault: str, folder: Path) -> None:
    spoil, message = SPOILED[fault]
    spoil(folder)
    with pytest.raises(RadistillError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) or "model_type" in str(caught.value)


def test_weights_without_a_place_are_mentioned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(folder, num_hidden_layers=1)
    assert load(folder).anatomy.num_layers == 1
    assert "9 weights have no place in this architecture" in capsys.readouterr().err


def test_one_token_beyond_the_embedding_is_mentioned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|image|>"])
    tokenizer.save_pretrained(folder)
    load(folder)
    assert "tokens (1) that the network does not embed" in capsys.readouterr().err


def test_a_head_that_the_config_ties_and_the_file_does_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load(folder)
    edit_config(folder, tie_word_embeddings=True)
    model = load(folder)
    assert "config.json has tie_word_embeddings, but the weights hold another lm_head" in capsys.readouterr().err
    assert torch.equal(model.network.lm_head.weight, expected.network.lm_head.weight)
    assert model.fingerprint == expected.fingerprint, "the config says what is computed"
    model.save(tmp_path / "again")
    assert load(tmp_path / "again").fingerprint == expected.fingerprint
    assert capsys.readouterr().err == ""


def test_one_file_is_read_before_the_shards_of_an_older_model(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "new", layers=2, seed=1)
    tiny.build("llama", layers=2).save_pretrained(tmp_path / "old", max_shard_size="20KB")
    for file in (tmp_path / "old").glob("model*"):
        (folder / file.name).write_bytes(file.read_bytes())
    assert (folder / "model.safetensors.index.json").is_file()
    weights = load(folder).network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(folder / "model.safetensors").items())
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    assert load_config(folder).num_hidden_layers == 2


def test_config_alone(folder: Path) -> None:
    assert load_config(folder).hidden_size == 32
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(RadistillError, match="damaged or cut off"):
        load_config(folder)
