"""Rows with images: what is read, and what a user reads whose image is missing, broken or too large."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from radistill.data.documents import prompt_tokens, response_tokens
from radistill.data.examples import Example, example_from_row
from radistill.data.jsonl import read_examples
from radistill.data.prepare import has_images, load_data
from radistill.data.records import Record
from radistill.errors import RadistillError
from radistill.models import pictures


def png(colour: tuple[int, int, int] = (200, 10, 10), size: tuple[int, int] = (20, 12)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def rows(folder: Path, *found: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_images_are_paths_from_the_file_or_bytes(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    encoded = base64.b64encode(png((0, 0, 250))).decode()
    parts = [
        {"type": "text", "text": "First "},
        {"type": "image"},
        {"type": "text", "text": " then "},
        {"type": "image"},
    ]
    path = rows(
        tmp_path,
        {"prompt": "What?", "response": "Red.", "images": ["red.png"]},
        {"messages": [{"role": "user", "content": parts}], "images": ["red.png", {"bytes": encoded}]},
        {"prompt": "No picture."},
    )
    one, two, three = read_examples(path)
    assert one.messages is not None
    assert one.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]
    assert [picture.open().getpixel((0, 0)) for picture in two.images] == [(200, 10, 10), (0, 0, 250)]
    assert two.messages is not None
    assert [part["type"] for part in two.messages[0]["content"]] == ["text", "image", "text", "image"]
    assert three.images == ()
    assert one.prompt != Example.of_user("a", "What?").prompt
    assert has_images(str(path))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["gone.png"], r"line 1: images\[0\]: .*gone.png cannot be read \(No such file"),
        (["broken.png"], r"line 1: images\[0\] \(broken.png\): is no image that can be read"),
        (["text.png"], r"line 1: images\[0\] \(text.png\): is no image that can be read \(of no known format\)"),
        (["empty.png"], r"line 1: images\[0\] \(empty.png\): is no image that can be read \(it is empty\)"),
        ([{"bytes": "?"}], r"line 1: images\[0\]: bytes are no base64"),
        ([7], r"line 1: images\[0\] must be a path, or"),
        (["https://example.org/red.png"], r"line 1: images\[0\]: https://example.org/red.png is an address"),
        (["s3:/bucket/red.png"], r"line 1: images\[0\]: s3:/bucket/red.png is an address"),
        (["."], r"line 1: images\[0\]: .* is no file"),
        (["/dev/zero"], r"line 1: images\[0\]: /dev/zero is no file"),
        (["red\0.png"], r"line 1: images\[0\]: '.*red\\x00.png' is no path \(embedded null"),
        (["~nobody-of-this-name/red.png"], r"line 1: images\[0\]: .*red.png cannot be read \(No such file"),
        ("red.png", r"line 1: images must be a list"),
        (["large.png"], r"line 1: images\[0\]: .*large.png has 2 MiB, more than the 1"),
        (["wide.png"], r"line 1: images\[0\] \(wide.png\): has 250,000 pixels, more than 200,000"),
        (["red.png", "red.png"], r"line 1: messages have 1 places of images, but there are 2 images"),
    ],
)
def test_a_wrong_image_is_one_line(images: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_PIXELS", 200_000)
    monkeypatch.setattr(pictures, "MOST_BYTES", 2**20)
    (tmp_path / "red.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(png()[:40])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(bytes(2 * 2**20))
    (tmp_path / "wide.png").write_bytes(png(size=(500, 500)))
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    path = rows(tmp_path, {"messages": [{"role": "user", "content": content}], "images": images})
    with pytest.raises(RadistillError, match=message) as caught:
        read_examples(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_images_of_16_bits_and_with_transparent_colours(tmp_path: Path) -> None:
    deep = np.array([[0, 2**8, 2**15, 2**16 - 1]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "deep.tiff")
    for name in ("deep.png", "deep.tiff"):
        assert np.asarray(pictures.Picture.of(name, tmp_path, "test").open())[0, :, 0].tolist() == [0, 1, 128, 255]
    colours = Image.new("P", (2, 1))
    colours.putpalette([9, 8, 7])
    colours.save(tmp_path / "clear.png", transparency=b"\0")
    assert pictures.Picture.of("clear.png", tmp_path, "test").open().getpixel((0, 0)) == (9, 8, 7)
    Image.fromarray(np.ones((1, 2), np.float32)).save(tmp_path / "real.tiff")
    with pytest.raises(RadistillError, match=r"test \(real.tiff\): has pixels of floating point"):
        pictures.Picture.of("real.tiff", tmp_path, "test")


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    """As transformers reads files: a drafter and a target served elsewhere see the same."""
    image = Image.new("RGB", (20, 12), (0, 0, 250))
    image.paste((250, 0, 0), (0, 0, 20, 6))  # the upper half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    seen = pictures.Picture.of("turned.png", tmp_path, "test").open()
    assert seen.size == (12, 20)
    assert (seen.getpixel((11, 10)), seen.getpixel((0, 10))) == ((250, 0, 0), (0, 0, 250))


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    example = example_from_row({"prompt": "?", "images": ["red.png"]}, "a", "here", tmp_path)
    (tmp_path / "red.png").write_bytes(png((1, 2, 3)))
    with pytest.raises(RadistillError, match=r"red\.png: has changed"):
        example.images[0].open()


@pytest.mark.parametrize("kind", tiny.SEEING)
def test_prompt_and_response_are_those_of_the_processor(kind: str, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    row = {"prompt": "What is it?", "response": "A red one.", "images": ["red.png"]}
    example = example_from_row(row, "a", "here", tmp_path)
    model = tiny.seeing(kind)
    assert model.reader is not None
    found = prompt_tokens(example, model.tokenizer, reader=model.reader)
    text = model.tokenizer.apply_chat_template(list(example.messages or ()), tokenize=False, add_generation_prompt=True)
    own = model.reader.processor(text=[text], images=[[example.images[0].open()]], add_special_tokens=False)
    assert found == list(own["input_ids"][0])
    assert found.count(model.reader.token) >= 4
    assert model.tokenizer.decode(response_tokens(example, model.tokenizer).tokens) == "A red one.<|im_end|>"
    with pytest.raises(RadistillError, match="has images, but this model was loaded as one that reads text alone"):
        prompt_tokens(example, model.tokenizer)


def test_documents_keep_their_images(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    path = rows(tmp_path, {"prompt": "What is it?", "response": "Red.", "images": ["red.png"]}, {"prompt": "Hello."})
    model = tiny.seeing("idefics3")
    documents = load_data(str(path), model, 2, max_new_tokens=3)
    seen = next(document for document in documents if document.images is not None)
    assert seen.content != seen.blind.content
    assert seen.blind.tokens[seen.blind.response_start :] == seen.tokens[seen.response_start :]
    assert model.reader is not None
    assert model.reader.token not in seen.blind.tokens
    example = read_examples(path)[0]
    again = Record.from_row(json.loads(json.dumps(Record(example, seen).to_row())), model.reader)
    assert again.document.content == seen.content
    assert again.example == example or [one.sha256 for one in again.example.images] == [
        one.sha256 for one in example.images
    ]
