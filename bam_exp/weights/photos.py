"""A user's own photos as inputs of a network."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bam_exp.errors import DataError
from bam_exp.weights.metadata import Preprocessing


def read_photos(paths: Iterable[str | Path], preprocessing: Preprocessing) -> Tensor:
    """Read photos as the test set's are read: resized, cropped to the central square and normalised.

    Photos in any format that PIL reads, upright as their EXIF data says.

    Returns:
        float32 N x 3 x size x size.

    Raises:
        DataError: naming the first file that is not a photo.
    """
    return torch.stack([_read(Path(path), preprocessing) for path in paths])


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, upright as its EXIF data says; grey values of 16 bits are scaled, which PIL would cut off at 255.

    Raises:
        ValueError: if its pixels are not of 8 or 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((grey // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    return image.convert("RGB")


def _read(path: Path, to: Preprocessing) -> Tensor:
    from torchvision.transforms.v2 import functional  # takes a second

    try:
        with Image.open(path) as file:
            photo = upright_rgb(file)
    except MemoryError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'not a photo that can be decoded'}") from error
    except Exception as error:  # A decoder that is given garbage may raise anything.
        raise DataError(f"{path}: not a photo that can be decoded ({error})") from error
    square = functional.center_crop(functional.resize(photo, [to.resize]), [to.size])
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (to.mean, to.std))
    return pixels.mul_(1 / 255).sub_(mean).div_(std)
