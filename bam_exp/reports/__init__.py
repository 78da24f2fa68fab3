"""What is made from finished runs: tables, parameter counts, plans."""
