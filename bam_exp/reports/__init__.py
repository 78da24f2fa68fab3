"""Reports from finished runs: tables, parameter counts, plans, states."""

FORMATS = ("md", "csv", "tex", "html", "plots")
"""The formats in which a report is written."""
