"""The experiments of "BAM: Bottleneck Attention Module" (Park, Woo, Lee, Kweon, BMVC 2018)."""

__version__ = "0.1.0"
