"""Runs: their names, folders, locks, results and the store of finished runs."""

from bam_exp.runs.folder import is_done, result_of
from bam_exp.runs.rows import run_of
from bam_exp.runs.run import SCHEMA, Run, superseded

__all__ = ["SCHEMA", "Run", "is_done", "result_of", "run_of", "superseded"]
