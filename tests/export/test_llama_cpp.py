"""llama.cpp and transformers compute the same from an export: greedy tokens, logits, and token ids of a text."""

from pathlib import Path
from typing import Any

import pytest
import small
import torch
from students import PROMPTS, REPLACED, wake
from transformers import AutoModelForCausalLM

import tiny
from radistill.conversion import convert
from radistill.data.documents import prompt_tokens
from radistill.data.examples import Example
from radistill.distillation.distill import finetune
from radistill.distillation.settings import FinetuneSettings
from radistill.export import gguf as gguf_module
from radistill.export import write_gguf
from radistill.export.engines.llama_cpp import LlamaCpp
from radistill.models.loading import Model
from radistill.models.sequences import Document

COUNT = 64
NEAR_TIE = 1e-3

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}

TEXTS = [
    "Hello world, it's 1 or 12 or 123 or 1234567.",
    "two  spaces,\ttabs\n\n\nand new lines \n \n x",
    "déjà vu, naïve, Straße, Привет, 你好世界, नमस्ते, שלום",
    "🙂 👩‍👩‍👧 🇩🇪 e\u0301 \u200b ﬁ",
    "I'LL can't WE'VE x=1;y+=2 /* a_b */ {\"k\": [1, 2.5e-3]}",
    f"{tiny.START}user\nWhat is 7 * 8?{tiny.END}\n{tiny.START}assistant\n",
]


def greedy(model: Model, prompt: list[int], count: int, never: list[int]) -> tuple[list[int], torch.Tensor]:
    """The most likely tokens by transformers, and for each how far its logit is above the next one."""
    generated = model.network.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        suppress_tokens=never,
    )[0]
    with torch.no_grad():
        logits = model.network(generated[None]).logits[0, len(prompt) - 1 : -1]
    logits[:, never] = -torch.inf
    top = logits.topk(2).values
    return generated[len(prompt) :].tolist(), top[:, 0] - top[:, 1]


def differences(model: Model, engine: LlamaCpp, prompts: list[list[int]], count: int = COUNT) -> tuple[int, int]:
    """Number of prompts whose tokens differ: without excuse, and from a near tie on."""
    never = model.tokenizer.all_special_ids
    unexcused = ties = 0
    for prompt in prompts:
        tokens, margins = greedy(model, prompt, count, never)
        found = engine.greedy(prompt, count, ignore_eos=True, logit_bias=[[token, False] for token in never])["tokens"]
        assert len(found) == len(tokens) == count
        if found == tokens:
            continue
        first = next(index for index, (ours, theirs) in enumerate(zip(tokens, found, strict=True)) if ours != theirs)
        if margins[first] < NEAR_TIE:
            print(f"near tie at token {first}: margin {margins[first]:.1e}")
            ties += 1
        else:
            print(f"tokens differ at {first}: margin {margins[first]:.1e}")
            unexcused += 1
    return unexcused, ties


def random_prompts(rows: int, count: int = 5, length: int = 20) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(len(tiny.SPECIAL), rows, (count, length), generator=generator).tolist()


CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "two groups": {"mamba_n_groups": 2},
    "a group for each head": {"mamba_n_groups": 4},
    "expand 2": {"mamba_expand": 2, "mamba_n_heads": 8},
    "other state and kernel": {"mamba_d_state": 16, "mamba_d_conv": 3},
    "biases": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "no positions": {"position_embedding_type": "nope"},
    "experts": {"family": "granitemoehybrid-experts"},
    **{name: {"rope_parameters": {"rope_theta": 10000.0, **scaling}} for name, scaling in SCALINGS.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_small_models_give_the_same_tokens(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = small.save(tmp_path / "model", **settings)
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    unexcused, ties = differences(model, LlamaCpp(tmp_path / "m.gguf"), random_prompts(small.TOKENS), count=32)
    assert unexcused == 0
    assert ties <= 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "llama-tied", "llama-biased", "mistral", "qwen2", "phi3", "granite"])
