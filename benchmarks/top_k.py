"""How much of the KL is left where a teacher's k largest probabilities and the sum of the others are known.

    python benchmarks/top_k.py [RUN]

Compares the hybrid of a run (the quick start's, unless another is named) with its base on the run's held-out documents,
before any training (`start/`) and after it (`student/`), and writes mean KLs in nats per response token to
benchmarks/results/top_k.json.
"""

from collections import defaultdict
from pathlib import Path

import torch

from common.result import ROOT, parser_of, write_result
from radistill.data.records import DataSplits
from radistill.distillation.losses.top_k import over_categories, top_k_of
from radistill.models.divergence import forward_kl
from radistill.models.loading import load
from radistill.models.logits import response_states
from radistill.models.sequences import batches, collate
from radistill.runs.recipe import load_recipe

SIZES = (1, 4, 16, 64, 256, 1024)
EVERYTHING = slice(None)


@torch.no_grad()
def main() -> None:
    """Measure a run and write the figures."""
    parser = parser_of(__doc__, tokens_per_batch=1024)
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "quickstart", help="a finished run")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.run / "recipe.yaml")
    base = load(recipe.model)
    hybrids = {name: load(arguments.run / name) for name in ("start", "student")}
    documents = DataSplits.load(arguments.run / "data").documents("heldout")
    sums: defaultdict[str, float] = defaultdict(float)
    tokens = 0
    for group in batches(documents, arguments.tokens_per_batch):
        batch = collate(group, base.pad_token_id)
        teacher = response_states(base.network, batch).logits(EVERYTHING)
        known = {k: top_k_of(teacher, k) for k in SIZES}
        tokens += len(teacher)
        for k, top in known.items():
            sums[f"tail_{k}"] += top.tail.exp().double().sum().item()
        for name, hybrid in hybrids.items():
            student = response_states(hybrid.network, batch).logits(EVERYTHING)
            sums[f"{name}_full"] += forward_kl(teacher, student).double().sum().item()
            for k, top in known.items():
                sums[f"{name}_{k}"] += over_categories(forward_kl)(top, student).double().sum().item()
    mean = {name: value / tokens for name, value in sums.items()}
    about = {"documents": len(documents), "response_tokens": tokens, "recipe": recipe.model_dump(mode="json")}
    write_result("top_k", model=recipe.model, mean=mean, **about)
    for name, value in mean.items():
        print(f"{name:>16} {value:.4f}")


if __name__ == "__main__":
    main()
