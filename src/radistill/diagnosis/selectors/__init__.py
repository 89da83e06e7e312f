"""Selectors: ways to choose the attention layers that a model can do without. One file each."""

from typing import Annotated

from pydantic import Field

from radistill.diagnosis.selectors.base import Problem, Selection, Selector
from radistill.diagnosis.selectors.bayes import Bayes
from radistill.diagnosis.selectors.uniform import Uniform

SELECTORS: dict[str, type[Bayes] | type[Uniform]] = {"bayes": Bayes, "uniform": Uniform}

SelectorSettings = Annotated[Bayes | Uniform, Field(discriminator="kind")]

__all__ = ["SELECTORS", "Bayes", "Problem", "Selection", "Selector", "SelectorSettings", "Uniform"]
