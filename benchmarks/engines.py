"""Base and hybrids in llama.cpp and vLLM, over context length: prefill, decoding, cache.

    python benchmarks/engines.py [--engines llama.cpp] [--replaced 10 20] [--contexts 512 2048 8192 32768]
        [--batch-size 1] [--repeats 3] [--vllm build/serve/bin/python]

SmolLM2-135M beside hybrids of it whose new blocks are random: how well they are fitted does not matter to their speed.
Each pair goes through `radistill savings --engine`, in turns; llama.cpp reads q8_0, vLLM bfloat16. `make serve-check`
makes an environment with vLLM. Contexts beyond the model's own are timed too. What is measured is kept in runs/engines,
and the result, pair by pair, is benchmarks/results/engines.json, where contexts that this call has not measured stay;
docs/figures/engines.svg shows the ratios in decoding.
"""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from rich.console import Console

from common.figure import drawing, entry, series
from common.replaced import ORDER
from common.result import RESULTS, ROOT, add_part, options
from radistill import convert, load
from radistill.evaluation.savings.measure import Engine, SavingsSettings, measure_savings
from radistill.export.engines.llama_cpp import LlamaCppEngine
from radistill.export.engines.vllm import VllmEngine
from radistill.files import read_json, write_text
from radistill.report.savings import crossover, savings_tables
from radistill.report.svg import Axes, Scale, line, value_scale


def main() -> None:
    """Measure each hybrid, and add it to the result."""
    given = options(
        __doc__,
        engines=["llama.cpp"],
        replaced=[10, 20],
        contexts=[512, 2048, 8192, 32768],
        batch_size=1,
        vllm="build/serve/bin/python",
        decode_tokens=32,
        repeats=3,
        threads=2,
        seed=0,
    )
    torch.set_num_threads(given.threads)
    base = load("smollm2-135m")
    settings = SavingsSettings(
        contexts=tuple(given.contexts),
        batch_size=given.batch_size,
        decode_tokens=given.decode_tokens,
        repeats=given.repeats,
        draft_length=None,
        beyond_context=True,
    )
    # For torchvision beside a CPU build of torch.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "common" / "vllm")
    (ROOT / "runs" / "engines").mkdir(parents=True, exist_ok=True)
    for name in given.engines:
        for count in given.replaced:
            hybrid = convert(base, sorted(ORDER[:count]), init="random", seed=given.seed)
            kept = ROOT / "runs" / "engines" / f"{name}-{count}-{given.batch_size}.json"
            with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
                engine: Engine
                if name == "vllm":
                    engine = VllmEngine("bfloat16", Path(place), stack, given.vllm)
                else:
                    engine = LlamaCppEngine("q8_0", Path(place))
                found = measure_savings(base, hybrid, settings, kept, engine)
            Console(highlight=False).print(savings_tables(found))
            batch = f", {given.batch_size} sequences" * (given.batch_size > 1)
            pair = f"{count} of 30 replaced{batch}"
            earlier = read_json(RESULTS / "engines.json").get(name, {}).get(pair)
            add_part("engines", name, {pair: with_earlier(found, earlier)})
    write_text(ROOT / "docs" / "figures" / "engines.svg", figure(read_json(RESULTS / "engines.json")))
    print(RESULTS / "engines.json")


def with_earlier(found: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """What was found, and the contexts that only an earlier call with the same models has measured.

    Both sides of a ratio are of one machine, which stands in the row where contexts are of several.
    """
    same = ("fingerprints", "dtype", "engine")
    rows = {}
    for one in (earlier, found):
        if one is not None and all(one[key] == found[key] for key in same):
            rows |= {row["context"]: {"machine": one["machine"]} | row for row in one["contexts"]}
    whole = found | {"contexts": [rows[context] for context in sorted(rows)]}
    return whole | {"crossover": crossover(whole)}


def figure(result: dict[str, dict[str, Any]]) -> Markup:
    """How many times as fast as the base each hybrid decodes, over context, engine by engine."""
    width, height = 20 + 470 * len(result), 380
    elements: list[Markup] = []
    rows = [row for hybrids in result.values() for one in hybrids.values() for row in one["contexts"]]
    contexts = sorted({row["context"] for row in rows})
    names = [f"{context:,}" for context in contexts]
    y = value_scale([0, *(end for row in rows for end in row["ratios"]["decode"])], height - 50, 80)
    for place, (_, hybrids) in enumerate(sorted(result.items())):
        left = 60 + place * 470
        x = Scale(0, max(1, len(contexts) - 1), left, left + 370)
        engine, dtype = (next(iter(hybrids.values()))[key] for key in ("engine", "dtype"))
        title = f"{engine.split(' by ')[0]}, {dtype}: decoding, hybrid over base"
        elements += Axes(x, y, "tokens of context", title, range(len(contexts)), y.ticks(5), names).draw()
        elements.append(line(left, y(1), left + 370, y(1), "axis"))
        for number, (name, one) in enumerate(sorted(hybrids.items())):
            style = f"arm-{number}"
            marks = [(x(contexts.index(row["context"])), *map(y, row["ratios"]["decode"])) for row in one["contexts"]]
            elements += series(marks, style, 4)
            elements += entry(left + 30, height - 78 + 18 * number, name, style)
    title = "SmolLM2-135M and hybrids of it, two CPU cores"
    return drawing(title, elements, width, height)


if __name__ == "__main__":
    main()
