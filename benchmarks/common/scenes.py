"""Small pictures of two coloured things, digits or shapes, drawn by this file, with captions, questions and answers."""

import io
import random
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Idefics3ImageProcessorPil, Idefics3Processor, PreTrainedTokenizerFast

from radistill.models.pictures import Picture

SIZE = 32
PATCH = 8
IMAGE_TOKENS = 4
PLACES = (3, 8), (19, 8)
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 190, 50),
    "blue": (40, 70, 230),
    "yellow": (235, 220, 40),
    "white": (240, 240, 240),
    "purple": (170, 50, 190),
}
# Seven strokes of a digit: top, upper left, upper right, middle, lower left, lower right, bottom.
_STROKES = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)
DIGITS = tuple("0147")
SHAPES = ("square", "circle", "triangle", "cross")
THINGS = DIGITS + SHAPES
CAPTION = "describe the picture"
_ASKED = ("what is on the left ?", "what is on the right ?", "which colour is the {0} ?", "where is the {0} ?")
_WORDS = sorted(
    {word for text in (CAPTION, *_ASKED) for word in text.split() if word != "{0}"}
    | {"a", "and", "."}
    | {*COLOURS, *THINGS}
)
_SPECIAL = ("<pad>", "<begin>", "<end>", "user", "assistant")
_IMAGES = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


@dataclass(frozen=True)
class Scene:
    """Two different things, left and right, each with a colour."""

    things: tuple[str, str]
    colours: tuple[str, str]

    @classmethod
    def drawn(cls, rng: random.Random) -> "Scene":
        """A random one."""
        one, other = rng.sample(THINGS, 2)
        colours = rng.choice([*COLOURS]), rng.choice([*COLOURS])
        return cls((one, other), colours)

    def image(self) -> Image.Image:
        """The picture."""
        image = Image.new("RGB", (SIZE, SIZE), (12, 12, 16))
        pen = ImageDraw.Draw(image)
        for thing, colour, place in zip(self.things, self.colours, PLACES, strict=True):
            _draw(pen, thing, COLOURS[colour], *place)
        return image

    def picture(self) -> Picture:
        """The picture as PNG bytes."""
        data = io.BytesIO()
        self.image().save(data, "PNG")
        return Picture.of({"bytes": b64encode(data.getvalue()).decode()}, Path(), "scene")

    @property
    def caption(self) -> str:
        """What both things are."""
        one, other = (f"a {colour} {thing}" for colour, thing in zip(self.colours, self.things, strict=True))
        return f"{one} on the left and {other} on the right ."

    def questions(self) -> Iterator[tuple[str, str]]:
        """Every question, with its answer."""
        yield CAPTION, self.caption
        for number, side in enumerate(("left", "right")):
            yield _ASKED[number], f"a {self.colours[number]} {self.things[number]} ."
            yield _ASKED[2].format(self.things[number]), f"the {self.things[number]} is {self.colours[number]} ."
            yield _ASKED[3].format(self.things[number]), f"the {self.things[number]} is on the {side} ."


def _draw(pen: Any, thing: str, colour: tuple[int, int, int], x: int, y: int) -> None:
    """A thing of 9 by 15 pixels or 10 by 10."""
    if thing in DIGITS:
        lines = (
            (x, y, x + 8, y + 1),
            (x, y, x + 1, y + 7),
            (x + 7, y, x + 8, y + 7),
            (x, y + 7, x + 8, y + 8),
            (x, y + 7, x + 1, y + 15),
            (x + 7, y + 7, x + 8, y + 15),
            (x, y + 14, x + 8, y + 15),
        )
        for line, there in zip(lines, _STROKES[int(thing)], strict=True):
            if there == "1":
                pen.rectangle(line, fill=colour)
    elif thing == "square":
        pen.rectangle((x, y, x + 9, y + 9), fill=colour)
    elif thing == "circle":
        pen.ellipse((x, y, x + 9, y + 9), fill=colour)
    elif thing == "triangle":
        pen.polygon([(x, y + 9), (x + 9, y + 9), (x + 5, y)], fill=colour)
    else:
        pen.line((x, y, x + 9, y + 9), fill=colour, width=2)
        pen.line((x, y + 9, x + 9, y), fill=colour, width=2)


def processor() -> Any:
    """The processor of the small models: a token a word, and four for a picture."""
    words = [*_SPECIAL, *_IMAGES, *(word for word in _WORDS if word not in _SPECIAL)]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([*_SPECIAL[:3], *_IMAGES])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<begin>",
        eos_token="<end>",
        chat_template=_TEMPLATE,
        additional_special_tokens=list(_IMAGES),
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": SIZE}, max_image_size={"longest_edge": SIZE}, do_image_splitting=False
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=_TEMPLATE)
