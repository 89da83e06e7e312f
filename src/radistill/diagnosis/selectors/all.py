"""Every selector on one problem, at an equal budget."""

from typing import Literal

from pydantic import BaseModel

from radistill.diagnosis.plan import By
from radistill.diagnosis.selectors.base import Selector
from radistill.diagnosis.selectors.bayes import Bayes
from radistill.diagnosis.selectors.block_influence import BlockInfluence
from radistill.diagnosis.selectors.gates import Gates
from radistill.diagnosis.selectors.greedy import Greedy
from radistill.diagnosis.selectors.kl_guided import KLGuided
from radistill.diagnosis.selectors.leave_one_out import LeaveOneOut
from radistill.diagnosis.selectors.uniform import Uniform

EQUAL_PASSES = 60
"""What each selector may spend where nothing else is said, in passes over the calibration documents."""


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
