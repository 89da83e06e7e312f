"""Decoding with a draft, against plain generation and against draft-and-verify without cache or batch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config

import tiny
from radistill.conversion import convert
from radistill.errors import RadistillError
from radistill.models.anatomy import Component, anatomy_of
from radistill.models.endings import end_tokens
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.decode import DRAFT_CACHES, Decoded, speculative_generate
from radistill.speculation.drafters import Drafter
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.prediction import find_parting, predict_rounds

NEAR_TIE = 1e-4
NOTHING = ComponentMask()


def prompts_of(count: int, longest: int = 24, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(rng.randint(1, longest))] for _ in range(count)]


PROMPTS = prompts_of(4)
_WINDOWED = [
    "mistral-window",
    "gemma2",
    "qwen2-window",
    "phi3-window",
    "olmo3",
    "gemma3_text",
    "gemma4_text",
    "cohere2",
    "ministral-window",
]


def student(family: str = "llama") -> Model:
    """Our own hybrid: two attentions of four replaced, by blocks whose states matter. New ones write almost nothing."""
    model = convert(tiny.model(family), [1, 2], init="random", seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if name.endswith(("in_proj.weight", "out_proj.weight")):
                noise = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
                parameter.copy_(noise if "in_proj" in name else 0.4 * noise)
    return model


def masks_of(model: Model) -> list[ComponentMask]:
    """The first attention skipped, the last, all, one state-space block, an MLP, nothing."""
    attention, ssm = model.anatomy.attention_layers, model.anatomy.ssm_layers
    one_block = [ComponentMask(frozenset({(ssm[0], Component.SSM)}))] if ssm else []
    return [
        ComponentMask.attention(attention[:1]),
        ComponentMask.attention(attention[-1:]),
        ComponentMask.attention(attention),
        *one_block,
        ComponentMask(frozenset({(attention[-1], Component.MLP)})),
        NOTHING,
    ]


def next_logits(model: Model, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]


def naive_draft(model: Model, drafter: Drafter, tokens: list[int]) -> torch.Tensor:
    """What a drafter expects next, over the tokens that the target knows as well."""
    if isinstance(drafter, ComponentMask):
        with masked(model, drafter):
            return next_logits(model, tokens)
    read = [token if token < drafter.anatomy.vocab_size else drafter.pad_token_id for token in tokens]
    return next_logits(drafter, read)[: model.anatomy.vocab_size]


def naive_rounds(
    model: Model, drafter: Drafter, prompt: list[int], draft_length: int, new: int, confidence: float | None = None
) -> tuple[list[int], list[int]]:
    """One prompt, no cache, the whole text again for every token. Returns the response and the accepted counts."""
    stops = end_tokens(model)
    response: list[int] = []
    counts = []
    while len(response) < new and not (response and response[-1] in stops):
        drafted: list[int] = []
        while len(drafted) < min(draft_length, new - len(response)):
            logits = naive_draft(model, drafter, prompt + response + drafted)
            drafted.append(int(logits.argmax()))
            if drafted[-1] in stops or (confidence is not None and logits.softmax(-1).max() < confidence):
                break
        accepted = 0
        for token in drafted:
            if int(next_logits(model, prompt + response).argmax()) != token:
                break
            response.append(token)
            accepted += 1
        counts.append(accepted)
        if len(response) < new and not (accepted and response[-1] in stops):
            response.append(int(next_logits(model, prompt + response).argmax()))
    return response, counts


def assert_lossless(model: Model, prompts: list[list[int]], expected: list[list[int]], decoded: Decoded) -> None:
    for prompt, plain, drafted in zip(prompts, expected, decoded.responses, strict=True):
        difference = find_parting(model, prompt, plain, drafted)
        assert difference is None or difference.margin < NEAR_TIE, difference


@pytest.mark.parametrize(
    "family",
    tiny.usual_first(["student", *tiny.ARCHITECTURES, "granitemoehybrid-experts", "gemma4_text-experts"]),
)
def test_greedy_text_is_that_of_generate_on_100_prompts(family: str) -> None:
    # Zamba2 scans in chunks of 256 tokens unless told otherwise.
    settings = {"chunk_size": 16} if family == "zamba2" else {}
    model = student() if family == "student" else tiny.model(family, **settings)
    prompts = prompts_of(100, longest=20)
    expected = generate(model, prompts, max_new_tokens=4, batch_size=50)
    decoded = speculative_generate(
        model,
        prompts,
        ComponentMask.attention(model.anatomy.attention_layers[:1]),
        draft_length=2,
        max_new_tokens=4,
        batch_size=50,
    )
    assert_lossless(model, prompts, expected, decoded)
    assert 0 < decoded.accepted < decoded.drafted


def test_the_text_model_of_one_that_sees_images_too() -> None:
    """Larger Gemma 3 models are published only so; skipping reaches the layers inside."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=tiny.build("gemma3_text").config.to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config).eval()
    model = Model(network, tiny.tokenizer(), anatomy_of(network), "tiny gemma3")
    assert model.anatomy.layers(network) is network.model.language_model.layers
    text = model.anatomy.parameters(tiny.build("gemma3_text"))
    counts = model.anatomy.parameters(network)
    assert all(counts[part] == text[part] for part in ("attention", "ssm", "mlp"))
    expected = generate(model, PROMPTS, max_new_tokens=6)
    for mask in masks_of(model):
        decoded = speculative_generate(model, PROMPTS, mask, draft_length=3, max_new_tokens=6, batch_size=2)
        assert_lossless(model, PROMPTS, expected, decoded)


