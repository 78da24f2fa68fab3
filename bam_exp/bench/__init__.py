"""`bam-bench`: the cost of a step, of BAM, of the input, of an epoch and of a packed machine, beside the machine's limits.

What each figure means and how it is measured: docs/performance.md.
"""
