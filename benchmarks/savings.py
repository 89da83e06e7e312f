"""Cache, speed and peak memory of SmolLM2-135M and of hybrids in transformers, over context length and batch size.

    python benchmarks/savings.py [--replaced 10 20] [--batch-sizes 1 8] [--contexts 512 1024 2048] [--repeats 5]

The replacing blocks are random: how well they are fitted does not matter here, so drafts, whose acceptance it would
decide, are left out. The result goes to benchmarks/results/savings.json, by hybrid, batch size and context.
"""

import tempfile
from pathlib import Path

from rich.console import Console

from common.replaced import ORDER
from common.result import RESULTS, add_part, options
from radistill import convert, load
from radistill.evaluation.savings.measure import SavingsSettings, measure_savings
from radistill.report.savings import savings_tables


def main() -> None:
    """Measure each hybrid at each batch size and context, and add the figures to the result."""
    given = options(
        __doc__,
        replaced=[10, 20],
        batch_sizes=[1, 8],
        contexts=[512, 1024, 2048],
        repeats=5,
        threads=2,
        device="cpu",
    )
    base = load("smollm2-135m", device=given.device)
    for count in given.replaced:
        hybrid = convert(base, sorted(ORDER[:count]), init="random")
        for batch in given.batch_sizes:
            for context in given.contexts:
                settings = SavingsSettings((context,), batch, repeats=given.repeats, draft_length=None)
                with tempfile.TemporaryDirectory() as place:
                    found = measure_savings(base, hybrid, settings, Path(place) / "savings.json")
                Console(highlight=False).print(savings_tables(found))
                add_part("savings", f"{count} of 30 replaced", {f"batch {batch}, {context} tokens": found})
    print(RESULTS / "savings.json")


if __name__ == "__main__":
    main()