@pytest.mark.parametrize(("family", "batch_size"), [("llama", 1), ("student", 1), ("student", 3), ("falcon_h1", 3)])
@pytest.mark.parametrize("draft_cache", DRAFT_CACHES)
def test_every_mask_cache_and_batch_is_lossless(family: str, draft_cache: str, batch_size: int) -> None:
    model = student() if family == "student" else tiny.model(family)
    prompts = PROMPTS[:3]
    expected = generate(model, prompts, max_new_tokens=5)
    for number, mask in enumerate(masks_of(model)):
        decoded = speculative_generate(
            model,
            prompts,
            mask,
            draft_length=number % 4 + 1,
            max_new_tokens=5,
            batch_size=batch_size,
            draft_cache=draft_cache,
        )
        assert_lossless(model, prompts, expected, decoded)


@pytest.mark.parametrize("family", _WINDOWED)
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sliding_windows_are_lossless_beyond_the_window(family: str, batch_size: int) -> None:
    model = tiny.model(family, sliding_window=8)
    prompts = [prompt * 2 for prompt in prompts_of(3, longest=12, seed=4)]
    expected = generate(model, prompts, max_new_tokens=12)
    for mask in masks_of(model)[:2]:
        decoded = speculative_generate(
            model, prompts, mask, draft_length=3, max_new_tokens=12, batch_size=batch_size, draft_cache="shared"
        )
        assert_lossless(model, prompts, expected, decoded)


@pytest.mark.parametrize(
    ("family", "batch_size", "confidence"),
    [
        ("llama", 1, 0.05),
        ("llama", 4, None),
        ("student", 3, 0.05),
        pytest.param("jamba", 3, None, marks=pytest.mark.slow),
    ],
)
def test_rounds_are_those_of_the_naive_loop_and_of_the_prediction(
    family: str, batch_size: int, confidence: float | None
) -> None:
    model = student() if family == "student" else tiny.model(family)
    mask = ComponentMask.attention(model.anatomy.attention_layers[:1])
    prompts = prompts_of(3, seed=2)
    for draft_length in (1, 2, 4, 8):
        decoded = speculative_generate(
            model,
            prompts,
            mask,
            draft_length=draft_length,
            max_new_tokens=10,
            batch_size=batch_size,
            confidence=confidence,
        )
        for prompt, response, accepted in zip(prompts, decoded.responses, decoded.accepted_by_round, strict=True):
            document = Document("", (*prompt, *response), len(prompt))
            predicted = predict_rounds(model, document, mask, [draft_length], confidence=confidence)
            assert accepted == predicted[draft_length]
            if draft_length == 4:
                assert (response, accepted) == naive_rounds(model, mask, prompt, 4, 10, confidence)


