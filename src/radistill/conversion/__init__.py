"""Conversion: students in a stock architecture, their proof, and how their new blocks start."""

from radistill.conversion.convert import ConversionRecord, ConvertedModel, convert, new_parameters
from radistill.conversion.initialisation import INITIALISATIONS
from radistill.conversion.targets import TARGETS, GraniteHybridSettings, TargetSettings, target_settings

__all__ = [
    "INITIALISATIONS",
    "TARGETS",
    "ConversionRecord",
    "ConvertedModel",
    "GraniteHybridSettings",
    "TargetSettings",
    "convert",
    "new_parameters",
    "target_settings",
]
