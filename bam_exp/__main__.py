"""`python -m bam_exp` is `bam-train`."""

from bam_exp.commands.train import main

if __name__ == "__main__":
    main()
