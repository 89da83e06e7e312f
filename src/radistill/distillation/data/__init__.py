"""Training, calibration and held-out data: sources, the teacher's responses, tokens."""

from radistill.distillation.data.examples import Example
from radistill.distillation.data.prepare import load_data, prepare
from radistill.distillation.data.records import DataSplits, Record, hash_documents
from radistill.distillation.data.settings import DataSettings, ResponseSettings
from radistill.distillation.data.sources import draw

__all__ = [
    "DataSettings",
    "DataSplits",
    "Example",
    "Record",
    "ResponseSettings",
    "draw",
    "hash_documents",
    "load_data",
    "prepare",
]
