"""The report: one self-contained HTML page, and tables for the terminal, from the files of a run folder."""
