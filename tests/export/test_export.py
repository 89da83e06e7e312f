"""`radistill export`: from a run folder to a folder or a file, with a card that says where it comes from."""

import json
import os
import re
import sys
from pathlib import Path

import gguf
import pytest
import small
import torch
import yaml
from transformers import AutoModelForCausalLM

import tiny
from radistill.cli import main
from radistill.errors import RadistillError
from radistill.export import export
from radistill.export.lineage import lineage_of
from radistill.files import read_json, write_json
from radistill.models.loading import load, load_config
from small_run import write_plan

SOURCE_CARD = "---\nlicense: cc-by-4.0\nlanguage: en\n---\n\n# A source\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a source model, with a model card that states a licence."""
    folder = tiny.save("llama", tmp_path / "my-base")
    (folder / "README.md").write_text(SOURCE_CARD)
    return folder


@pytest.fixture
def run(tmp_path: Path, source: Path) -> Path:
    """A run folder with two students, whose figures are invented."""
    folder = tmp_path / "run"
    small.save(folder / "student")
    small.save(folder / "arms" / "uniform" / "student", mamba_n_groups=4)
    write_plan(folder / "plan.json", str(source), replace=[0, 2], kl=0.71, selector={"kind": "bayes"})
    write_plan(folder / "arms" / "uniform" / "plan.json", str(source), replace=[0])
    base = {"kl": 0.0, "agreement": 1.0, "perplexity": 1.4, "n_tokens": 900, "n_documents": 12}
    evaluation = {"base": base, "hybrid": {**base, "kl": 0.137, "agreement": 0.851}, "uniform": {**base, "kl": 2.31}}
    write_json(folder / "evaluation.json", evaluation)
    write_json(folder / "run.json", {"versions": {"radistill": "0.1.0", "torch": "2.13.0"}, "seed": 7, "stages": {}})
    recipe = {
        "model": str(source),
        "teacher": None,
        "data": {"kind": "jsonl", "path": "/home/me/data.jsonl"},
        "diagnose": {"budget": 2, "by": "redundancy"},
        "align": {"steps": 3},
        "arms": {"uniform": {"selector": "uniform", "init": "transfer"}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def front_matter(card: str) -> dict[str, object]:
    head = yaml.safe_load(card.split("---")[1])
    assert isinstance(head, dict)
    return head


def test_a_folder_that_transformers_loads_with_a_card(run: Path, tmp_path: Path) -> None:
    out = export(run, "hf", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    prompt = torch.arange(4, 24)[None]
    original = AutoModelForCausalLM.from_pretrained(run / "student")
    with torch.no_grad():
        assert torch.equal(loaded(prompt).logits, original(prompt).logits)
    assert read_json(out / "radistill_plan.json") == {**read_json(run / "plan.json"), "model": "my-base"}

    card = (out / "README.md").read_text()
    assert front_matter(card) == {
        "license": "cc-by-4.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["radistill", "hybrid", "mamba2", "granitemoehybrid", "distillation"],
    }
    for said in (
        "# my-base-hybrid",
        "| Mamba-2 in layers | 0, 2 |",
        "| attention in layers | 1, 3 |",
        "| KL of the skip draft, nats a token | 0.710 |",
        "| **hybrid** | 0.137 | 85.1 |",
        "the mean over 900 response tokens of 12 held-out documents",
        "budget: 2",
        "radistill 0.1.0, torch 2.13.0, seed 7",
        "Base model: my-base. Licence: **cc-by-4.0**, by its model card.",
        "and the result was distilled from the model itself",
    ):
        assert said in card
    for file in out.glob("*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_a_card_says_what_draft_its_figures_are_of(run: Path, tmp_path: Path) -> None:
    write_json(run / "plan.json", {**read_json(run / "plan.json"), "by": "replaceability"})
    card = (export(run, "hf", tmp_path / "out") / "README.md").read_text()
    assert "| chosen by | bayes, replaceability |" in card
    assert "| KL of the draft with fitted blocks, nats a token | 0.710 |" in card
    assert "skip draft" not in card


def test_a_card_keeps_passwords_and_paths_to_itself_and_says_what_was_not_done(run: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe |= {"align": None, "distill": None, "convert": {"init": "zero"}, "arms": {}}
    recipe["diagnose"]["selector"] = {"kind": "bayes", "storage": "mysql://me:secret@host/db"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = (export(run, "hf", tmp_path / "out") / "README.md").read_text()
    assert "secret" not in card
    assert "/home" not in card
    assert "storage: mysql://…" in card
    assert "path: data.jsonl" in card
    assert "**not trained**" in card


def test_an_arm_says_what_it_is(run: Path, tmp_path: Path) -> None:
    card = (export(run, "hf", tmp_path / "out", arm="uniform") / "README.md").read_text()
    assert "the arm `uniform` of its run" in card
    assert "This folder holds the arm `uniform`, not the run's main hybrid." in card
    assert "| attention replaced by Mamba-2 in layers | 0 |" in card
    assert "only from 5.23 on" in card


def test_a_plain_model_folder_has_a_card_that_says_less(run: Path, tmp_path: Path) -> None:
    card = (export(run / "student", "hf", tmp_path / "out", dtype="bfloat16") / "README.md").read_text()
    assert "no run was given" in card
    assert "Licence: **unknown: see the source model.**" in card
    assert front_matter(card)["license"] == "unknown"
    assert "What was measured" not in card
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"


def test_figures_older_than_the_student_are_marked(run: Path, tmp_path: Path) -> None:
    replaced = {"hybrid": [0, 2], "uniform": [0]}

    def card(now: dict[str, object]) -> str:
        was = {name: {"distill": {"steps": 1}, "convert": {"replace": replace}} for name, replace in replaced.items()}
        stages = {"diagnose:hybrid": {}, "evaluate": {"inputs": {"arms": was}}}
        for name, inputs in was.items():
            stages |= {f"convert:{name}": {"inputs": inputs["convert"]}, f"distill:{name}": {"inputs": inputs | now}}
        write_json(run / "run.json", {"versions": {}, "seed": 7, "stages": stages})
        return (export(run, "hf", tmp_path / "out", force=True) / "README.md").read_text()

    assert "may be those of an earlier student" not in card({})
    assert "may be those of an earlier student" in card({"distill": {"steps": 2}})


def test_the_gguf_of_a_run_names_its_lineage(run: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(export(run, "gguf", tmp_path / "m.gguf"))
    expected = {
        "general.name": "my-base-hybrid",
        "general.license": "cc-by-4.0",
        "general.base_model.0.name": "my-base",
        "radistill.replaced_layers": [0, 2],
        "radistill.plan.model_fingerprint": "f" * 64,
    }
    assert {key: reader.get_field(key).contents() for key in expected} == expected


@pytest.mark.real
def test_the_licence_of_an_alias_is_in_its_file() -> None:
    alias = lineage_of("smollm2-135m")
    assert (alias.hub, alias.licence) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert "general.license" in alias.stated_in


def test_licences(source: Path, tmp_path: Path) -> None:
    (source / "README.md").unlink()
    assert lineage_of(str(source)).licence == "unknown"
    (source / "LICENSE").write_text("You may.")
    assert (lineage_of(str(source)).licence, lineage_of(str(source)).terms) == ("other", "You may.")
    gone = lineage_of(str(tmp_path / "gone" / "model.gguf"))
    assert (gone.name, gone.hub, gone.licence) == ("model.gguf", None, "unknown")
    hub = lineage_of("someone/some-model")
    assert (hub.name, hub.url, hub.licence) == (
        "someone/some-model",
        "https://huggingface.co/someone/some-model",
        "unknown",
    )


def test_a_licence_file_of_the_source_travels_with_the_student(run: Path, source: Path, tmp_path: Path) -> None:
    (source / "LICENSE").write_text("You may.")
    assert (export(run, "hf", tmp_path / "out") / "LICENSE.base").read_text() == "You may."


def test_bad_input_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ({"run": tmp_path / "none"}, "none: no such run or model folder"),
        ({"run": run / "recipe.yaml"}, "recipe.yaml: is a file; name the run folder"),
        ({"run": tmp_path / "empty"}, "neither a run folder"),
        ({"to": "onnx"}, "format 'onnx' is unknown; choose from hf, gguf"),
        ({"arm": "other"}, "this run has no arm 'other'; it can be hybrid, uniform"),
        ({"run": run / "student", "arm": "uniform"}, "a model, not a run folder"),
        ({"dtype": "q8_0"}, "dtype is 'q8_0'; for a Hugging Face folder it can be float32"),
        ({"to": "gguf", "dtype": "q4"}, "dtype is 'q4'; for a GGUF it can be float32"),
        ({"to": "gguf", "out": tmp_path}, "is a folder; name a file"),
        ({"out": run / "plan.json"}, "is a file; name a folder"),
        ({"out": run, "force": True}, "holds the model that is exported"),
        ({"out": run / "student", "force": True}, "holds the model that is exported"),
    ):
        settings = {"run": run, "to": "hf", "out": tmp_path / "out", **arguments}
        with pytest.raises(RadistillError, match=message):
            export(settings.pop("run"), settings.pop("to"), settings.pop("out"), **settings)
    assert not (tmp_path / "out").exists()


def test_a_student_that_is_missing_or_older_than_the_plan(run: Path, tmp_path: Path) -> None:
    plan = read_json(run / "plan.json")
    write_json(run / "plan.json", {**plan, "replace": [0, 1]})
    with pytest.raises(RadistillError, match="layer 1 has attention, but the run's plan replaces it"):
        export(run, "gguf", tmp_path / "m.gguf")
    (run / "student" / "config.json").unlink()
    with pytest.raises(RadistillError, match="this run has no student there yet; run `radistill run --out"):
        export(run, "gguf", tmp_path / "m.gguf")


def test_an_earlier_export_is_replaced_only_when_asked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def radistill(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["radistill", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        output = capsys.readouterr()
        return int(leaving.value.code or 0), output.out + output.err

    for to, out in (("hf", tmp_path / "out"), ("gguf", tmp_path / "m.gguf")):
        command = ("export", str(run), "--to", to, "--out", str(out))
        assert radistill(*command)[0] == 0
        code, message = radistill(*command)
        assert code == 2
        assert "exists already; choose another name, or give --force" in message
        assert radistill(*command, "--force")[0] == 0
    other = tmp_path / "notes"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(RadistillError, match="holds files that are no model"):
        export(run, "hf", other, force=True)
    assert (other / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "100% {a} [b] *?#1", os.fsdecode(b"x\xff")])
def test_an_output_with_an_odd_name(run: Path, tmp_path: Path, name: str) -> None:
    export(run, "hf", tmp_path / "folder" / name)
    export(run, "gguf", tmp_path / "file" / name)
    (tmp_path / "folder" / name).rename(tmp_path / "read")  # safetensors opens no file whose name is not UTF-8
    assert load(tmp_path / "read").fingerprint == load(run / "student").fingerprint
    (tmp_path / "read").rename(tmp_path / "folder" / name)
    assert len(list((tmp_path / "folder").iterdir())) == len(list((tmp_path / "file").iterdir())) == 1


def test_an_output_that_is_a_link(run: Path, tmp_path: Path) -> None:
    """The link stays, and what it points to is made or replaced."""
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    export(run, "hf", tmp_path / "link")
    (tmp_path / "disk" / "stale.txt").write_text("of the earlier export")
    export(run, "hf", tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "disk").fingerprint == load(run / "student").fingerprint
    assert not (tmp_path / "disk" / "stale.txt").exists()
    (tmp_path / "file").symlink_to(tmp_path / "other" / "m.gguf")
    assert export(run, "gguf", tmp_path / "file") == tmp_path / "file"
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "other" / "m.gguf").read_bytes()[:4] == b"GGUF"


def test_a_disk_is_not_replaced(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path / "disk")
    with pytest.raises(RadistillError, match="disk: is where a disk is mounted"):
        export(run, "hf", tmp_path / "disk", force=True)


def test_what_is_exported_is_what_is_loaded(tmp_path: Path) -> None:
    """One file beside the shards of an older model; a head that the config ties and the file does not."""
    model = small.save(tmp_path / "model", seed=1)
    small.model().network.save_pretrained(tmp_path / "old", max_shard_size="60KB")
    for file in (tmp_path / "old").glob("model*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    config = read_json(tmp_path / "model" / "config.json")
    write_json(tmp_path / "model" / "config.json", {**config, "tie_word_embeddings": True})
    export(tmp_path / "model", "hf", tmp_path / "hf")
    assert [file.name for file in (tmp_path / "hf").glob("model*")] == ["model.safetensors"]
    assert load(tmp_path / "hf").fingerprint == load(tmp_path / "model").fingerprint == model.fingerprint
    export(tmp_path / "model", "gguf", tmp_path / "m.gguf")
    tensors = {
        tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    }
    assert torch.equal(tensors["token_embd.weight"], model.network.model.embed_tokens.weight)
    assert torch.equal(tensors["output.weight"], model.network.lm_head.weight)


def test_a_weight_that_is_no_number_leaves_no_folder(run: Path, tmp_path: Path) -> None:
    model = small.model()
    with torch.no_grad():
        model.network.get_input_embeddings().weight[5, 5] = torch.nan
    model.save(run / "student")
    with pytest.raises(RadistillError, match=r"embed_tokens.weight holds NaN"):
        export(run, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert json.loads((run / "plan.json").read_text())["replace"] == [0, 2]


def test_a_card_shows_text_and_does_nothing_else(run: Path, tmp_path: Path) -> None:
    """Names, kinds, versions and prompts come from files of anyone."""
    hostile = "<script>alert(1)</script> | [x](http://evil) `y` **z** \x1b[2J\n# heading\n```\n"
    plan = read_json(run / "plan.json")
    plan["selector"], plan["objective"] = {"kind": hostile}, {"name": hostile, "value": 1.0}
    write_json(run / "plan.json", {**plan, "model": str(tmp_path / "my-base<img src=x>|")})
    write_json(run / "run.json", {"versions": {hostile: hostile}, "seed": 0, "stages": {}})
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["system"] = f"````\n<script>\n{hostile}"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = read_json(run / "student" / "config.json")
    write_json(run / "student" / "config.json", {**config, "architectures": [hostile]})
    card = (export(run, "hf", tmp_path / "out") / "README.md").read_text()
    assert "\x1b" not in card
    fence = next(line for line in card.splitlines() if line.endswith("`yaml")).removesuffix("yaml")
    before, block, after = card.replace(f"{fence}yaml\n", f"{fence}\n").split(f"\n{fence}\n")
    assert yaml.safe_load(block)["data"]["system"].startswith("````\n<script>")
    text = re.sub(r"(`+)[^`].*?\1", "", before + after)  # without code
    for active in ("<script", "<img", "\n# heading", "[x](", "**z**"):
        assert active not in text
    assert "\n```\n# " not in text
    for line in card.splitlines():
        if line.startswith("| ") and ("chosen by" in line or "objective" in line or "architecture" in line):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line
    assert front_matter(card)["library_name"] == "transformers"


def test_a_licence_that_is_no_word_stays_in_the_front_matter(run: Path, source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text(yaml.safe_dump({"license": "mit\n---\n# x <b>"}, explicit_start=True) + "---\n")
    card = (export(run, "hf", tmp_path / "out") / "README.md").read_text()
    head = card.split("\n---\n")[0].removeprefix("---\n")
    assert yaml.safe_load(head)["license"] == "mit\n---\n# x <b>"
    assert "<b>" not in card.removeprefix(f"---\n{head}")


def test_nothing_is_taken_from_elsewhere(
    run: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that someone else made may hold links to anything on this machine, and an export is uploaded."""
    secret = tmp_path / "home" / "secret.json"
    write_json(secret, {"password": "S3CRET"})
    student = run / "student"
    for link in (student / "extra.json", student / "notes.txt", source / "LICENSE"):
        link.symlink_to(secret)
    out = export(run, "hf", tmp_path / "out")
    assert not any(b"S3CRET" in file.read_bytes() for file in out.rglob("*") if file.is_file())
    said = capsys.readouterr().err
    for link in (student / "extra.json", student / "notes.txt", source / "LICENSE"):
        assert f"{link}: is a link out of the model's folder, and is left out" in said
    (student / "additional_chat_templates").mkdir()
    for name in ("special_tokens_map.json", "tokenizer.model", "additional_chat_templates/tool.jinja"):
        (student / name).symlink_to(secret)
        for number, (to, dtype) in enumerate((("hf", None), ("hf", "bfloat16"), ("gguf", None))):
            with pytest.raises(RadistillError, match=rf"{name}: is a link out of the model's folder"):
                export(run, to, tmp_path / f"never{number}", dtype=dtype)
        (student / name).unlink()
    assert not list(tmp_path.glob("never*"))


@pytest.mark.parametrize("kind", ["the hub's cache", "links to another folder", "weights on another disk"])
def test_a_folder_made_of_links(run: Path, tmp_path: Path, kind: str) -> None:
    elsewhere, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "1a2b"
    model = small.model()
    model.tokenizer.chat_template = {"default": tiny.CHAT_TEMPLATE, "tool_use": "TOOLS"}
    model.save(elsewhere)
    (snapshot / "additional_chat_templates").mkdir(parents=True)
    for number, file in enumerate(file for file in sorted(elsewhere.rglob("*")) if file.is_file()):
        name = file.relative_to(elsewhere)
        if kind == "weights on another disk" and name.suffix != ".safetensors":
            file.rename(snapshot / name)
        elif kind == "the hub's cache":
            (snapshot / name).symlink_to(file.rename(elsewhere / f"{number:040}"))
        elif len(name.parts) == 1:
            (snapshot / name).symlink_to(file)
    out = export(snapshot, "hf", tmp_path / "out")
    assert not any(file.is_symlink() for file in out.rglob("*"))
    loaded = load(out)
    assert loaded.fingerprint == model.fingerprint
    templates = loaded.tokenizer.chat_template
    assert templates == (tiny.CHAT_TEMPLATE if kind == "links to another folder" else model.tokenizer.chat_template)
    export(snapshot, "gguf", tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", 3, None])
def test_weights_that_an_index_names_elsewhere(tmp_path: Path, name: object) -> None:
    small.save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    write_json(index, {"weight_map": {"lm_head.weight": name}})
    for call in (load, lambda folder: export(folder, "hf", tmp_path / "out"), load_config):
        with pytest.raises(RadistillError, match=r"index\.json: weight_map(\.| names .*, which is no file beside it)"):
            call(tmp_path / "model")
    write_json(index, [1])
    with pytest.raises(RadistillError, match=r"index\.json: Input should be an object"):
        load(tmp_path / "model")
