"""Attention modules, which map N x C x H x W to the same shape, and `attach`, which puts them into any network.

Configs and the fingerprints of stored runs name `bam_exp.attention.<class>`, so these names never change.
"""

from bam_exp.attention.attach import Attached, attach, attached, detach
from bam_exp.attention.bam import BAM, AttentionMaps
from bam_exp.attention.cbam import CBAM
from bam_exp.attention.conv_block import ConvBlock
from bam_exp.attention.eca import ECA
from bam_exp.attention.se import SE

__all__ = ["BAM", "CBAM", "ECA", "SE", "Attached", "AttentionMaps", "ConvBlock", "attach", "attached", "detach"]
