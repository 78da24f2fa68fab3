"""Compose and validate configs; the signatures of callables are the schema."""
