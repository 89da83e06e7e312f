"""What a student says turns with and where it stops: the same in transformers, in the export and in llama.cpp."""

from pathlib import Path
from typing import Any

import pytest
import small
import torch
from gguf import GGUFReader
from transformers import AutoTokenizer

import tiny
from radistill.errors import RadistillError
from radistill.export import export
from radistill.export.engines.llama_cpp import LlamaCpp
from radistill.files import read_json, write_json
from radistill.models.gguf.account import Account
from radistill.models.gguf.file import read_contents
from radistill.models.gguf.tokenizer import read_tokenizer
from radistill.models.loading import load

TEMPLATES = {"default": tiny.CHAT_TEMPLATE, "tool_use": "TOOLS " + tiny.CHAT_TEMPLATE, "rag": "RAG"}


def with_templates(folder: Path, templates: dict[str, str]) -> Path:
    model = small.model()
    model.tokenizer.chat_template = templates
    model.save(folder)
    return folder


def keys_of(path: Path, part: str) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if part in name}


@pytest.mark.parametrize("templates", [TEMPLATES, {"tool_use": "TOOLS"}], ids=["three", "no default"])
def test_every_template_is_exported(tmp_path: Path, templates: dict[str, str]) -> None:
    folder = with_templates(tmp_path / "model", templates)
    for dtype in (None, "bfloat16"):
        out = export(folder, "hf", tmp_path / f"hf-{dtype}", dtype=dtype)
        assert AutoTokenizer.from_pretrained(out).chat_template == templates
    out = export(folder, "gguf", tmp_path / "m.gguf")
    named = sorted(templates.keys() - {"default"})
    expected: dict[str, Any] = {f"tokenizer.chat_template.{name}": templates[name] for name in named}
    expected |= {"tokenizer.chat_template": templates["default"]} if "default" in templates else {}
    assert keys_of(out, "chat_template") == expected | {"tokenizer.chat_templates": named}
    assert read_tokenizer(Account(out, read_contents(out).metadata)).chat_template == templates
    assert export(folder, "gguf", tmp_path / "again.gguf").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("stops", "written"),
    [
        ([3], {"eos": 3}),
        ([3, 0], {"eos": 3, "eot": 0}),
        ([0, 3], {"eos": 3, "eot": 0}),
        ([5, 0], {"eos": 5, "eot": 0}),  # not where only the tokenizer would end
        ([5, 3, 7], {"eos": 3, "eot": 5, "eom": 7}),
        (None, {"eos": 3}),
    ],
)
def test_end_tokens_are_those_of_transformers(tmp_path: Path, stops: list[int] | None, written: dict[str, int]) -> None:
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    write_json(path, read_json(path) | {"eos_token_id": stops})
    found = keys_of(export(tmp_path / "model", "gguf", tmp_path / "m.gguf"), "_token_id")
    assert {name.split(".")[-1].removesuffix("_token_id"): token for name, token in found.items()} == (
        written | {"bos": 1, "padding": 0}
    )


def test_llama_cpp_stops_at_each_of_three(tmp_path: Path) -> None:
    """Three ordinary tokens, so that llama.cpp knows none of them by its text."""
    stops = [300, 301, 302]
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    write_json(path, read_json(path) | {"eos_token_id": stops})
    engine = LlamaCpp(export(tmp_path / "model", "gguf", tmp_path / "m.gguf"))
    network = load(tmp_path / "model").network
    prompt = list(range(40, 60))
    for stop in stops:
        others = [token for token in range(small.ROWS) if token != stop]
        found = engine.greedy(prompt, 4, logit_bias=[[token, False] for token in others])
        assert found["stop_type"] == "eos", stop
        written = network.generate(torch.tensor([prompt]), max_new_tokens=4, suppress_tokens=others)
        assert written[0, len(prompt) :].tolist() == [stop]


def test_more_end_tokens_than_llama_cpp_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    text = small.tokenizer().convert_ids_to_tokens(303)
    write_json(path, read_json(path) | {"eos_token_id": [300, 301, 302, 303]})
    export(tmp_path / "model", "gguf", tmp_path / "m.gguf")
    assert f"llama.cpp may write on after {text}" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", [-1, small.ROWS, True, "3"])
def test_an_end_token_that_is_none(tmp_path: Path, wrong: Any) -> None:
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    write_json(path, read_json(path) | {"eos_token_id": [3, wrong]})
    with pytest.raises(RadistillError, match=r"generation_config\.json: eos_token_id is .*, but tokens are 0 to 419"):
        export(tmp_path / "model", "gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("name", ["../../x", "/x", "", "a/b", "..", "a\0b"])
def test_a_template_is_no_path(tmp_path: Path, name: str) -> None:
    """transformers writes each to a file of its name."""
    small.save(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    path = tmp_path / "model" / "tokenizer_config.json"
    templates = [{"name": "default", "template": tiny.CHAT_TEMPLATE}, {"name": name, "template": "x"}]
    write_json(path, read_json(path) | {"chat_template": templates})
    with pytest.raises(RadistillError, match="model: a chat template is called"):
        load(tmp_path / "model")
