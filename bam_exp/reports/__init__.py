"""What is made from finished runs: tables, parameter counts, plans."""

FORMATS = ("md", "csv", "tex", "html", "plots")
"""The formats in which a report is written."""
