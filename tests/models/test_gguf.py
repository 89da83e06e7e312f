"""GGUF files: read exactly, converted once, never answered with another file's weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, RopeScalingType
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from radistill.conversion.inspection import inspect_source
from radistill.errors import RadistillError
from radistill.models import gguf
from radistill.models.loading import Model, load
from radistill.models.sources import locate
from radistill.pipeline.context import Context
from radistill.pipeline.run import run
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe


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

    monkeypatch.setattr(gguf, "_write", refuse)


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
    assert model.network.generation_config.eos_token_id == 3
    assert model.tokenizer.chat_template == tiny.CHAT_TEMPLATE


def test_second_load_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    tiny_gguf.write(path)
    first = load(path)
    assert capfd.readouterr().err.count("\n") == 1, "one line says what takes so long, and no library's bar"
    monkeypatch.setattr(gguf, "_write", lambda *_: pytest.fail("converted again"))
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
        patch.setattr(gguf, "_write", interrupted)
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
    with pytest.raises(RadistillError, match=r"model\.gguf: this GGUF file is damaged or cut off"):
        load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RadistillError, match=r"model\.gguf: this GGUF file is damaged or cut off"):
        load(path)
    assert list(cache.glob("gguf/*/")) == []


@pytest.mark.parametrize("again", ["llama.rope.freq_base", "blk.0.attn_norm.weight"])
def test_what_is_there_twice(tmp_path: Path, again: str) -> None:
    path = tmp_path / "model.gguf"
    first, second = b"llama.rope.freq_basf", b"blk.1.attn_norm.weight"
    tiny_gguf.write(path, extra=lambda writer: writer.add_float32(first.decode(), 5.0))
    path.write_bytes(path.read_bytes().replace(first if len(again) == len(first) else second, again.encode()))
    with pytest.raises(RadistillError, match=rf"model\.gguf: this GGUF file is damaged .*\({again} is there twice"):
        load(path)


@pytest.mark.parametrize(
    "family", ["llama-tied", "llama-biased", "llama-mlp-bias", "llama-head-size", "qwen2", "qwen3"]
)
def test_families(tmp_path: Path, family: str) -> None:
    expected = tiny_gguf.write(tmp_path / "model.gguf", family=family)
    network = load(tmp_path / "model.gguf").network
    assert network.config.tie_word_embeddings == expected.config.tie_word_embeddings
    assert network.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    tokens = torch.randint(4, 500, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network(tokens).logits, expected(tokens).logits)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_1", "Q8_0", "MXFP4"])
def test_quantised_matrices_have_the_numbers_that_they_were_rounded_to(tmp_path: Path, kind: str) -> None:
    expected = tiny_gguf.write(tmp_path / "model.gguf", kind=GGMLQuantizationType[kind])
    network = load(tmp_path / "model.gguf").network
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_a_split_file_is_read_whole(tmp_path: Path) -> None:
    # The last part holds nothing but the output matrix, without which a model is taken for a tied one.
    expected = tiny_gguf.write(tmp_path / "model.gguf", parts_of=20)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) == 2
    for part in parts:
        network = load(part).network
        assert not network.config.tie_word_embeddings
        for name, tensor in expected.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor), name


def test_parts_that_are_not_a_whole(tmp_path: Path) -> None:
    for name, seed in (("model", 0), ("other", 1)):
        tiny_gguf.write(tmp_path / f"{name}.gguf", seed=seed, parts_of=8)
    first, second, third = sorted(tmp_path.glob("model-*.gguf"))
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(first.read_bytes())
    with pytest.raises(RadistillError, match=r"renamed\.gguf: one of the 3 parts .* model-00001-of-00003\.gguf"):
        load(renamed)
    kept = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(RadistillError, match=r"model-00003-of-00003\.gguf: not part 3 of 3"):
        load(first)
    third.unlink()
    with pytest.raises(RadistillError, match=r"model-00003-of-00003\.gguf is missing"):
        load(second)
    third.write_bytes(kept.replace(b"split.tensors.count", b"llama.rope.freq_bas"))
    with pytest.raises(RadistillError, match=r"model-00003-of-00003\.gguf: llama\.rope\.freq_bas is not what"):
        load(first)
    third.write_bytes(kept)
    before = load(first).fingerprint
    third.write_bytes((tmp_path / "other-00003-of-00003.gguf").read_bytes())
    assert load(first).fingerprint != before, "every part counts, not the first alone"


def test_a_folder_of_an_older_reader_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_gguf.write(tmp_path / "model.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "REVISION", 1)
        older = locate(tmp_path / "model.gguf")
    assert locate(tmp_path / "model.gguf") != older


def _set(key: str, value: object) -> Callable[[GGUFWriter], None]:
    """Change what the writer says already."""

    def change(writer: GGUFWriter) -> None:
        del writer.kv_data[0][key]
        writer.add_key_value(key, value, GGUFValueType.get_type(value))

    return change


def test_the_lineage_that_our_own_exports_carry_changes_nothing(tmp_path: Path) -> None:
    def lineage(writer: GGUFWriter) -> None:
        writer.add_array("radistill.replaced_layers", [1, 2])
        writer.add_string("radistill.plan.model_fingerprint", "f" * 64)

    expected = tiny_gguf.write(tmp_path / "model.gguf", extra=lineage).state_dict()
    found = load(tmp_path / "model.gguf").network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


REFUSED: dict[str, tuple[Callable[[GGUFWriter], None], str]] = {
    "unknown key": (lambda w: w.add_string("vendor.trick", "x"), r"vendor\.trick .*--remove-metadata vendor\.trick"),
    "scale": (lambda w: w.add_attention_scale(0.3), r"the key llama\.attention\.scale is not known"),
    "logits": (lambda w: w.add_logit_scale(2.0), r"the key llama\.logit_scale is not known"),
    "experts": (lambda w: w.add_expert_count(4), r"llama\.expert_count is 4"),
    "window": (lambda w: w.add_sliding_window(64), r"llama\.attention\.sliding_window is 64"),
    "values": (_set("llama.attention.value_length", 4), r"llama\.attention\.value_length is 4"),
    "partial": (_set("llama.rope.dimension_count", 4), r"llama\.rope\.dimension_count is 4"),
    "vocabulary": (_set("llama.vocab_size", 4), r"llama\.vocab_size is 4"),
    "layer by layer": (_set("llama.attention.head_count_kv", [2, 4]), r"llama\.attention\.head_count_kv is \[2, 4\]"),
    "text for a number": (_set("llama.block_count", 2.5), r"llama\.block_count is 2\.5"),
    "adapter": (lambda w: w.add_type("adapter"), r"general\.type is 'adapter'"),
    "longrope": (
        lambda w: w.add_rope_scaling_type(RopeScalingType.LONGROPE),
        r"llama\.rope\.scaling\.type is 'longrope'",
    ),
    "stretched": (lambda w: w.add_rope_scaling_attn_factors(1.2), r"llama\.rope\.scaling\.attn_factor is 1\.2"),
    "divisors": (
        lambda w: w.add_tensor("rope_freqs.weight", np.array([1, 3, 2, 5], dtype=np.float32)),
        r"no parameters of the Llama 3 scaling give the 4 divisors in rope_freqs\.weight",
    ),
    "tensor": (
        lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.ones(4, dtype=np.float32)),
        r"the tensor blk\.0\.attn_sinks\.weight has no place",
    ),
    "inverse frequencies": (
        lambda w: w.add_tensor("blk.0.attn_rot_embd.weight", np.ones(4, dtype=np.float32)),
        r"the tensor blk\.0\.attn_rot_embd\.weight has no place",
    ),
    "lower case": (
        lambda w: w.add_bool("tokenizer.ggml.normalizer.lowercase", True),
        r"normalizer\.lowercase is not known",
    ),
    "character map": (lambda w: w.add_precompiled_charsmap(b"ab"), r"precompiled_charsmap is not known"),
    "separator": (lambda w: w.add_add_sep_token(True), r"add_sep_token is True"),
    "white space": (lambda w: w.add_remove_extra_whitespaces(True), r"remove_extra_whitespaces is True"),
    "end without a token": (
        _set("tokenizer.ggml.bos_token_id", 5000),
        r"bos_token_id is 5000, but there are 600 tokens",
    ),
    "types": (_set("tokenizer.ggml.token_type", [1, 1]), r"600 tokens have 2 types"),
    "merges": (_set("tokenizer.ggml.merges", ["q zz"]), r"tokenizer\.ggml\.merges do not fit the tokens"),
    "kind": (_set("tokenizer.ggml.model", "bert"), r"tokenizer\.ggml\.model is 'bert'"),
}


@pytest.mark.parametrize(("extra", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_named(tmp_path: Path, extra: Callable[[GGUFWriter], None], message: str) -> None:
    tiny_gguf.write(tmp_path / "model.gguf", extra=extra)
    with pytest.raises(RadistillError, match=message) as caught:
        load(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


def test_a_rule_and_an_architecture_that_are_not_known(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "model.gguf", vocabulary=tiny_gguf.byte_level("tekken"))
    with pytest.raises(RadistillError, match=r"'tekken' .*tokenizer\.ggml\.pre.*known are gpt-2, smollm, "):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(tmp_path / "model.gguf", extra=_set("general.architecture", "gemma2"))
    with pytest.raises(RadistillError, match="the architecture gemma2 is not read from a GGUF file"):
        load(tmp_path / "model.gguf")


def test_what_changes_nothing_is_no_obstacle(tmp_path: Path) -> None:
    def extra(writer: GGUFWriter) -> None:
        writer.add_type("model")
        writer.add_license("apache-2.0")
        writer.add_file_type(0)
        writer.add_quantization_version(2)
        writer.add_string("quantize.imatrix.dataset", "groups_merged.txt")
        writer.add_uint32("mradermacher.quantize_version", 2)
        writer.add_uint32("tokenizer.ggml.fim_pre_token_id", 1)
        writer.add_causal_attention(True)
        writer.add_expert_count(0)
        writer.add_rope_scaling_finetuned(False)
        writer.add_sliding_window(4096)
        writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))

    expected = tiny_gguf.write(tmp_path / "model.gguf", extra=extra, rope_parameters={"rope_theta": 5e5})
    config = load(tmp_path / "model.gguf").network.config
    assert config.rope_parameters == expected.config.rope_parameters


def test_generation_ends_at_every_token_that_the_file_names(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "model.gguf", extra=lambda writer: writer.add_eot_token_id(2))
    model = load(tmp_path / "model.gguf")
    assert model.network.generation_config.eos_token_id == [3, 2]
    assert model.tokenizer.eos_token == tiny.END


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "model.gguf", rename=lambda name: "" if name == "blk.1.ffn_up.weight" else name)
    with pytest.raises(
        RadistillError, match=r"model\.gguf: the tensor of model\.layers\.1\.mlp\.up_proj\.weight is missing"
    ):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(tmp_path / "model.gguf", rename=lambda name: name.replace("blk.1.ffn_up", "rope_freqs"))
    with pytest.raises(RadistillError, match=r"Llama 3 scaling give the 2048 divisors in rope_freqs\.weight"):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(
        tmp_path / "model.gguf",
        family="qwen2",
        extra=lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32)),
    )
    with pytest.raises(RadistillError, match=r"the tensor rope_freqs\.weight has no place in the architecture qwen2"):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(tmp_path / "model.gguf", rename=lambda name: name.replace("blk.1.ffn_up", "blk.0.ffn_other"))
    with pytest.raises(RadistillError, match=r"the tensor blk\.0\.ffn_other\.weight has no place"):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(tmp_path / "model.gguf", extra=_set("llama.block_count", 3))
    with pytest.raises(RadistillError, match=r"llama\.block_count is 3 and there are tensors of 2 layers"):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(tmp_path / "model.gguf", rename=lambda name: name.replace("blk.1.ffn_up.", "blk.1.ffn_up"))
    with pytest.raises(RadistillError, match=r"the tensor blk\.1\.ffn_upweight has no place"):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(tmp_path / "model.gguf", extra=_set("llama.attention.head_count", 0))
    with pytest.raises(RadistillError, match="with 0 heads in a width of 32"):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(tmp_path / "model.gguf", extra=_set("llama.attention.head_count_kv", 0))
    with pytest.raises(RadistillError, match=r"model\.gguf: transformers refuses these sizes"):
        load(tmp_path / "model.gguf")
    tiny_gguf.write(tmp_path / "model.gguf", extra=_set("llama.feed_forward_length", 96))
    with pytest.raises(RadistillError, match=r"blk\.0\.ffn_gate\.weight has shape \[64, 32\], but .* \[96, 32\]"):
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


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", ".."])
def test_a_template_is_no_path(tmp_path: Path, name: str) -> None:
    """transformers writes each to a file of its name."""
    path = tmp_path / "m.gguf"
    tiny_gguf.write(path, extra=lambda writer: writer.add_string(f"tokenizer.chat_template.{name}", "x"))
    with pytest.raises(RadistillError, match=r"m\.gguf: a chat template is called"):
        load(path)


def test_named_templates(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny_gguf.write(path, extra=lambda writer: writer.add_string("tokenizer.chat_template.tool_use", "TOOLS"))
    assert load(path).tokenizer.chat_template == {"default": tiny.CHAT_TEMPLATE, "tool_use": "TOOLS"}


@pytest.mark.usefixtures("no_conversion")
def test_a_conversion_is_refused_before_anything_is_dequantised(tmp_path: Path, cache: Path) -> None:
    """The header of the file tells enough, in a whole run as where a later stage is the first to ask for the model."""
    tiny_gguf.write(tmp_path / "model.gguf", family="qwen3")
    path = small_recipe(tmp_path, {"source": "data"}, convert={"target": "granite-hybrid"}, diagnose={"budget": 1})
    recipe = load_recipe(path, [f"model={tmp_path / 'model.gguf'}"])
    refused = r"model\.gguf: granite-hybrid cannot hold this model: QK-norm \(qwen3\)"
    with pytest.raises(RadistillError, match=refused):
        run(recipe, tmp_path / "out")
    with pytest.raises(RadistillError, match=refused):
        _ = Context(recipe, tmp_path / "out").base
    assert not cache.exists()


@pytest.mark.usefixtures("no_conversion")
def test_a_gguf_file_is_inspected_by_its_header(tmp_path: Path) -> None:
    network = tiny_gguf.write(tmp_path / "model.gguf", family="qwen3")
    report = inspect_source(tmp_path / "model.gguf")
    assert report["parameters"]["total"] == sum(parameter.numel() for parameter in network.parameters())
    assert (report["model_type"], report["dtype"], report["layers"]) == ("qwen3", "float32", 2)


@pytest.mark.usefixtures("no_conversion")
def test_an_architecture_that_is_not_read_is_named_before_its_tokenizer(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "gemma3")
    writer.add_tokenizer_model("something else")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for read in (load, inspect_source):
        with pytest.raises(RadistillError, match="the architecture gemma3 is not read from a GGUF file"):
            read(tmp_path / "model.gguf")
