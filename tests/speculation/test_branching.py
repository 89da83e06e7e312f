"""Branches drafted while the target verifies: the target's own text, the counts, the process, what is refused."""

import os
import pickle
import signal
from typing import Any

import psutil
import pytest
import torch
from test_decode import assert_lossless, prompts_of
from test_drafters import PAIRS, other_tokenizer

import tiny
from radistill.errors import RadistillError
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.speculation.branching.drafts import Manner, Order
from radistill.speculation.branching.length import ALL, NONE, Length, LengthNetwork, until_unsure
from radistill.speculation.branching.loop import Branched, branching_generate
from radistill.speculation.branching.process import DraftProcess, draft_process
from radistill.speculation.branching.rule import branch_count, heads_of
from same_process import SameProcess

SURE = Length(None)


def saying(target: Model, case: int) -> Length:
    """A network that expects the same of every round."""
    network = LengthNetwork(5 * target.anatomy.hidden_size).eval()
    torch.nn.init.zeros_(network.layers[-1].weight)
    network.layers[-1].bias.data = torch.eye(3)[case]
    return Length(0.1, network)


def assert_counts(decoded: Branched, draft_length: int, branches: int) -> None:
    for response, accepted, proposed, branched in zip(
        decoded.responses,
        decoded.accepted_by_round,
        decoded.drafted_by_round,
        decoded.branched_by_round,
        strict=True,
    ):
        # A round ends with a token of the target's, unless an end token was proposed; that token may be a head.
        assert sum(accepted) <= len(response) <= sum(accepted) + len(accepted)
        assert all(one <= most <= draft_length for one, most in zip(accepted, proposed, strict=True))
        assert max(branched) <= draft_length * branches
        assert sum(accepted) <= sum(branched)
    assert decoded.rollback_share == 1 - decoded.accepted / decoded.branched


@pytest.mark.parametrize("name", ["plain", "both hybrids"])
def test_greedy_text_is_that_of_generate(name: str) -> None:
    target, drafter = PAIRS[name]
    prompts = prompts_of(2, seed=3)
    expected = generate(target, prompts, max_new_tokens=9, description=None)
    settings: list[dict[str, Any]] = [
        {"draft_length": 4, "branches": 1, "length": SURE},
        {"draft_length": 3, "branches": 5, "length": Length(0.1)},
    ]
    for one in settings:
        decoded = branching_generate(target, prompts, SameProcess(drafter), max_new_tokens=9, **one)
        assert_lossless(target, prompts, expected, decoded)
        assert_counts(decoded, one["draft_length"], one.get("branches", 3))
        assert 0 < decoded.accepted < decoded.branched


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("length", ["sure", "unsure", "network"])
def test_greedy_text_is_that_of_generate_on_100_prompts(name: str, length: str) -> None:
    target, drafter = PAIRS[name]
    settings = {"sure": SURE, "unsure": Length(0.1), "network": saying(target, ALL)}
    prompts = prompts_of(100, seed=4)
    expected = generate(target, prompts, max_new_tokens=16, batch_size=50, description=None)
    decoded = branching_generate(
        target, prompts, SameProcess(drafter), draft_length=4, max_new_tokens=16, length=settings[length]
    )
    assert_lossless(target, prompts, expected, decoded)
    assert_counts(decoded, 4, 3)


