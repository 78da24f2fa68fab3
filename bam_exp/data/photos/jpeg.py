"""The decoder of JPEG files: torchvision's, or torchcodec's where a torchvision has none.

torchvision's are deprecated since 0.29 in favour of torchcodec. Both give PIL's pixels (docs/performance.md), except that
torchcodec turns a photo by the orientation in its EXIF data, which PIL and torchvision do not.
"""

from collections.abc import Callable
from functools import cache

from torch import Tensor

_HEAD = 1 << 16
"""Bytes at the beginning of a file in which its EXIF data stand."""


@cache
def jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """The function from the bytes of a JPEG file, uint8 N, to its pixels, uint8 3 x H x W; None if nothing but PIL decodes.

    It raises RuntimeError for a file that only PIL may decode.
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, which other data sets need not wait for
    except ImportError:
        pass
    else:
        return lambda content: decode_jpeg(content, mode=ImageReadMode.RGB)
    try:
        from torchcodec.decoders import decode_jpeg as decode
    except (ImportError, OSError, RuntimeError):  # it raises the last two where its libraries do not load
        return None

    def decode_unturned(content: Tensor) -> Tensor:
        if b"Exif\0" in content[:_HEAD].numpy().tobytes():
            raise RuntimeError("this file may have an orientation")
        pixels: Tensor = decode(content, mode="RGB")
        return pixels

    return decode_unturned
