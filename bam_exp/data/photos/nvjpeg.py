"""Decoding and cropping on a GPU, by its own JPEG decoder."""

import io
import sys

import torch
from PIL import Image

from bam_exp.data.photos.crops import decoded, random_squares
from bam_exp.data.photos.folder import Photos
from bam_exp.data.photos.workshop import EncodedBatch, PhotoBatch
from bam_exp.errors import DataError


def nvjpeg_works(device: torch.device) -> bool:
    """Whether the device can decode a small JPEG; a GPU that cannot is reported on stderr."""
    if device.type != "cuda":
        return False
    try:
        from torchvision.io import decode_jpeg
    except ImportError:
        print("no nvJPEG (this torchvision has no decoders): photos are decoded on the CPU", file=sys.stderr)
        return False

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode_jpeg([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], device=device)
    except RuntimeError as error:
        print(f"no nvJPEG ({str(error).partition(chr(10))[0]}): photos are decoded on the CPU", file=sys.stderr)
        return False
    return True


def decode_batch(batch: EncodedBatch, photos: Photos, size: int, device: torch.device) -> PhotoBatch:
    """Decode and crop a batch on the device, with nvJPEG if it is a GPU; files that it refuses are decoded on the CPU."""
    from torchvision.io import ImageReadMode, decode_jpeg

    contents, broken = torch.split(batch.content, batch.lengths), list(batch.broken)
    images = {position: photo.to(device) for position, photo in batch.decoded.items()}
    positions = [position for position in range(len(contents)) if position not in images]
    try:
        if positions:
            files = [contents[position] for position in positions]
            images.update(zip(positions, decode_jpeg(files, mode=ImageReadMode.RGB, device=device), strict=True))
    except RuntimeError:  # The decoder does not say which file it refuses.
        for position in positions:
            try:
                path = photos.path(batch.indices[position])
                images[position] = decoded(contents[position].numpy(), path).to(device)
            except DataError as error:
                broken.append(str(error))
    kept = sorted(images)
    labels = torch.from_numpy(photos.labels[[batch.indices[position] for position in kept]])
    if not kept:
        return PhotoBatch(torch.empty((0, 3, size, size), dtype=torch.uint8, device=device), labels, broken)
    crops = [batch.crops[position] for position in kept]
    return PhotoBatch(random_squares([images[position] for position in kept], crops, size), labels, broken)
