"""`bam-bench`: what a step, BAM itself, the input, an epoch and a packed machine cost, beside what the machine could do.

What each figure means and how it is measured: docs/performance.md.
"""
