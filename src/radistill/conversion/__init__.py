"""Conversion: students in a stock architecture, their proof, and how their new blocks start."""

from radistill.conversion.convert import ConversionRecord, ConvertedModel, check_conversion, convert, new_parameters
from radistill.conversion.targets import TARGETS, TargetSettings, target_settings
from radistill.conversion.targets.granite_hybrid import GraniteHybridSettings

__all__ = [
    "TARGETS",
    "ConversionRecord",
    "ConvertedModel",
    "GraniteHybridSettings",
    "TargetSettings",
    "check_conversion",
    "convert",
    "new_parameters",
    "target_settings",
]
