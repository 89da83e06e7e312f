"""Training, calibration and held-out data: sources, the teacher's responses, tokens."""

from radistill.data.examples import Example
from radistill.data.prepare import load_data, prepare
from radistill.data.records import DataSplits, Record
from radistill.data.settings import DataSettings, ResponseSettings
from radistill.data.sources import draw

__all__ = [
    "DataSettings",
    "DataSplits",
    "Example",
    "Record",
    "ResponseSettings",
    "draw",
    "load_data",
    "prepare",
]
