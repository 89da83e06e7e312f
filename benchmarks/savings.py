"""Cache, speed and peak memory of SmolLM2-135M and of a hybrid of it, over context length.

    python benchmarks/savings.py [--contexts 512 1024 2048] [--device cpu]

Ten of thirty attention layers are replaced by random blocks: how well they are fitted does not matter here, so drafts,
whose acceptance it would decide, are left out. Result: benchmarks/results/savings.json.
"""

from rich.console import Console

from common.result import RESULTS, options
from radistill import convert, load
from radistill.evaluation.savings.measure import SavingsSettings, measure_savings
from radistill.report.savings_table import savings_tables

RESULT = RESULTS / "savings.json"
REPLACED = [3, 6, 7, 11, 14, 18, 22, 25, 28, 29]


def main() -> None:
    arguments = options(__doc__, contexts=[512, 1024, 2048], device="cpu")
    base = load("smollm2-135m", device=arguments.device)
    hybrid = convert(base, REPLACED, init="random")
    RESULT.unlink(missing_ok=True)  # a benchmark measures anew
    settings = SavingsSettings(contexts=tuple(arguments.contexts), repeats=5, draft_length=None)
    Console(highlight=False).print(savings_tables(measure_savings(base, hybrid, settings, RESULT)))


if __name__ == "__main__":
    main()
