"""Runs: their names, folders, locks and results."""