def test_converted_models_give_the_same_tokens(tmp_path: Path, family: str) -> None:
    student = convert(small.model(family), [0, 2], init="random")
    wake(student, [0, 2], scale=1)
    student.save(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    unexcused, ties = differences(student, LlamaCpp(tmp_path / "m.gguf"), random_prompts(small.TOKENS), count=32)
    assert unexcused == 0
    assert ties <= 2


QWEN35: dict[str, dict[str, Any]] = {
    "two values a key": {},
    "one key for all, wide heads": {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "linear": {"rope_parameters": {"rope_theta": 10000.0, **SCALINGS["linear"]}},
    "yarn": {"rope_parameters": {"rope_theta": 10000.0, **SCALINGS["yarn"]}},
}


@pytest.mark.parametrize("settings", QWEN35.values(), ids=QWEN35)
def test_converted_qwen3_gives_the_same_tokens(tmp_path: Path, settings: dict[str, Any]) -> None:
    student = convert(small.model("qwen3", **settings), [0, 2], init="random")
    wake(student, [0, 2], scale=1)
    student.save(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    prompts = [*random_prompts(small.TOKENS, count=2), *random_prompts(small.TOKENS, count=1, length=150)]
    unexcused, ties = differences(student, LlamaCpp(tmp_path / "m.gguf"), prompts, count=32)
    assert unexcused == 0
    assert ties <= 1


def test_a_converted_qwen3_5_gives_the_same_tokens_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = convert(small.model("qwen3_5_text"), [1], init="random")
    wake(student, [1], scale=1)
    student.save(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert differences(student, LlamaCpp(tmp_path / "m.gguf"), random_prompts(small.TOKENS), count=16)[0] == 0
    # Negative control: value heads in transformers' order.
    monkeypatch.setattr("radistill.mixers.gdn.gguf._spread", lambda tensor, geometry: tensor)
    write_gguf(tmp_path / "model", tmp_path / "broken.gguf")
    assert differences(student, LlamaCpp(tmp_path / "broken.gguf"), random_prompts(small.TOKENS), count=16)[0] > 2


def test_log_probabilities_agree(tmp_path: Path) -> None:
    model = small.save(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    engine = LlamaCpp(tmp_path / "m.gguf")
    for prompt in random_prompts(small.TOKENS):
        answer = engine.greedy(prompt, 1, n_probs=20)
        with torch.no_grad():
            expected = model.network(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        # A token that is no whole character has no entry.
        for entry in (answer.get("completion_probabilities") or [{}])[0].get("top_logprobs", []):
            assert entry["logprob"] == pytest.approx(expected[entry["id"]].item(), abs=1e-5)


@pytest.mark.parametrize("pre", small.PRE_TOKENIZERS)
def test_a_text_becomes_the_same_tokens(tmp_path: Path, pre: str) -> None:
    model = small.save(tmp_path / "model", pre=pre)
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    engine = LlamaCpp(tmp_path / "m.gguf")
    for text in TEXTS:
        assert engine.tokenize(text) == model.tokenizer(text)["input_ids"], text


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_with_ten_layers_replaced(
    student: Model, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [student.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    write_gguf(student_folder, tmp_path / "m.gguf")
    engine = LlamaCpp(tmp_path / "m.gguf", threads=2)
    assert differences(student, engine, prompts) == (0, 0)

    for text in [*TEXTS, *PROMPTS]:
        assert engine.tokenize(text) == student.tokenizer(text)["input_ids"], text
    # Through text, as a user asks.
    assert engine.greedy(PROMPTS[1], 16)["tokens"] == engine.greedy(prompts[1], 16)["tokens"]

    # Negative control: without the reordering for llama.cpp's rotation, hardly anything agrees.
    monkeypatch.setattr("radistill.conversion.targets.plain_gguf.rotary_pairs", lambda tensor, heads: tensor)
    gguf_module.write_gguf(student_folder, tmp_path / "broken.gguf")
    unexcused, _ = differences(student, LlamaCpp(tmp_path / "broken.gguf"), prompts, count=16)
    assert unexcused == len(prompts)


@pytest.mark.slow
@pytest.mark.real
def test_the_replaced_layers_of_that_student_matter(student: Model) -> None:
    """Otherwise the agreement would say nothing about the scan."""
    prompt = torch.tensor([student.tokenizer(PROMPTS[2])["input_ids"]])
    blocks = [student.anatomy.mixer(student.network, layer) for layer in REPLACED]
    with torch.no_grad():
        spoken = student.network(prompt).logits
        handles = [block.register_forward_hook(lambda _, __, output: output * 0) for block in blocks]
        silent = student.network(prompt).logits
        for handle in handles:
            handle.remove()
    assert (spoken - silent).abs().max() > 1


def test_a_student_stops_where_it_was_taught_to(tmp_path: Path) -> None:
    """Its base ends texts with another token than the one that ends a turn in its template."""
    base = small.model("llama")
    base.tokenizer.eos_token = tiny.PAD
    base.network.generation_config.eos_token_id = base.network.config.eos_token_id = 0
    student = convert(base, [0, 2], init="random")
    prompts = [prompt_tokens(Example.of_user(str(n), f"Say {n}."), base.tokenizer) for n in range(6)]
    said = base.tokenizer(f"ok{tiny.END}", add_special_tokens=False)["input_ids"]
    train = [Document(str(n), (*prompt, *said), len(prompt)) for n, prompt in enumerate(prompts)]
    settings = FinetuneSettings(steps=60, new_block_learning_rate=5e-3, other_learning_rate=5e-3, tokens_per_batch=4000)
    names = {name for name, _ in student.network.named_parameters()}
    finetune(student, base, train, train[:1], settings, new_parameters=names)
    student.save(tmp_path / "student")
    prompt = torch.tensor([prompts[0]])
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert network.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :].tolist() == said
    write_gguf(tmp_path / "student", tmp_path / "student.gguf")
    answer = LlamaCpp(tmp_path / "student.gguf").greedy(prompts[0], 20)
    assert (answer["stop_type"], answer["content"]) == ("eos", "ok")