@pytest.mark.slow
@pytest.mark.real
def test_acceptance_is_predicted_on_the_real_model(smollm2: Model) -> None:
    mask = ComponentMask.attention([6, 7, 10, 11, 12, 22, 25, 26, 28, 29])
    questions = ["Name three planets.", "What is 17 plus 25? Think step by step."]
    prompts = [
        smollm2.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in questions
    ]
    expected = generate(smollm2, prompts, max_new_tokens=12)
    decoded = speculative_generate(smollm2, prompts, mask, draft_length=4, max_new_tokens=12, batch_size=2)
    assert_lossless(smollm2, prompts, expected, decoded)
    for prompt, response, accepted in zip(prompts, decoded.responses, decoded.accepted_by_round, strict=True):
        document = Document("", (*prompt, *response), len(prompt))
        assert predict_rounds(smollm2, document, mask, [4])[4] == accepted
    assert decoded.mean_accepted_length > 1


@contextmanager
def widths_read(model: Model) -> Iterator[list[int]]:
    """Tokens that each forward pass of the network reads, padding included."""
    widths: list[int] = []
    handle = model.network.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield widths
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "student"])
@pytest.mark.parametrize("draft_cache", DRAFT_CACHES)
def test_drafts_use_a_cache_also_without_the_first_attention(family: str, draft_cache: str) -> None:
    model = student() if family == "student" else tiny.model(family)
    mask = ComponentMask.attention(model.anatomy.attention_layers[:1])
    with widths_read(model) as widths:
        speculative_generate(model, [[5] * 20], mask, draft_length=3, max_new_tokens=16, draft_cache=draft_cache)
    prompts = 2 if draft_cache == "separate" else 1
    assert widths[:prompts] == [19] * prompts
    assert max(widths[prompts:]) <= 4


def test_a_draft_that_skips_nothing_is_always_right() -> None:
    model = tiny.model("llama")
    for draft_cache in DRAFT_CACHES:
        decoded = speculative_generate(
            model, PROMPTS, NOTHING, draft_length=4, max_new_tokens=10, draft_cache=draft_cache
        )
        assert decoded.acceptance_rate == 1.0
        assert decoded.accepted_by_round == [[4, 4]] * len(PROMPTS)  # 4 + 1, 4 + 1


def test_counts_add_up() -> None:
    model = tiny.model("llama")
    decoded = speculative_generate(
        model, PROMPTS, ComponentMask.attention([3]), draft_length=2, max_new_tokens=9, batch_size=3
    )
    assert decoded.rounds == sum(map(len, decoded.drafted_by_round))
    assert decoded.drafted == sum(map(sum, decoded.drafted_by_round))
    assert decoded.mean_accepted_length == decoded.accepted / decoded.rounds
    assert decoded.tokens_per_second == decoded.tokens / decoded.seconds
    for response, accepted, drafted in zip(
        decoded.responses, decoded.accepted_by_round, decoded.drafted_by_round, strict=True
    ):
        # Each round but the last surely adds one token of the target's.
        assert len(response) - sum(accepted) in (len(accepted), len(accepted) - 1)
        assert all(a <= d <= 2 for a, d in zip(accepted, drafted, strict=True))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_responses_stop_at_an_end_token(batch_size: int) -> None:
    model = tiny.model("llama")
    free = generate(model, PROMPTS, max_new_tokens=12)
    model.network.generation_config.eos_token_id = [free[0][3], free[1][6], free[2][0]]
    expected = generate(model, PROMPTS, max_new_tokens=12)
    assert len({len(response) for response in expected}) > 2
    for mask in (ComponentMask.attention([3]), NOTHING):
        decoded = speculative_generate(model, PROMPTS, mask, draft_length=4, max_new_tokens=12, batch_size=batch_size)
        assert decoded.responses == expected


