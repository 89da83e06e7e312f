"""Selectors: ways to choose the attention layers that a model can do without. One file each."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, Field

from radistill.diagnosis.plan import By
from radistill.diagnosis.selectors.base import Selector
from radistill.diagnosis.selectors.bayes import Bayes
from radistill.diagnosis.selectors.block_influence import BlockInfluence
from radistill.diagnosis.selectors.curve import Curve as Curve
from radistill.diagnosis.selectors.gates import Gates as Gates
from radistill.diagnosis.selectors.greedy import Greedy as Greedy
from radistill.diagnosis.selectors.kl_guided import KLGuided
from radistill.diagnosis.selectors.leave_one_out import LeaveOneOut
from radistill.diagnosis.selectors.uniform import Uniform

EQUAL_PASSES = 60
"""What each selector of `all` may spend where nothing else is said, in passes over the calibration documents."""


class All(BaseModel, extra="forbid"):
    """All of them, each with the same forward tokens to spend; the best plan is kept and the others are recorded."""

    kind: Literal["all"] = "all"

    def each(self, passes: float, by: By) -> list[Selector]:
        """One selector of each kind that can choose so, set so that a search does not end long before its `passes` are
        spent."""
        selectors = (
            Uniform(),
            BlockInfluence(),
            LeaveOneOut(),
            KLGuided(),
            Gates(steps=max(1, int(passes / 2.5))),
            Bayes(trials=max(1, int(passes))),
            Greedy(),
        )
        return [selector for selector in selectors if selector.obstacle(by) is None]


_Kinds = All | Bayes | BlockInfluence | Curve | Gates | Greedy | KLGuided | LeaveOneOut | Uniform
SelectorSettings = Annotated[_Kinds, Field(discriminator="kind")]

SELECTORS: dict[str, type[_Kinds]] = {kind.model_fields["kind"].default: kind for kind in get_args(_Kinds)}
