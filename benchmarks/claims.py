"""The three claims of RAD, repeated on one GPU: self-distillation, tokens to the baseline's quality, a larger teacher.

    python benchmarks/claims.py --model QWEN-0.5B --teacher QWEN-1.5B --data DATA [--minutes 9]
    python benchmarks/claims.py --cpu --data DATA
    python benchmarks/claims.py --smoke

(a) The self-distilled RAD hybrid against its base, on tasks. (b) Tokens until a hybrid reaches the final held-out KL of
the baseline, uniform + transfer. (c) RAD with the larger teacher against the baseline with the same one. Ablations
besides: targeting, right responses only, other budgets, other selectors.

Everything that is finished is kept in the run folder, and what runs is checkpointed, so that the work goes in slices:
with --minutes, the run ends by itself with exit code 75, and the same command goes on. Nothing is fetched: models are
folders or files, DATA is a folder with `gsm8k/train.jsonl`, `gsm8k/dev.jsonl`, `cruxeval/dev.jsonl` and
`svamp/SVAMP.json`. `benchmarks/common/pieces.py` cuts large files for machines that take small ones only. On a CPU,
--cpu is claim (b) in small: SmolLM2-135M, five arms of 200,000 tokens, in hours on two cores.
The smoke run needs no data: it uses generated code-tracing exercises, on SmolLM2-135M, and proves the harness, not a
claim. The result is written to benchmarks/results/claims-NAME.json, unless --out says otherwise, and a figure of claim
(b) with the first seed beside it.
"""

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from common.code_tracing import exercises
from common.curves import drawing
from common.overlap import overlap
from common.students import GEOMETRY, best_rate, first_tokens, token_ratio, train_blocks
from radistill import align, convert, diagnose, load
from radistill.data.examples import Example
from radistill.data.prepare import prepare
from radistill.data.records import DataSplits, Record
from radistill.data.settings import JsonlData, ResponseSettings
from radistill.distillation.align import AlignSettings
from radistill.distillation.blocks import fit_blocks
from radistill.distillation.heldout import distance
from radistill.distillation.teacher_store import StoredTeacher, TeacherStoreSettings, store_teacher
from radistill.evaluation.comparison import compare, read_results
from radistill.evaluation.paired import paired_bootstrap
from radistill.evaluation.run_tasks import file_name, run_tasks, tasks_of
from radistill.evaluation.tasks import task_of
from radistill.evaluation.tasks.cruxeval import judge_input, judge_output
from radistill.evaluation.tasks.gsm8k import judge as judge_number
from radistill.evaluation.tasks.interface import Generated, TaskSettings
from radistill.files import read_json, write_json, write_text
from radistill.models.loading import Model
from radistill.models.processor import times_as_slow
from radistill.models.sequences import Document, batches
from radistill.provenance import machine, seed_everything, versions

ROOT = Path(__file__).parents[1]
UNFINISHED = 75
"""Exit code of a slice that is over before the work is."""


@dataclass(frozen=True)
class Scale:
    """How large a run is; the JSON of a result holds it.

    Blocks are fitted on the first `fit_tokens` of the training text: what is recorded of it is large, and `fit_steps`
    batches of 512 tokens read it several times. With `top_k` the teacher reads the text once for all arms, and so many
    of its largest probabilities are kept; without, it reads along. The first part, `probe`, of the steps chooses an
    arm's rate out of three and up to `further_rates` beyond them.
    """

    budget: int
    tokens: int
    tokens_per_batch: int
    top_k: int | None
    documents: int
    heldout: int
    calibration: int
    max_new_tokens: int
    fit_tokens: int
    fit_steps: int
    search_fit_steps: int
    search: str
    measures: int
    probe: float
    further_rates: int
    tasks: tuple[str, ...]
    limit: int | None
    answer_tokens: int
    contexts: tuple[int, ...]
    batch_size: int
    seeds: tuple[int, ...]
    precision: str | None


