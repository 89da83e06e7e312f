"""The pictures of the benchmark of drafters that see: what the target is trained on is what it is given later."""

import random
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radistill.models.sequences import collate


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module


def test_the_target_reads_in_training_what_the_processor_makes(module: Any) -> None:
    massv, scenes = module("massv"), module("common.scenes")
    target, rng = massv.new_target(), random.Random(0)
    drawn = [scenes.Scene.drawn(rng) for _ in range(3)]
    examples = massv.examples_of(drawn, rng, 0)
    batch = collate(massv.documents_of(target, examples), target.pad_token_id)
    quick = massv.tokens_of(target, [(scenes.CAPTION, scene.caption) for scene in drawn])
    assert torch.equal(batch.input_ids, quick.input_ids)
    assert torch.equal(batch.response_mask, quick.response_mask)
    pixels = np.asarray(drawn[1].image(), dtype=np.float32).transpose(2, 0, 1) / 255
    torch.testing.assert_close(batch.arguments["pixel_values"][1, 0], torch.from_numpy((pixels - 0.5) / 0.5))


def test_pictures_of_different_things_differ(module: Any) -> None:
    scenes = module("common.scenes")
    pictures = {
        (thing, colour): scenes.Scene((thing, "square"), (colour, "red")).image().tobytes()
        for thing in scenes.THINGS
        for colour in scenes.COLOURS
    }
    assert len(set(pictures.values())) == len(scenes.THINGS) * len(scenes.COLOURS)
    questions = list(scenes.Scene(("1", "cross"), ("blue", "red")).questions())
    assert questions[0][1] == "a blue 1 on the left and a red cross on the right ."
    assert ("which colour is the cross ?", "the cross is red .") in questions
