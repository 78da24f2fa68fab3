"""Sweeps: a process for each run."""
