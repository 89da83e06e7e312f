"""Evenly spaced layers, starting with the first: the baseline (Mamba-in-the-Llama, arXiv 2408.15237)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from radistill.diagnosis.selectors.base import Problem, Selection


class Uniform(BaseModel):
    """Every n-th attention layer, whatever the model; for half of the layers these are 0, 2, 4, …"""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["uniform"] = "uniform"

    def most_passes(self, candidates: int, budget: int) -> int:
        """It looks at no data."""
        return 0

    def select(self, problem: Problem) -> Selection:
        """Choose evenly spaced candidates."""
        count = len(problem.candidates)
        return Selection([problem.candidates[index * count // problem.budget] for index in range(problem.budget)])
