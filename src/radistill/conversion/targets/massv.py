"""The target `massv`: a drafter that sees, the teacher's class with a small language model in it (arXiv 2505.10526).

The recipe's model gives the language model, its teacher, which is what is drafted for, the rest: see
`conversion.seeing`. No layer goes, and the only new block is the connector between the two.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

from transformers import PreTrainedConfig, PreTrainedModel

from radistill.conversion.targets.interface import Target, TargetSettings
from radistill.models.anatomy import Component
from radistill.models.loading import Model


class MassvSettings(TargetSettings):
    """The teacher's class, which reads images, with the model as its language model; nothing can be set."""

    kind: Literal["massv"] = "massv"


class Massv(Target):
    """See `Target` for what each member promises; what `build` gives is the language model alone, as it is."""

    settings = MassvSettings
    model_types = ()
    goes: ClassVar[tuple[Component, ...]] = (Component.ATTENTION, Component.MLP)
    keeps = 1
    keeps_because = "a model has at least one layer"

    def check(self, config: PreTrainedConfig) -> list[str]:
        """Any language model may do; `seeing_config` compares it with the teacher's."""
        return []

    def build(
        self, model: Model, replace: Sequence[int], settings: TargetSettings, *, share: bool = False
    ) -> PreTrainedModel:
        """The language model, from which no layer goes."""
        assert not replace  # the recipe is checked for it
        return model.network if share else copy.deepcopy(model.network)
