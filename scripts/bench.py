"""`bam-bench` from a checkout: python scripts/bench.py module"""

from bam_exp.bench import main

main()