def test_tokens_are_streamed_as_they_come() -> None:
    model = tiny.model("llama")
    streamed: dict[int, list[list[int]]] = {}
    decoded = speculative_generate(
        model,
        PROMPTS,
        ComponentMask.attention([3]),
        draft_length=3,
        max_new_tokens=8,
        batch_size=4,
        on_tokens=lambda index, new: streamed.setdefault(index, []).append(new),
    )
    for index, response in enumerate(decoded.responses):
        assert [token for new in streamed[index] for token in new] == response
        assert len(streamed[index]) == len(decoded.accepted_by_round[index])


def test_confidence_ends_drafts() -> None:
    model = tiny.model("llama")
    mask = ComponentMask.attention([3])

    def drafted(confidence: float | None) -> int:
        return speculative_generate(
            model, PROMPTS, mask, draft_length=4, max_new_tokens=8, confidence=confidence
        ).drafted

    assert drafted(0.0) == drafted(None)
    sure = speculative_generate(model, PROMPTS, mask, draft_length=4, max_new_tokens=8, confidence=1.0)
    assert {count for counts in sure.drafted_by_round for count in counts} == {1}
    assert sure.drafted < drafted(0.05) < drafted(None)
    assert sure.responses == generate(model, PROMPTS, max_new_tokens=8)


def test_the_mode_the_masks_and_the_random_state_are_given_back() -> None:
    model = tiny.model("llama")
    model.network.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    speculative_generate(model, [[5]], ComponentMask.attention([1]), draft_length=2, max_new_tokens=4, temperature=1.0)
    assert model.network.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all("forward" not in vars(module) for module in model.network.modules())


def test_a_draft_without_numbers_leaves_the_work_to_the_target() -> None:
    """An MLP that overflows only without the attention before it: the draft's logits are NaN, the target's are not."""
    model = tiny.model("llama")
    expected = generate(model, PROMPTS, max_new_tokens=6)
    attention = model.anatomy.mixer(model.network, 1)
    layer = model.anatomy.layers(model.network)[3]

    def break_draft(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan") if "forward" in vars(attention) else output

    handle = layer.register_forward_hook(break_draft)
    for temperature in (0.0, 1.0):
        decoded = speculative_generate(
            model,
            PROMPTS,
            ComponentMask.attention([1]),
            draft_length=4,
            max_new_tokens=6,
            batch_size=3,
            temperature=temperature,
        )
        assert decoded.drafted == 0
        assert decoded.acceptance_rate == 0.0
        if not temperature:
            assert decoded.responses == expected
    handle.remove()


def test_a_target_without_numbers_is_an_error() -> None:
    model = tiny.model("llama")
    model.network.lm_head.weight.data[7, 0] = float("nan")
    with pytest.raises(RadistillError, match="logits are NaN"):
        speculative_generate(model, [[5, 6]], NOTHING, draft_length=2, max_new_tokens=4)
    assert all("forward" not in vars(module) for module in model.network.modules())


def test_no_prompts_no_responses() -> None:
    decoded = speculative_generate(tiny.model("llama"), [], NOTHING, draft_length=2, max_new_tokens=4)
    assert decoded.responses == []
    assert decoded.acceptance_rate == decoded.mean_accepted_length == decoded.tokens_per_second == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_length": 0}, "draft_length is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"confidence": 1.5}, "confidence is 1.5"),
        ({"draft_cache": "none"}, "draft_cache is 'none'; it can be separate or shared"),
        ({"prompts": [[5], []]}, "prompt 1 has no tokens"),
        ({"prompts": [[5, 9999]]}, "prompt 0 has a token outside"),
        ({"prompts": [[5] * 512]}, "prompt 0 has 512 tokens, but the context of tiny llama is 512"),
        ({"drafter": ComponentMask.attention([99])}, "layer 99 does not exist"),
        ({"drafter": ComponentMask(frozenset({(0, Component.SSM)}))}, "layer 0 has no ssm"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"prompts": [[5]], "drafter": NOTHING, "draft_length": 2, "max_new_tokens": 4}
    arguments |= settings
    with pytest.raises(RadistillError, match=message):
        speculative_generate(tiny.model("llama"), **arguments)  # type: ignore[arg-type]
