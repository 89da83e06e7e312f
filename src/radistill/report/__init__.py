"""The report: one self-contained HTML page, and a table for the terminal, from the files of a run folder."""

from radistill.report.page import write_report
from radistill.report.terminal import evaluation_table

__all__ = ["evaluation_table", "write_report"]
