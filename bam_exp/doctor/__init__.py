"""What `bam-doctor` looks at: versions, the machine and data, and, with `--gpu`, whether training on its GPU holds what it should.

A core install is enough for it, so nothing here needs the extra `train` before it is known to be installed.
"""