FULL = Scale(
    budget=12, tokens=5_000_000, tokens_per_batch=8192, top_k=None, documents=10_000, heldout=256, calibration=32,
    max_new_tokens=384, fit_tokens=250_000, fit_steps=1000, search_fit_steps=200,
    search="greedy", measures=16, probe=0.1, further_rates=4,
    tasks=("gsm8k", "cruxeval-o", "cruxeval-i", "svamp", "recall"), limit=None, answer_tokens=512,
    contexts=(512, 2048, 8192), batch_size=256, seeds=(0, 1, 2), precision="bfloat16",
)  # fmt: skip
CPU = Scale(
    budget=10, tokens=200_000, tokens_per_batch=512, top_k=64, documents=450, heldout=24, calibration=8,
    max_new_tokens=128, fit_tokens=30_000, fit_steps=300, search_fit_steps=80, search="greedy", measures=8, probe=0.05,
    further_rates=4,
    tasks=("recall",), limit=25, answer_tokens=128,
    contexts=(128, 512), batch_size=128, seeds=(0,), precision=None,
)  # fmt: skip
SMOKE = Scale(
    budget=10, tokens=600, tokens_per_batch=512, top_k=None, documents=6, heldout=2, calibration=2,
    max_new_tokens=16, fit_tokens=2_000, fit_steps=2, search_fit_steps=1, search="leave-one-out", measures=1, probe=0.5,
    further_rates=0,
    tasks=("cruxeval-o", "recall"), limit=2, answer_tokens=8,
    contexts=(128,), batch_size=8, seeds=(0,), precision=None,
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One student.

    Attributes:
        plan: `rad` and `replaceable` are the scale's search, over skips and over swaps; else a selector of skips.
        init: how its blocks start.
        teacher: `base` or `large`.
        responses: `all` of the base's, or only the `right` ones.
        everything: whether all weights are trained, at a tenth of the blocks' rate, not the new blocks alone.
        budget: replaced layers; None is the scale's.
    """

    plan: str
    init: str
    teacher: str = "base"
    responses: str = "all"
    everything: bool = False
    budget: int | None = None

    @property
    def name(self) -> str:
        """Its key in the result."""
        marks = [self.teacher if self.teacher != "base" else "", "right" if self.responses == "right" else ""]
        marks += ["everything" if self.everything else "", f"{self.budget}" if self.budget else ""]
        return "@".join(filter(None, [f"{self.plan}+{self.init}", *marks]))


BASELINE, RAD, FITTED = Arm("uniform", "transfer"), Arm("rad", "zero"), Arm("rad", "fitted")
UNIFORM_FITTED, REPLACEABLE = Arm("uniform", "fitted"), Arm("replaceable", "fitted")
CLAIM_B = [BASELINE, RAD, FITTED, REPLACEABLE]
CPU_ARMS = [*CLAIM_B, UNIFORM_FITTED]
"""What is measured on a CPU, and what the figure shows of any run: one teacher, one budget."""

CLAIM_C = [replace(BASELINE, teacher="large"), replace(FITTED, teacher="large")]
COMPARED = [(BASELINE, RAD), (BASELINE, FITTED), (CLAIM_C[0], CLAIM_C[1]), (FITTED, CLAIM_C[1])]
"""Pairs whose answers are compared too, besides each arm's with the base's."""

PLAN_OR_START = [(RAD, FITTED), (RAD, UNIFORM_FITTED), (UNIFORM_FITTED, FITTED), (FITTED, REPLACEABLE)]
"""Pairs whose KLs are compared too, besides each arm's with its baseline's: what a start brings, and what a plan."""

ABLATIONS = [
    UNIFORM_FITTED,
    Arm("uniform", "zero"),
    Arm("rad", "transfer"),
    replace(FITTED, everything=True),
    replace(FITTED, responses="right"),
    replace(FITTED, budget=6),
    replace(FITTED, budget=18),
    Arm("leave-one-out", "fitted"),
    Arm("gates", "fitted"),
]


class Study:
    """The run of one scale: what is needed for its arms, made once and kept."""

    def __init__(
        self, base: Model, teacher: str | None, data: Path | None, scale: Scale, folder: Path, end: float
    ) -> None:
        """Nothing is computed yet."""
        self.base, self.scale, self.folder, self.data = base, scale, folder, data
        self._teacher = teacher
        self._end = end
        self._splits: dict[int, tuple[DataSplits, dict[str, Example]]] = {}

    def _check_time(self) -> None:
        """End the slice between two pieces of work: an interrupt that came as one was being finished is not lost."""
        if time.monotonic() > self._end:
            raise KeyboardInterrupt

    def teacher(self, name: str) -> Model:
        """The base, or the larger one."""
        if name == "base":
            return self.base
        assert self._teacher is not None
        return load(self._teacher, dtype="bfloat16", device=str(self.base.network.device))

    def taught(self, teacher: Model, seed: int) -> Model | StoredTeacher:
        """Who teaches: the model, or what is kept of it."""
        if self.scale.top_k is None:
            return teacher
        self._check_time()
        splits = self.splits(seed)[0]
        return store_teacher(
            teacher,
            [*splits.documents("train"), *splits.documents("heldout")],
            TeacherStoreSettings(top_k=self.scale.top_k),
            vocabulary=self.base.anatomy.vocab_size,
            folder=self.folder / f"teacher-{seed}",
            precision=self.scale.precision,
        )

    def splits(self, seed: int) -> tuple[DataSplits, dict[str, Example]]:
        """The base's responses, and the examples by their prompts."""
        if seed not in self._splits:
            count = self.scale.documents + self.scale.heldout
            examples = self._examples(count, seed)
            path = self.folder / f"prompts-{seed}.jsonl"
            rows = (json.dumps({"messages": list(example.messages or ())}) for example in examples)
            write_text(path, "".join(f"{row}\n" for row in rows))
            settings = JsonlData(
                path=path,
                train=self.scale.documents,
                heldout=self.scale.heldout,
                calibration=self.scale.calibration,
                responses=ResponseSettings(
                    source="teacher", max_new_tokens=self.scale.max_new_tokens, batch_size=self.scale.batch_size
                ),
            )
            splits = prepare(self.base, settings, seed=seed, folder=self.folder / f"data-{seed}")
            self._splits[seed] = splits, {example.prompt: example for example in examples}
        return self._splits[seed]

    def _examples(self, count: int, seed: int) -> list[Example]:
        """Half word problems, as far as there are any, and the rest code tracing."""
        problems: list[Example] = []
        if self.data is not None:
            task = task_of("gsm8k")
            assert isinstance(task, Generated)
            settings = TaskSettings(data={"gsm8k": self.data / "gsm8k" / "train.jsonl"}, limit=count // 2)
            problems = task.read(self.base, settings)
        return [*problems, *islice(exercises(seed), count - len(problems))]

    def train(self, responses: str, seed: int) -> list[Document]:
        """The training documents: with `all` of the base's responses, or only the `right` ones."""
        splits, examples = self.splits(seed)
        records = splits.train
        if responses == "right":
            records = [record for record in records if self._is_right(record, examples[record.example.prompt])]
        if not records:
            raise SystemExit(f"seed {seed}: none of the base's responses is right")
        return [record.document for record in records]

    def _is_right(self, record: Record, example: Example) -> bool:
        assert example.verifier is not None
        judges = {"output": judge_output, "input": judge_input}
        judge = judges.get(example.verifier.get("direction", ""), judge_number)
        return judge(example, record.example.response or "").correct

    def plan(self, arm: Arm, seed: int) -> list[int]:
        """The layers of an arm."""
        self._check_time()
        budget = arm.budget or self.scale.budget
        path = self.folder / f"plan-{arm.plan}-{budget}-{seed}.json"
        if not path.exists():
            documents = self.splits(seed)[0].documents("calibration")
            substitutes = None
            if arm.plan == "replaceable":
                fit = self._fit(self.scale.search_fit_steps)
                train = first_tokens(self.train("all", seed), self.scale.fit_tokens)
                folder = self.folder / f"blocks-{seed}"
                substitutes = fit_blocks(
                    self.base, train, fit, target=GEOMETRY, init="fitted", seed=seed, folder=folder
                )
            selector = self.scale.search if arm.plan in ("rad", "replaceable") else arm.plan
            found = diagnose(
                self.base, documents, budget,
                selector=selector, substitutes=substitutes, seed=seed,
                folder=self.folder / f"search-{arm.plan}-{budget}-{seed}",
            )  # fmt: skip
            write_json(path, {"replace": found.replace, "kl": found.kl, "acceptance_rate": found.acceptance_rate})
        layers: list[int] = read_json(path)["replace"]
        return layers

    def _fit(self, steps: int) -> AlignSettings:
        return AlignSettings(steps=steps, tokens_per_batch=512, memory_gib=16)

    def measure(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Train a student at the best rate, and ask it the tasks."""
        folder = self.folder / "arms" / f"{file_name(arm.name)}-{seed}"
        path = folder / "result.json"
        if path.exists():
            found: dict[str, Any] = read_json(path)
            return found
        layers, documents = self.plan(arm, seed), self.train(arm.responses, seed)
        heldout, teacher = self.splits(seed)[0].documents("heldout"), self.teacher(arm.teacher)
        taught = self.taught(teacher, seed)
        per_epoch = sum(len(document.tokens) for document in documents) / len(
            batches(documents, self.scale.tokens_per_batch)
        )
        steps = math.ceil(self.scale.tokens / per_epoch)

        def train(rate: float, steps: int, place: Path, measures: int, keep: Path | None = None) -> dict[str, Any]:
            done = place / "trained.json"
            if not done.exists():
                self._check_time()
                student, fit = self._start(arm, layers, documents, seed)
                curve = train_blocks(
                    student, taught, documents, heldout,
                    replace=layers, steps=steps, tokens_per_batch=self.scale.tokens_per_batch,
                    rate=rate, other_rate=rate / 10 if arm.everything else 0.0,
                    precision=self.scale.precision, measures=measures, folder=place, seed=seed,
                )  # fmt: skip
                if keep is not None:
                    student.save(keep)
                write_json(done, {"fit": fit, **curve})
            found: dict[str, Any] = read_json(done)
            return found

        def probe(rate: float) -> float:
            few = max(1, round(steps * self.scale.probe))
            kl: float = train(rate, few, folder / f"probe-{rate:g}", 1)["evaluations"][-1]["kl"]
            return kl

        best, rates = best_rate(arm.init, probe, self.scale.further_rates)
        trained = folder / "student"
        curve = train(best, steps, folder / "training", self.scale.measures, keep=trained)
        student = load(trained, device=str(self.base.network.device))
        nats = self._nats(student, teacher, heldout)
        answers = self.ask(student, f"{file_name(arm.name)}-{seed}")
        result = asdict(arm) | {
            "replace": layers,
            "rate": best,
            "rates": rates,
            **curve,
            "nats": nats,
            "tasks": answers,
        }
        write_json(path, result)
        return result

    def _nats(self, student: Model, teacher: Model, heldout: list[Document]) -> list[tuple[float, int]]:
        """Of each held-out document the sum of its KL, over the whole vocabulary, and its response tokens.

        An interval is drawn from them.
        """
        pad, size = self.base.pad_token_id, self.scale.tokens_per_batch
        found = [distance(teacher.network, student.network, [document], pad, size) for document in heldout]
        return [(one.kl_sum, one.tokens) for one in found]

    def _start(
        self, arm: Arm, layers: list[int], documents: list[Document], seed: int
    ) -> tuple[Model, dict[str, Any] | None]:
        student = convert(self.base, layers, target=GEOMETRY, init=arm.init, seed=seed)
        if arm.init != "fitted":
            return student, None
        folder = self.folder / f"fitted-{arm.responses}-{seed}"
        documents = first_tokens(documents, self.scale.fit_tokens)
        fit = self._fit(self.scale.fit_steps)
        result = align(student, self.base, documents, fit, replace=layers, seed=seed, folder=folder)
        explained = {str(layer.layer): 1 - layer.unexplained_after for layer in result.layers}
        return student, {"seconds": sum(layer.seconds for layer in result.layers), "explained": explained}

    def ask(self, model: Model, name: str) -> dict[str, Any]:
        """A model's figures on the tasks."""
        self._check_time()
        settings = TaskSettings(
            data=self._task_data(),
            limit=self.scale.limit,
            max_new_tokens=self.scale.answer_tokens,
            batch_size=self.scale.batch_size,
            contexts=self.scale.contexts,
        )
        return run_tasks(model, tasks_of(self.scale.tasks, settings), settings, self.folder / "tasks" / name)

    def _task_data(self) -> dict[str, Path]:
        if self.data is not None:
            files = {"gsm8k": "gsm8k/dev.jsonl", "cruxeval": "cruxeval/dev.jsonl", "svamp": "svamp/SVAMP.json"}
            return {
                name: self.data / file
                for name, file in files.items()
                if any(task.startswith(name) for task in self.scale.tasks)
            }
        path = self.folder / "tracing.jsonl"
        rows = [example.verifier or {} for example in islice(exercises(10_000), 8)]
        keys = {"code": "code", "input": "input", "output": "answer"}
        text = (json.dumps({ours: row[theirs] for ours, theirs in keys.items()}) + "\n" for row in rows)
        write_text(path, "".join(text))
        return {"cruxeval": path}

    def on_tasks(self, first: str, second: str) -> list[dict[str, Any]]:
        """The figures of two models on each task, the second's share less the first's, and whether that is chance."""
        return [
            asdict(line) for line in compare([read_results(of, self.folder / "tasks" / of) for of in (first, second)])
        ]

    def overlap(self, seed: int) -> dict[str, Any]:
        """N-grams that the training text shares with what is asked."""
        if self.data is None:
            return {}
        _, examples = self.splits(seed)
        training = [str(turn["content"]) for example in examples.values() for turn in example.messages or ()]
        asked = {
            "gsm8k": [row["question"] for row in _rows(self.data / "gsm8k" / "dev.jsonl")],
            "cruxeval": [row["code"] for row in _rows(self.data / "cruxeval" / "dev.jsonl")],
        }
        codes = [
            example.verifier["code"] for example in examples.values() if example.verifier and "code" in example.verifier
        ]
        return {
            "gsm8k": overlap(training, asked["gsm8k"], 13),
            "cruxeval": overlap(codes, asked["cruxeval"], 10),
        }  # fmt: skip


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _arms(given: argparse.Namespace) -> list[Arm]:
    if given.smoke:
        return [BASELINE, FITTED]
    if given.cpu:
        return CPU_ARMS
    return [*CLAIM_B, *(CLAIM_C if given.teacher else []), *(ABLATIONS if given.ablations else [])]


def summary(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each arm's KL with its interval, and against the baseline of the same teacher and budget, where there is one.

    A KL to one teacher says nothing beside a KL to another. Intervals are bootstrapped over held-out documents.
    """
    found = {}
    for name, arm in measured.items():
        nats, tokens = zip(*arm["nats"], strict=True)
        kl = paired_bootstrap([0.0] * len(nats), nats, tokens)
        found[name] = {"kl": kl.difference, "interval": kl.interval, "token_ratio": None, "less_baseline": None}
        baseline = measured.get(replace(BASELINE, teacher=arm["teacher"], budget=arm["budget"]).name)
        if baseline is not None:
            found[name]["token_ratio"] = token_ratio(arm, baseline)
            found[name]["less_baseline"] = less(arm, baseline)
    return found


def less(arm: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """An arm's KL less another's, with its interval, over the same held-out documents."""
    nats, tokens = zip(*arm["nats"], strict=True)
    return asdict(paired_bootstrap([nat for nat, _ in other["nats"]], nats, tokens))


def names_of(pairs: Iterable[tuple[Arm, Arm]], measured: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """The names of the pairs that are both measured."""
    return [(one.name, other.name) for one, other in pairs if {one.name, other.name} <= measured.keys()]


def kl_differences(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The second arm's KL less the first's, of the pairs that tell what a start brings and what a plan."""
    pairs = names_of(PLAN_OR_START, measured)
    return {f"{one}, {other}": less(measured[other], measured[one]) for one, other in pairs}


def over_seeds(seeds: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The lowest, mean and highest of each arm's figures over the seeds; None for a ratio that one never reached."""
    found: dict[str, Any] = {}
    every = [seed["summary"] for seed in seeds]
    for name in every[0]:
        for figure in ("kl", "token_ratio"):
            values = [arms[name][figure] for arms in every]
            spread = None if None in values else [min(values), sum(values) / len(values), max(values)]
            found.setdefault(name, {})[figure] = spread
    return found


def study(given: argparse.Namespace, scale: Scale, arms: list[Arm]) -> dict[str, Any]:
    """Measure every arm with every seed."""
    base = load(given.model, device=given.device)
    run = Study(base, given.teacher, given.data, scale, given.folder, given.end)
    of_base = run.ask(base, "base")
    seeds = {}
    for seed in scale.seeds:
        measured = {arm.name: run.measure(arm, seed) for arm in arms}
        pairs = [("base", name) for name in measured]
        pairs += names_of(COMPARED, measured)
        folders = {"base": "base"} | {name: f"{file_name(name)}-{seed}" for name in measured}
        seeds[str(seed)] = {
            "arms": measured,
            "summary": summary(measured),
            "kl_differences": kl_differences(measured),
            "on_tasks": {f"{one}, {other}": run.on_tasks(folders[one], folders[other]) for one, other in pairs},
            "overlap": run.overlap(seed),
        }
    return {
        "of": "smoke" if given.smoke else "cpu" if given.cpu else "full",
        "model": given.model,
        "teacher": given.teacher,
        "model_fingerprint": base.fingerprint,
        "attention_layers": len(base.anatomy.attention_layers),
        "scale": asdict(scale),
        "geometry": GEOMETRY.model_dump(mode="json"),
        "base": of_base,
        "seeds": seeds,
        "over_seeds": over_seeds(seeds.values()),
        "versions": versions(),
        "machine": machine(),
    }


def figure(result: dict[str, Any]) -> str:
    """The curves of claim (b) and of the uniform plan with fitted blocks, as an SVG file of its own."""
    title = f"{result['scale']['budget']} of {result['attention_layers']} attention layers replaced, then distilled"
    arms = result["seeds"][str(result["scale"]["seeds"][0])]["arms"]
    return f"{drawing({arm.name: arms[arm.name] for arm in CPU_ARMS if arm.name in arms}, title)}\n"


def main() -> None:
    """Run a slice, and write the result when all is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    small = parser.add_mutually_exclusive_group()
    small.add_argument("--smoke", action="store_true", help="SmolLM2-135M, two arms, a few steps, generated data")
    small.add_argument("--cpu", action="store_true", help="SmolLM2-135M, claim (b) with one seed")
    parser.add_argument("--model", help="the base; default smollm2-135m with --smoke and --cpu")
    parser.add_argument("--teacher", help="the larger teacher of claim (c), with the same tokenizer")
    parser.add_argument("--data", type=Path, help="folder with gsm8k, cruxeval and svamp")
    parser.add_argument("--ablations", action="store_true", help="the ablations too; not with --smoke or --cpu")
    parser.add_argument("--minutes", type=float, help="end after so long, with exit code 75 if something is left")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the work is kept; default runs/claims-NAME")
    parser.add_argument("--out", type=Path, help="the result; default benchmarks/results/claims-NAME.json")
    given = parser.parse_args()
    if given.model is None:
        if not (given.smoke or given.cpu):
            parser.error("--model is needed, or --cpu, or --smoke")
        given.model = "smollm2-135m"
    if not given.smoke and given.data is None:
        parser.error("--data is needed, or --smoke")
    if given.ablations and (given.smoke or given.cpu):
        parser.error("--ablations is for the full run, without --smoke and --cpu")
    scale = SMOKE if given.smoke else CPU if given.cpu else FULL
    if given.cpu and times_as_slow(torch.bfloat16) < 1:
        scale = replace(scale, precision="bfloat16")
    name = "smoke" if given.smoke else Path(given.model).stem.lower()
    given.folder = given.folder or ROOT / "runs" / f"claims-{name}"
    seed_everything(scale.seeds[0], given.threads)
    given.end = time.monotonic() + 60 * given.minutes if given.minutes else math.inf
    if given.minutes:
        clock = threading.Timer(60 * given.minutes, os.kill, (os.getpid(), signal.SIGINT))
        clock.daemon = True
        clock.start()
    try:
        result = study(given, scale, _arms(given))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(UNFINISHED)
    out = given.out or ROOT / "benchmarks" / "results" / f"claims-{name}.json"
    write_json(out, result)
    if not given.smoke:
        write_text(out.with_suffix(".svg"), figure(result))
    for seed, found in result["seeds"].items():
        for name, arm in found["summary"].items():
            before, (low, high), ratio = (
                found["arms"][name]["evaluations"][0]["kl"],
                arm["interval"],
                arm["token_ratio"],
            )
            shown = "" if ratio is None else f"; tokens to the baseline {ratio:.3f} of its own"
            print(
                f"seed {seed}, {name}: KL {before:.3f} before, {arm['kl']:.3f} ({low:.3f} to {high:.3f}) after{shown}"
            )


if __name__ == "__main__":
    main()
