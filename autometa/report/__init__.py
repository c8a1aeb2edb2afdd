"""The report of a fitted model: one self-contained page on what was chosen and why."""

from autometa.report.data_summary import DataSummary, Problem, find_problems, summarise
from autometa.report.facts import json_rows, run_record
from autometa.report.page import render, write_report

__all__ = ["DataSummary", "Problem", "find_problems", "json_rows", "render", "run_record", "summarise", "write_report"]
