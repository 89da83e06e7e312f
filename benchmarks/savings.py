"""Cache, speed and peak memory of SmolLM2-135M and of a hybrid of it, over context length.

    python benchmarks/savings.py [--contexts 512 1024 2048] [--device cpu]

Ten of thirty attention layers are replaced by random blocks: how well they are fitted does not matter here, so drafts,
whose acceptance it would decide, are left out. Result: benchmarks/results/savings.json.
"""

import argparse
from pathlib import Path

from rich.console import Console

from radistill import convert, load
from radistill.evaluation.savings.measure import SavingsSettings, measure_savings
from radistill.provenance import seed_everything
from radistill.report.savings_table import savings_tables

RESULT = Path(__file__).parent / "results" / "savings.json"
REPLACED = [3, 6, 7, 11, 14, 18, 22, 25, 28, 29]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    seed_everything(0)
    base = load("smollm2-135m", device=arguments.device)
    hybrid = convert(base, REPLACED, init="random")
    RESULT.unlink(missing_ok=True)  # a benchmark measures anew
    settings = SavingsSettings(contexts=tuple(arguments.contexts), repeats=5, draft_length=None)
    Console(highlight=False).print(savings_tables(measure_savings(base, hybrid, settings, RESULT)))


if __name__ == "__main__":
    main()
