"""Selectors: ways to choose the attention layers that a model can do without. One file each."""

from typing import Annotated

from pydantic import Field

from radistill.diagnosis.selectors.all import EQUAL_PASSES, All
from radistill.diagnosis.selectors.base import Problem, Selection, Selector
from radistill.diagnosis.selectors.bayes import Bayes
from radistill.diagnosis.selectors.block_influence import BlockInfluence
from radistill.diagnosis.selectors.gates import Gates
from radistill.diagnosis.selectors.greedy import Greedy
from radistill.diagnosis.selectors.kl_guided import KLGuided
from radistill.diagnosis.selectors.leave_one_out import LeaveOneOut
from radistill.diagnosis.selectors.uniform import Uniform

SelectorSettings = Annotated[
    All | Bayes | BlockInfluence | Gates | Greedy | KLGuided | LeaveOneOut | Uniform, Field(discriminator="kind")
]

SELECTORS: dict[str, type[SelectorSettings]] = {
    "all": All,
    "bayes": Bayes,
    "block-influence": BlockInfluence,
    "gates": Gates,
    "greedy": Greedy,
    "kl-guided": KLGuided,
    "leave-one-out": LeaveOneOut,
    "uniform": Uniform,
}

__all__ = [
    "EQUAL_PASSES",
    "SELECTORS",
    "All",
    "Bayes",
    "BlockInfluence",
    "Gates",
    "Greedy",
    "KLGuided",
    "LeaveOneOut",
    "Problem",
    "Selection",
    "Selector",
    "SelectorSettings",
    "Uniform",
]
