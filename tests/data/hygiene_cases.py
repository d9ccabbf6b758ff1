"""Pictures made at test time, among them every case of the hygiene rules."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = 19  # usable files of the fixture folder
BAD = {
    "broken/cut.jpg": "cannot be decoded: OSError image file is truncated",
    "broken/empty.png": "empty file",
    "broken/flipped.png": "cannot be decoded: ",
    "broken/float.tif": "cannot be converted: floating-point pixels",
    "broken/huge.png": "cannot be opened: DecompressionBombError",
    "broken/large.png": "10000 x 10000 pixels is more than the bound",
    "broken/text.png": "not an image of a known format",
    "notes.txt": "not an image of a known format",
}


def solid(mode: str, size: tuple[int, int], color: object) -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, size, color)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of ``image`` as a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def gradient(height: int = 36, width: int = 48, seed: int = 0) -> Image.Image:
    """A colour picture without symmetry, different for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * 5 + seed * 3) % 256, (y * 7 + seed) % 256, (x * y + seed) % 256]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def png_that_claims(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def deep_gray() -> Image.Image:
    """16-bit gray: the left half 65535, the right half 0."""
    deep = np.zeros((28, 28), dtype=np.uint16)
    deep[:, :14] = 65535
    return Image.fromarray(deep)


def sideways() -> bytes:
    """Stored with a black left and a white right half, to be shown turned by 90 degrees clockwise: black on top."""
    image = Image.new("L", (28, 28), 255)
    image.paste(0, (0, 0, 14, 28))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image, "PNG", exif=exif)


def good_files() -> dict[str, bytes]:
    """Usable files of every mode, shape and kind, by relative name."""
    palette = gradient(seed=4).quantize(16)
    palette.info["transparency"] = 3
    frames = [gradient(28, 28, seed=seed) for seed in (5, 90, 180)]
    files = {
        "cats/gray.png": encode(solid("L", (28, 28), 100), "PNG"),
        "cats/gray alpha.png": encode(solid("LA", (28, 28), (0, 0)), "PNG"),
        "cats/palette.png": encode(palette, "PNG", transparency=3),
        "cats/bilevel.png": encode(gradient(seed=2).convert("1"), "PNG"),
        "cats/rgb.jpg": encode(gradient(seed=1), "JPEG"),
        "cats/deeper/rgb.webp": encode(gradient(seed=8), "WEBP"),
        "dogs/copy of gray.png": encode(solid("L", (28, 28), 100), "PNG"),
        "dogs/rgba.png": encode(solid("RGBA", (28, 28), (0, 0, 0, 128)), "PNG"),
        "dogs/cmyk.jpg": encode(solid("CMYK", (30, 30), (0, 0, 0, 255)), "JPEG"),
        "dogs/deep.png": encode(deep_gray(), "PNG"),
        "dogs/sideways.png": sideways(),
        "dogs/animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "dogs/one.png": encode(solid("RGB", (1, 1), (10, 200, 30)), "PNG"),
        "dogs/long.png": encode(gradient(3, 20000, seed=7), "PNG"),
        "dogs/tall.bmp": encode(gradient(90, 30, seed=9), "BMP"),
        "dogs/rgb.tif": encode(gradient(seed=10), "TIFF"),
        "dogs/größe.ppm": encode(gradient(seed=11), "PPM"),
        "loose.png": encode(gradient(seed=12), "PNG"),
        "transparent colour.png": encode(solid("RGB", (28, 28), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    }
    assert len(files) == GOOD
    return files


def bad_files() -> dict[str, bytes]:
    """Files that are to be set aside; ``BAD`` has the beginning of each reason."""
    flipped = bytearray(encode(gradient(seed=3), "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    files = {
        "broken/cut.jpg": encode(gradient(200, 200), "JPEG")[:1500],
        "broken/empty.png": b"",
        "broken/flipped.png": bytes(flipped),
        "broken/float.tif": encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
        "broken/huge.png": png_that_claims(100_000, 100_000),
        "broken/large.png": png_that_claims(10_000, 10_000),
        "broken/text.png": b"this is no picture\n" * 10,
        "notes.txt": b"bought in June\n",
    }
    assert files.keys() == BAD.keys()
    return files


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    """Write files by relative name below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    """Write files into a deflated zip, in reversed order: the order inside an archive means nothing."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, reverse=True):
            archive.writestr(name, files[name])
    return path
