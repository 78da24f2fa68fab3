"""Attentions, each a module `kind(channels, **knobs)` from N x C x H x W to the same, and how they are attached."""

from bam_exp.attention.attach import Attached, attach, attached, detach
from bam_exp.attention.bam import BAM, AttentionMaps
from bam_exp.attention.cbam import CBAM
from bam_exp.attention.conv_block import ConvBlock
from bam_exp.attention.eca import ECA
from bam_exp.attention.se import SE

__all__ = ["BAM", "CBAM", "ECA", "SE", "Attached", "AttentionMaps", "ConvBlock", "attach", "attached", "detach"]
