"""`python -m bam_exp.bench`."""

from bam_exp.bench import main

main()
