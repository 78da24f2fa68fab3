"""The pixels of a photo stay when torchvision's decoders go: torchcodec's and PIL's are the same, whatever its EXIF data say."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bam_exp.data.photos.crops import decoded
from bam_exp.data.photos.jpeg import jpeg_decoder
from bam_exp.data.photos.nvjpeg import nvjpeg_works


@pytest.fixture
def no_torchvision_decoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "torchvision.io", ModuleType("torchvision.io"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    jpeg_decoder.cache_clear()
    yield
    jpeg_decoder.cache_clear()


def photo(mode: str = "RGB", orientation: int | None = None) -> np.ndarray:
    """The bytes of a smooth photo of 40 x 60 pixels."""
    corners = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    data: dict[str, Image.Exif] = {}
    if orientation is not None:
        data["exif"] = Image.Exif()
        data["exif"][0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(corners).resize((60, 40), Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG", **data)
    return np.frombuffer(file.getvalue(), dtype=np.uint8).copy()


FILES = [photo(), photo("L"), photo("CMYK"), photo(orientation=6)]


def test_torchvision_decodes_while_it_does() -> None:
    from torchvision.io import ImageReadMode, decode_jpeg

    for content in FILES[:2]:
        assert torch.equal(decoded(content, Path()), decode_jpeg(torch.from_numpy(content), mode=ImageReadMode.RGB))


def test_pil_decodes_where_nothing_else_does(request: pytest.FixtureRequest) -> None:
    before = [decoded(content, Path()) for content in FILES]
    request.getfixturevalue("no_torchvision_decoders")
    assert jpeg_decoder() is None
    for content, pixels in zip(FILES, before, strict=True):
        assert torch.equal(decoded(content, Path()), pixels)


def test_torchcodec_decodes_what_it_does_not_turn(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = [decoded(content, Path()) for content in FILES], []
    request.getfixturevalue("no_torchvision_decoders")
    codec = ModuleType("torchcodec.decoders")

    def decode_jpeg(content: Tensor, mode: str) -> Tensor:
        asked.append(content)
        return torch.zeros(3, 40, 60, dtype=torch.uint8)

    codec.decode_jpeg = decode_jpeg  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", codec)
    assert torch.equal(decoded(FILES[3], Path()), before[3])
    assert before[3].shape == (3, 40, 60)
    assert asked == []
    assert not decoded(FILES[0], Path()).any()


def test_torchcodec_gives_the_same_pixels(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("torchcodec.decoders")
    before = [decoded(content, Path()) for content in FILES]
    request.getfixturevalue("no_torchvision_decoders")
    del sys.modules["torchcodec.decoders"]
    assert jpeg_decoder() is not None
    for content, pixels in zip(FILES, before, strict=True):
        assert torch.equal(decoded(content, Path()), pixels)


@pytest.mark.usefixtures("no_torchvision_decoders")
def test_without_decoders_there_is_no_nvjpeg(capsys: pytest.CaptureFixture[str]) -> None:
    assert not nvjpeg_works(torch.device("cuda"))
    assert capsys.readouterr().err.count("\n") == 1
