"""Whether overlapping will pay on this machine: rounds timed with both processes at work, and the simulator."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch

from radistill.console import progress
from radistill.errors import RadistillError
from radistill.models.generation import evaluating
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.models.timing import timed
from radistill.speculation.branching.drafts import Drafted, Manner, Order
from radistill.speculation.branching.length import CONFIDENCE
from radistill.speculation.branching.loop import Round, verify_meanwhile
from radistill.speculation.branching.process import DraftProcess, draft_process, sharing_cores
from radistill.speculation.branching.rule import branch_count
from radistill.speculation.branching.simulate import OverlapCosts, course_of, rows_of
from radistill.speculation.caches import RowCache, read_prompts
from radistill.speculation.decode import rule_of
from radistill.speculation.payoff import DRAFT_LENGTHS, Estimate, best_in_words

REPEATS = 4
_READ = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Overlap:
    """What overlapping brings at one temperature and context, for one sequence.

    Attributes:
        temperature: of target and drafter.
        context: tokens in the caches.
        branches: as in `branching_generate`.
        draft_length: the best.
        speedup: of it, over plain decoding; the interval is bootstrapped over answers.
        by_length: the speed-up of every draft length.
        rollback_share: expected at the best draft length.
        costs: of the rounds.
    """

    temperature: float
    context: int
    branches: int
    draft_length: int
    speedup: Estimate
    by_length: dict[int, float]
    rollback_share: float
    costs: OverlapCosts

    @property
    def verdict(self) -> str:
        """In one line whether it pays."""
        return (
            f"{best_in_words(self.speedup, self.draft_length)}; the drafter takes {self.costs.ratio:.1f} steps in one "
            "of the target's, and longer drafts make it wait"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the verdict."""
        return asdict(self) | {"verdict": self.verdict}


def measure_overlap(
    target: Model,
    drafter: Model,
    documents: Mapping[float, Sequence[Document]],
    plain: Mapping[int, float],
    *,
    branches: int,
    confidence: float | None = CONFIDENCE,
    repeats: int = REPEATS,
) -> list[Overlap]:
    """Time rounds on this machine, and simulate every draft length over the target's own answers.

    Args:
        target, drafter: the pair.
        documents: by temperature, prompts with the target's answers at it.
        plain: by context, seconds of a step of plain decoding.
        branches: as in `branching_generate`.
        confidence: as in `Length`.
        repeats: as in `time_overlap`.

    Raises:
        RadistillError: if the draft process cannot draft.
    """
    rows = {
        degree: [rows_of(target, drafter, document, degree, branches) for document in texts]
        for degree, texts in documents.items()
    }
    found = []
    with (
        draft_process(drafter, target) as process,
        progress("overlapping", len(rows) * len(plain), "timings") as advance,
    ):
        for degree, texts in rows.items():
            tokens = [len(text) for text in texts]
            for context, step in plain.items():
                costs = time_overlap(
                    target, process, context=context, branches=branches, temperature=degree, repeats=repeats
                )
                courses = {
                    length: [course_of(text, length, confidence, costs) for text in texts] for length in DRAFT_LENGTHS
                }
                speeds = {
                    length: Estimate.of([step * count for count in tokens], [course.seconds for course in each])
                    for length, each in courses.items()
                }
                best = max(speeds, key=lambda length: speeds[length].value)
                branched = sum(one.branched for one in courses[best])
                found.append(
                    Overlap(
                        temperature=degree,
                        context=context,
                        branches=branches,
                        draft_length=best,
                        speedup=speeds[best],
                        by_length={length: one.value for length, one in speeds.items()},
                        rollback_share=1 - sum(one.accepted for one in courses[best]) / branched if branched else 0.0,
                        costs=costs,
                    )
                )
                advance()
    return found


@torch.inference_mode()
def time_overlap(
    target: Model,
    drafter: DraftProcess,
    *,
    context: int,
    branches: int,
    temperature: float = 0.0,
    repeats: int = REPEATS,
) -> OverlapCosts:
    """Time rounds in which target and draft process work at the same time: so many turns, after one to warm up.

    Args:
        target, drafter: the pair, with `context` tokens in the caches.
        branches: most branches; each number that decoding can ask for is timed.
        temperature: above 0, tokens are drawn and judged by probabilities.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    steps: dict[int, list[float]] = defaultdict(list)
    passes: dict[int, list[float]] = defaultdict(list)
    counts = sorted({branch_count(tenth / 10, branches) for tenth in range(1, 11)})
    with evaluating(target.network), sharing_cores(target):
        clock = _Clock(target, drafter, context, temperature)
        for turn in range(repeats + 1):
            for number, read in enumerate(_READ):
                count = counts[(turn + number) % len(counts)]
                order = Order("trunk", (0,), branches=branches, count=count, longest=read - 1)
                drafted: Drafted | None = None
                for kind, proposed in (("anew", 0), ("kept", read - 1)):
                    if drafted is not None:
                        order = replace(order, start="branch", tokens=(), proposed=proposed)
                    found, whole = clock.round(order, drafted)
                    drafted = found.drafted
                    if turn:
                        passes[proposed + 1].append(found.seconds)
                        seconds[kind].append(drafted.seconds[0])
                        steps[count].append(drafted.seconds[1] / read)
                        seconds["rest"].append(max(0.0, whole - max(found.seconds, sum(drafted.seconds))))
    return OverlapCosts(
        passes={count: fmean(passes[count]) for count in sorted(passes)},
        anew=fmean(seconds["anew"]),
        kept=fmean(seconds["kept"]),
        steps={count: fmean(steps[count]) for count in sorted(steps)},
        rest=fmean(seconds["rest"]),
    )


class _Clock:
    """A text whose rounds are timed; the target's cache forgets what was proposed in them."""

    def __init__(self, target: Model, drafter: DraftProcess, context: int, temperature: float) -> None:
        self._target, self._drafter = target, drafter
        self._manner = Manner(target.anatomy.vocab_size, frozenset(), temperature)
        self._rule = rule_of(temperature, 1.0, [0])
        self._cache = RowCache(target.network.config, 1)
        prompt = [token % target.anatomy.vocab_size for token in range(context)]
        drafter.begin(self._manner)
        drafter.ask(Order("nothing", tuple(prompt)))
        read_prompts(target, self._cache, [prompt[:-1]])
        drafter.answer()

    def round(self, order: Order, before: Drafted | None) -> tuple[Round, float]:
        """A round, and seconds of everything in it."""
        proposed = [] if before is None else before.continuations[0][: order.proposed]

        def play() -> Round:
            self._drafter.ask(order)
            found = verify_meanwhile(self._target, self._cache, 0, proposed, self._drafter, self._rule, self._manner)
            self._cache.roll_back([len(proposed)], found.history)
            return found

        seconds, found = timed(play, self._target.network.device)
        if not found.drafted.heads:
            source = self._drafter.drafter.source
            raise RadistillError(f"{source}: the drafter's logits are NaN, so it proposes nothing")
        return found, seconds
