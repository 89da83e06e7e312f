"""`generate --image` and `drafter measure` with images, in this process."""

import json
import sys
from pathlib import Path

import pytest

import tiny
from data.test_pictures_in_data import png
from radistill.cli import main
from radistill.data.documents import prompt_tokens
from radistill.data.examples import Example, with_images
from radistill.models.generation import generate
from radistill.models.loading import load
from radistill.models.pictures import Images, Picture


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    target = tiny.seeing("idefics3")
    target.save(tmp_path / "target")
    tiny.seeing("idefics3", layers=1, seed=2).save(tmp_path / "small")
    text = tiny.model("llama", layers=1, vocab_size=target.anatomy.vocab_size)
    text.tokenizer = target.tokenizer
    text.save(tmp_path / "text")
    (tmp_path / "red.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = [{"prompt": f"What is {n}?", "images": ["red.png"]} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["radistill", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(str(leaving.value.code or 0))


@pytest.mark.parametrize("drafter", [["--draft", "small"], ["--draft", "text"], ["--skip", "1"]])
def test_the_answer_to_an_image_is_that_of_generate(
    drafter: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(folder / "target", images=True)
    seen = (Picture.of("red.png", folder, "test"),)
    assert model.reader is not None
    example = with_images(Example.of_user("a", "What is it?"), seen, "test")
    prompt = prompt_tokens(example, model.tokenizer, reader=model.reader)
    [plain] = generate(model, [prompt], max_new_tokens=8, images=[Images(seen, model.reader)], description=None)
    arguments = ["--prompt", "What is it?", "--image", "red.png", "--max-new-tokens", "8", "--compare"]
    assert command(monkeypatch, "generate", "target", *arguments, *drafter) == 0
    out, err = capsys.readouterr()
    assert out.strip() == model.tokenizer.decode(plain, skip_special_tokens=True).strip()
    assert "both texts are the same" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["target", "--draft", "small", "--image", "broken.png"], "--image (broken.png): is no image that can be read"),
        (["target", "--draft", "small", "--image", "gone.png"], "gone.png cannot be read"),
        (["text", "--draft", "text", "--image", "red.png"], "--image: text reads no images"),
        (["target", "--draft", "text"], "reads images (idefics3), and is no text model"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "generate", *arguments, "--prompt", "?") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert error.count("error: ") == 1


def test_branches_that_could_not_be_decoded_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["measure", "target", "small", "--data", "prompts.jsonl", "--branches", "2"]
    assert command(monkeypatch, "drafter", *arguments) == 2
    assert "--branches drafts from text alone, but --data has images" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["small", "text"])
def test_a_drafter_is_measured_on_answers_about_images(
    drafter: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["--data", "prompts.jsonl", "--count", "2", "--max-new-tokens", "5", "--context", "16", "--threads", "1"]
    assert command(monkeypatch, "drafter", "measure", "target", drafter, *quick, "--temperature", "0,1") == 0
    found = json.loads((folder / "drafter.json").read_text())
    assert {one["rule"] for one in found["acceptances"]} == {"greedy", "sampled", "likeliest"}
    assert all(0 <= one["rate"]["value"] <= 1 for one in found["acceptances"])