@pytest.mark.slow
@pytest.mark.real
def test_greedy_text_of_the_real_model_with_a_process(smollm2: Model) -> None:
    chat = smollm2.tokenizer.apply_chat_template
    prompts = [
        chat([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)
        for text in ("Name three planets.", "What is 17 plus 25? Think step by step.")
    ]
    expected = generate(smollm2, prompts, max_new_tokens=24, batch_size=1, description=None)
    with draft_process(smollm2, smollm2) as process:  # its own twin drafts
        decoded = branching_generate(smollm2, prompts, process, draft_length=3, max_new_tokens=24, length=SURE)
    assert_lossless(smollm2, prompts, expected, decoded)
    assert decoded.acceptance_rate > 0.9


def test_a_twin_loses_nothing() -> None:
    model, twin = tiny.model("llama"), SameProcess(tiny.model("llama"))
    decoded = branching_generate(model, prompts_of(2), twin, draft_length=4, max_new_tokens=16, branches=1, length=SURE)
    assert decoded.acceptance_rate == 1.0
    assert decoded.rollback_share == 0.0
    # First the head behind the prompt; then, in each round, three proposed tokens and the head behind them.
    assert decoded.accepted_by_round == [[1, 4, 4, 4, 2]] * 2


def test_the_network_decides_how_much_of_a_branch_is_read() -> None:
    target, drafter = PAIRS["plain"]
    settings: dict[str, Any] = {"draft_length": 4, "max_new_tokens": 12, "branches": 1}
    none, whole, sure = (
        branching_generate(target, prompts_of(2), SameProcess(drafter), length=length, **settings)
        for length in (saying(target, NONE), saying(target, ALL), SURE)
    )
    assert {count for counts in none.drafted_by_round for count in counts} == {0, 1}  # the branch point alone
    assert none.rollback_share > whole.rollback_share == sure.rollback_share
    assert whole.accepted_by_round == sure.accepted_by_round


def test_responses_end_at_an_end_token() -> None:
    target, drafter = tiny.model("llama"), tiny.cousin(tiny.model("llama"), 0.01)
    prompts = prompts_of(3)
    free = generate(target, prompts, max_new_tokens=12, description=None)
    target.network.generation_config.eos_token_id = [free[0][3], free[1][6], free[2][0]]
    expected = generate(target, prompts, max_new_tokens=12, description=None)
    assert len({len(response) for response in expected}) > 2
    for length in (SURE, Length(0.1)):
        decoded = branching_generate(
            target, prompts, SameProcess(drafter), draft_length=5, max_new_tokens=12, length=length
        )
        assert decoded.responses == expected


def test_a_sampled_response_depends_on_the_seed_and_its_place_alone() -> None:
    target, drafter = PAIRS["plain"]
    prompts = [[5, 6, 7], [9], [5, 6, 7]]

    def respond(prompts: list[list[int]], seed: int) -> list[list[int]]:
        return branching_generate(
            target, prompts, SameProcess(drafter), draft_length=3, max_new_tokens=5, temperature=1.0, seed=seed
        ).responses

    one = respond(prompts, 1)
    assert one == respond(prompts, 1) != respond(prompts, 2)
    assert one[:2] == respond(prompts[:2], 1)
    assert one[0] != one[2]


def test_a_drafter_without_numbers_leaves_the_work_to_the_target() -> None:
    target, drafter = tiny.model("llama"), tiny.model("llama")
    drafter.network.lm_head.weight.data[7, 0] = float("nan")
    decoded = branching_generate(target, prompts_of(2), SameProcess(drafter), draft_length=3, max_new_tokens=5)
    assert decoded.branched == decoded.rollback_share == 0
    assert decoded.responses == generate(target, prompts_of(2), max_new_tokens=5, description=None)


def test_heads_by_hand() -> None:
    logits = torch.tensor([0.38, 0.1, 0.3, 0.22]).log()
    assert heads_of(logits, 1) == [0]
    assert heads_of(logits, 5) == [0, 2, 3]  # floor(5 x 0.62)
    assert heads_of(logits, 5, count=2) == [0, 2]
    assert heads_of(logits, 0) == heads_of(logits * float("nan"), 3) == []
    assert [branch_count(q, 3) for q in (0.0, 0.2, 0.4, 1.0, 1.0000001)] == [3, 2, 1, 1, 1]
    assert until_unsure([0.9, 0.5, 0.9, 0.1], 0.6) == 1
    assert until_unsure([0.9, 0.5, 0.9, 0.1], None) == until_unsure([0.9, 0.5, 0.9, 0.1], 0.2) == 3
    assert until_unsure([float("nan"), 0.5], 0.2) == 0


@pytest.mark.slow
def test_the_process_answers_as_this_one_and_its_end_is_one_line() -> None:
    """One process for all of it: a target that raises leaves it of use, a kill does not."""
    target, drafter = PAIRS["hybrid target"][0], PAIRS["both hybrids"][1]
    prompts = prompts_of(3)
    settings: dict[str, Any] = {"draft_length": 3, "max_new_tokens": 10}
    threads = torch.get_num_threads()
    with draft_process(drafter, target) as process:
        for temperature in (0.0, 0.8):
            there, here = (
                branching_generate(target, prompts, one, temperature=temperature, **settings)
                for one in (process, SameProcess(drafter))
            )
            assert (there.responses, there.branched_by_round) == (here.responses, here.branched_by_round)

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        handle = target.network.lm_head.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            branching_generate(target, prompts, process, **settings)
        handle.remove()
        assert torch.get_num_threads() == threads
        assert branching_generate(target, prompts, process, **settings).responses

        pid, rounds = process.pid, []

        def kill_later(index: int, new: list[int]) -> None:
            rounds.append(new)
            if len(rounds) == 3:
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(RadistillError, match=r"it was ended by signal 9 \(SIGKILL\), so nothing drafts any more"):
            branching_generate(target, prompts, process, on_tokens=kill_later, **settings)
        assert len(rounds) >= 3
    assert not psutil.pid_exists(pid)


class Unready(Model):
    """A drafter that no other process can take over, as where memory holds one copy but not two."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


@pytest.mark.slow
def test_a_drafter_that_the_process_cannot_take_over_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    target = tiny.model("llama")
    unready = Unready(target.network, target.tokenizer, target.anatomy, "unready")
    with (
        pytest.raises(RadistillError, match=r"draft process: ValueError: invalid literal for int"),
        draft_process(unready, target),
    ):
        pass
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_no_process_is_left_and_its_errors_come_through() -> None:
    target, drafter = tiny.model("llama"), tiny.model("llama")
    drafter.network.lm_head.weight = torch.nn.Parameter(torch.zeros(4, 5))
    with pytest.raises(RadistillError, match=r"draft process: [A-Z]"), draft_process(drafter, target) as process:
        branching_generate(target, [[5]], process, draft_length=2, max_new_tokens=4)
    with pytest.raises(KeyboardInterrupt), draft_process(target, target) as other:
        raise KeyboardInterrupt
    assert not any(map(psutil.pid_exists, (process.pid, other.pid)))


class Pipe:
    """Stands for the pipe to a process, which answers each message with its kind; some waiting is interrupted."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.interrupt = False

    def send_bytes(self, message: bytes) -> None:
        self.answers.append(pickle.dumps({"kind": type(pickle.loads(message)).__name__}))

    def recv_bytes(self) -> bytes:
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        return self.answers.pop(0)


def test_after_ctrl_c_drafts_that_nobody_waits_for_are_not_taken_for_others() -> None:
    pipe: Any = Pipe()
    process = DraftProcess(tiny.model("llama"), None, pipe)
    process.ask(Order("nothing", (5,)))
    pipe.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        process.answer()
    process.begin(Manner(8, frozenset()))
    assert pipe.answers == []
    process.ask(Order("nothing", (6,)))
    assert process.answer() == {"kind": "Order"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_length": 0}, "draft_length is 0, but it starts at 1"),
        ({"branches": 0}, "branches is 0, but it starts at 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 4}, "batch_size is 4, but branches are drafted for 1 prompt at a time"),
        ({"length": Length(1.5)}, "confidence is 1.5"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"prompts": [[5], []]}, "prompt 1 has no tokens"),
        ({"prompts": [[5] * 64]}, "prompt 0 has 64 tokens, but the context of tiny qwen2 is 64"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, object], message: str) -> None:
    drafter = SameProcess(tiny.model("qwen2", max_position_embeddings=64))
    arguments: dict[str, object] = {"prompts": [[5]], "drafter": drafter, "draft_length": 2, "max_new_tokens": 4}
    with pytest.raises(RadistillError, match=message):
        branching_generate(tiny.model("llama"), **arguments | settings)  # type: ignore[arg-type]


def test_another_tokenizer_is_refused_before_a_process_starts() -> None:
    drafter = tiny.model("qwen2")
    drafter.tokenizer = other_tokenizer()
    before = psutil.Process().children()
    with (
        pytest.raises(RadistillError, match="drafter tiny qwen2 has another tokenizer"),
        draft_process(drafter, tiny.model("llama")),
    ):
        pass
    assert psutil.Process().children() == before
