"""Selectors: ways to choose the attention layers that a model can do without. One file each."""

from typing import Annotated, get_args

from pydantic import Field

from radistill.diagnosis.selectors.all import All as All
from radistill.diagnosis.selectors.bayes import Bayes
from radistill.diagnosis.selectors.block_influence import BlockInfluence
from radistill.diagnosis.selectors.curve import Curve as Curve
from radistill.diagnosis.selectors.gates import Gates
from radistill.diagnosis.selectors.greedy import Greedy as Greedy
from radistill.diagnosis.selectors.kl_guided import KLGuided
from radistill.diagnosis.selectors.leave_one_out import LeaveOneOut
from radistill.diagnosis.selectors.uniform import Uniform

_Kinds = All | Bayes | BlockInfluence | Curve | Gates | Greedy | KLGuided | LeaveOneOut | Uniform
SelectorSettings = Annotated[_Kinds, Field(discriminator="kind")]

SELECTORS: dict[str, type[_Kinds]] = {kind.model_fields["kind"].default: kind for kind in get_args(_Kinds)}
