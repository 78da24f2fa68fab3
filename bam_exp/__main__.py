"""`python -m bam_exp` is `bam-train`."""

from bam_exp.entry import train

if __name__ == "__main__":
    train()
