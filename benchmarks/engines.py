"""Base and hybrids in llama.cpp, over context length: prefill, decoding, cache.

    python benchmarks/engines.py [--replaced 10 20] [--contexts 512 2048 8000] [--dtype q8_0] [--repeats 3]

SmolLM2-135M beside hybrids of it whose new blocks are random: how well they are fitted does not matter to their speed.
Each pair goes through `radistill savings --engine llama.cpp`, in turns. The result is written to
benchmarks/results/engines.json, hybrid by hybrid; contexts beyond the model's own are timed too.
"""

import tempfile
from pathlib import Path

import torch
from rich.console import Console

from common.result import RESULTS, add_part, options
from radistill import convert, load
from radistill.evaluation.savings.measure import SavingsSettings, measure_savings
from radistill.export.engines.llama_cpp import LlamaCppEngine
from radistill.report.savings import crossover
from radistill.report.savings_table import savings_tables

ORDER = (3, 6, 7, 11, 14, 18, 22, 25, 28, 29, 1, 4, 9, 12, 16, 19, 21, 24, 26, 27)
"""In which layers are replaced."""


def main() -> None:
    """Measure each hybrid, and add it to the result."""
    given = options(
        __doc__,
        replaced=[10, 20],
        contexts=[512, 2048, 8000],
        dtype="q8_0",
        decode_tokens=32,
        repeats=3,
        threads=2,
        seed=0,
    )
    torch.set_num_threads(given.threads)
    base = load("smollm2-135m")
    settings = SavingsSettings(
        contexts=tuple(given.contexts),
        decode_tokens=given.decode_tokens,
        repeats=given.repeats,
        draft_length=None,
        beyond_context=True,
    )
    for count in given.replaced:
        hybrid = convert(base, sorted(ORDER[:count]), init="random", seed=given.seed)
        with tempfile.TemporaryDirectory() as place:
            engine = LlamaCppEngine(given.dtype, Path(place))
            found = measure_savings(base, hybrid, settings, Path(place) / "savings.json", engine)
        Console(highlight=False).print(savings_tables(found))
        add_part("engines", "llama.cpp", {f"{count} of 30 replaced": found | {"crossover": crossover(found)}})
    print(RESULTS / "engines.json")


if __name__ == "__main__":
    main()
