"""What a conversion saves is a plain transformers folder, and generates what its own full forward says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import tiny
from radistill.conversion import ConvertedModel, convert
from radistill.mixers.mamba2.ssd.install import SWAP as SSD
from radistill.models.loading import load

# Runs isolated, and with radistill made unimportable in case it is installed.
PLAIN_TRANSFORMERS = """
import sys
sys.modules["radistill"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "How many legs has a spider?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = network(ids).logits
    seen = {"prompt": prompt, "ids": ids, "logits": logits, "class": type(network).__name__,
            "pad": tokenizer.pad_token_id, "eos": network.generation_config.eos_token_id}
    torch.save(seen, folder + "/seen.pt")
"""


def speaking(family: str, replace: list[int], **target: object) -> ConvertedModel:
    """A student whose new blocks say something, as after training."""
    student = convert(tiny.model(family, 6), replace, init="random", target={"kind": "granite-hybrid", **target})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in replace:
            weight = student.anatomy.mixer(student.network, layer).out_proj.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)
    return student


@pytest.mark.slow
def test_plain_transformers_reads_it(tmp_path: Path) -> None:
    students = {family: speaking(family, [1, 3]) for family in ("llama-tied", "qwen2", "granitemoehybrid-experts")}
    for family, student in students.items():
        student.network.generation_config.eos_token_id = [258, 259]
        student.save(tmp_path / family)
    command = [sys.executable, "-I", "-c", PLAIN_TRANSFORMERS, *(str(tmp_path / family) for family in students)]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    for family, student in students.items():
        seen = torch.load(tmp_path / family / "seen.pt")
        assert seen["class"] == "GraniteMoeHybridForCausalLM"
        assert seen["pad"] == student.tokenizer.pad_token_id
        assert seen["eos"] == [258, 259]
        chat = [{"role": "user", "content": "How many legs has a spider?"}]
        assert seen["prompt"] == student.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        with torch.no_grad():
            with SSD.without(student.network):
                assert torch.equal(seen["logits"], student.network(seen["ids"]).logits)
            torch.testing.assert_close(seen["logits"], student.network(seen["ids"]).logits, rtol=1e-5, atol=1e-5)


def test_folder_is_stock(tmp_path: Path) -> None:
    speaking("llama", [1, 3]).save(tmp_path / "student")
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert config["architectures"] == ["GraniteMoeHybridForCausalLM"]
    assert config["model_type"] == "granitemoehybrid"
    assert "auto_map" not in config
    assert not list((tmp_path / "student").glob("*.py"))
    texts = [path.read_text() for path in (tmp_path / "student").glob("*.json")]
    assert not any("radistill" in text for text in texts)


@pytest.mark.parametrize("names", [("linear_attention", "full_attention"), ("mamba", "attention")])
def test_both_spellings_of_layer_types_load(tmp_path: Path, names: tuple[str, str]) -> None:
    """IBM's checkpoints, vLLM and llama.cpp say mamba and attention; transformers renames them when it loads."""
    student = speaking("llama", [1, 3])
    student.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["layer_types"] = [names[0] if layer in (1, 3) else names[1] for layer in range(6)]
    (tmp_path / "config.json").write_text(json.dumps(config))
    reloaded = load(tmp_path)
    assert reloaded.anatomy == student.anatomy
    assert reloaded.fingerprint == student.fingerprint
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(reloaded.network(ids).logits, student.network(ids).logits)


def left_padded(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    time = max(map(len, prompts))
    ids = torch.tensor([[pad] * (time - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (time - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


@torch.no_grad()
def by_full_forward(network: PreTrainedModel, prompt: list[int], steps: int) -> list[int]:
    """Greedy decoding with neither cache nor padding: the definition."""
    tokens = list(prompt)
    for _ in range(steps):
        tokens.append(int(network(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "replace", "target"),
    [
        ("llama", [0, 1, 4], {"chunk_size": 8}),
        ("smollm2", [1, 2, 3, 4, 5], {"chunk_size": 8, "groups": "heads"}),
        ("qwen2", [0, 5], {"chunk_size": 8, "groups": 2, "state": 16, "expand": 2}),
        ("granite", [2, 3], {"chunk_size": 8, "conv_kernel": 2}),
        ("granitemoehybrid", [1, 5], {}),
        ("granitemoehybrid-experts", [3], {}),
    ],
)
def test_every_path_of_the_reloaded_student_agrees(
    tmp_path: Path, family: str, replace: list[int], target: dict[str, object]
) -> None:
    """Full forward = cached = left-padded batch, over the boundary of the scan's chunks."""
    steps = 10
    student = speaking(family, replace, **target)
    student.save(tmp_path)
    network = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    network.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(11)
    prompts = [torch.randint(256, (length,), generator=generator).tolist() for length in (1, 7, 8, 21)]
    expected = [by_full_forward(network, prompt, steps) for prompt in prompts]
    greedy = {"max_new_tokens": steps, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}

    for prompt, wanted in zip(prompts, expected, strict=True):
        alone = network.generate(torch.tensor([prompt]), use_cache=True, **greedy)
        assert alone[0, len(prompt) :].tolist() == wanted
    ids, mask = left_padded(prompts, tokenizer.pad_token_id)
    for use_cache in (True, False):
        together = network.generate(ids, attention_mask=mask, use_cache=use_cache, **greedy)
        assert together[:, ids.shape[1] :].tolist() == expected
    assert len({tuple(tokens) for tokens in expected}) > 1
