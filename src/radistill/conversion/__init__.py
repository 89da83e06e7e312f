"""Conversion: students in a stock architecture, their proof, and how their new blocks start."""

from radistill.conversion.convert import ConversionRecord, ConvertedModel, check_conversion, convert, new_parameters
from radistill.conversion.targets import TARGETS, GraniteHybridSettings, TargetSettings, target_settings

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
