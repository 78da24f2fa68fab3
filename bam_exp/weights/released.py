"""The names in the authors' published checkpoints, for weights of `attention=bam_released`."""

from collections.abc import Mapping

from torch import Tensor

RELEASED_NAMES = {
    "channel_att.gate_c.gate_c_fc_0.": "channel.fc0.",
    "channel_att.gate_c.gate_c_bn_1.": "channel.bn0.",
    "channel_att.gate_c.gate_c_fc_final.": "channel.fc1.",
    "spatial_att.gate_s.gate_s_conv_reduce0.": "spatial.conv0.",
    "spatial_att.gate_s.gate_s_bn_reduce0.": "spatial.bn0.",
    "spatial_att.gate_s.gate_s_conv_di_0.": "spatial.conv1.",
    "spatial_att.gate_s.gate_s_bn_di_0.": "spatial.bn1.",
    "spatial_att.gate_s.gate_s_conv_di_1.": "spatial.conv2.",
    "spatial_att.gate_s.gate_s_bn_di_1.": "spatial.bn2.",
    "spatial_att.gate_s.gate_s_conv_final.": "spatial.conv3.",
}
"""Prefixes of layer names: in the authors' BAM (MODELS/bam.py of Jongchan/attention-module), and in BAM(norm="released")."""


def from_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the authors' names of BAM's layers to BAM's own.

    The state dict may be that of one BAM or of a whole network. What precedes the name of a layer ("module.bam1.") is kept,
    and so are all other keys.
    """
    renamed = {}
    for key, value in state_dict.items():
        prefix = next((name for name in RELEASED_NAMES if name in key), None)
        renamed[key.replace(prefix, RELEASED_NAMES[prefix]) if prefix else key] = value
    return renamed
