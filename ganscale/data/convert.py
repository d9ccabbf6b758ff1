"""The one rule by which an image of any size and mode becomes uint8 ``[C, H, W]``; ``Conversion.policy`` states it.

Only bytes come in and only arrays go out, so that a folder and a zip of the same files give the same tensors.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ganscale.config import DataConfig
from ganscale.errors import ConfigError

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20  # below Pillow's own warning bound; as RGBA one such image takes 256 MiB while it is decoded
ENLARGED = 4.0
EXTREME_ASPECT = 8.0

# Formats that are recognised by their content. Left out on purpose: EPS (runs another program), formats without a magic
# number (would accept noise), and scientific containers.
_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
_WHITE = (255, 255, 255)
_DEEP_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class BadImage(Exception):
    """A file that cannot be used as an image; the message is the reason that the quarantine list shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a decoded file was like before conversion; ``width`` and ``height`` are after the EXIF rotation."""

    mode: str
    width: int
    height: int
    frames: int
    rotated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """Target height and width, channels, and the way to fit other shapes."""

    height: int
    width: int
    channels: int
    fit: Literal["crop", "pad", "stretch"]

    def __post_init__(self) -> None:
        if self.channels == 2:
            raise ConfigError(
                "data.channels",
                "be 1, 3 or 4 for images",
                2,
                "use --set data.channels=1 (2 is for points of the plane)",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every converted image."""
        return self.channels, self.height, self.width

    @property
    def policy(self) -> str:
        """The rule in words; part of the fingerprint."""
        fit = {
            "crop": "scaled to cover, centre crop",
            "pad": "scaled to fit inside, centred on white",
            "stretch": "stretched, aspect not kept",
        }[self.fit]
        channels = {
            1: "alpha composited on white, gray by ITU-R 601 luma",
            3: "alpha composited on white, gray repeated to RGB",
            4: "RGBA, alpha kept, opaque where there is none",
        }[self.channels]
        return (
            f"{self.height}x{self.width} (height x width), {self.fit}: {fit}; resizer: Pillow bicubic, antialiased; "
            f"{channels}; EXIF rotation applied; first frame of an animation; 16-bit gray scaled to 8 bit"
        )

    def decode(self, content: bytes) -> tuple[np.ndarray, ImageFacts]:
        """Return uint8 ``[C, H, W]`` and the facts of the file with these bytes; raises ``BadImage``."""
        image, facts = _open(content)
        try:
            return self._planes(self._fit(self._channels(image))), facts
        except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged files
            raise BadImage(f"cannot be converted: {_short(error)}") from error

    def scale(self, *, height: int, width: int) -> float:
        """By how much an image of this size is enlarged (above 1) or reduced, on the more enlarged axis."""
        vertical, horizontal = self.height / height, self.width / width
        return min(vertical, horizontal) if self.fit == "pad" else max(vertical, horizontal)

    def gray_arrays(self, images_NHW: np.ndarray) -> np.ndarray:
        """Convert gray uint8 ``[N, H, W]`` arrays to ``[N, C, H, W]`` by the same rule as files."""
        if images_NHW.shape[1:] != (self.height, self.width):
            images_NHW = np.stack([np.asarray(self._fit(Image.fromarray(image))) for image in images_NHW])
        planes = np.repeat(images_NHW[:, None], self.channels, axis=1)
        if self.channels == 4:
            planes[:, 3] = 255
        return np.ascontiguousarray(planes)

    def _channels(self, image: Image.Image) -> Image.Image:
        if image.mode in _DEEP_GRAY:
            image = _narrow(image)
        elif image.mode == "F":
            raise BadImage("floating-point pixels have no stated range")
        alpha = image.has_transparency_data
        if self.channels == 4:
            return image.convert("RGBA")
        if alpha:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*_WHITE, 255)), image)
        elif image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        return image.convert("L" if self.channels == 1 else "RGB")

    def _fit(self, image: Image.Image) -> Image.Image:
        size = (self.width, self.height)
        if image.size == size:
            return image
        if self.fit == "stretch":
            return image.resize(size, Image.Resampling.BICUBIC)
        if self.fit == "crop":
            scale = max(self.width / image.width, self.height / image.height)
            crop_width = min(self.width / scale, image.width)
            crop_height = min(self.height / scale, image.height)
            left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
            box = (left, top, min(left + crop_width, image.width), min(top + crop_height, image.height))
            return image.resize(size, Image.Resampling.BICUBIC, box=box)
        scale = min(self.width / image.width, self.height / image.height)
        inner = (
            min(max(1, round(image.width * scale)), self.width),
            min(max(1, round(image.height * scale)), self.height),
        )
        canvas = Image.new(image.mode, size, {"L": 255, "RGB": _WHITE, "RGBA": (*_WHITE, 0)}[image.mode])
        corner = (self.width - inner[0]) // 2, (self.height - inner[1]) // 2
        canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), corner)
        return canvas

    @staticmethod
    def _planes(image: Image.Image) -> np.ndarray:
        array = np.asarray(image)
        return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def conversion_of(config: DataConfig) -> Conversion:
    """Return the conversion that a configuration asks for; raises ``ConfigError`` for channels that images lack."""
    height, width = config.resolution
    return Conversion(height=height, width=width, channels=config.channels, fit=config.fit)


def _open(content: bytes) -> tuple[Image.Image, ImageFacts]:
    if not content:
        raise BadImage("empty file")
    try:
        image = Image.open(io.BytesIO(content), formats=_known_formats())
    except Image.UnidentifiedImageError:
        raise BadImage("not an image of a known format") from None
    except Exception as error:  # as above: any type, from any plugin
        raise BadImage(f"cannot be opened: {_short(error)}") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height} pixels is more than the bound of {MAX_PIXELS}")
    try:
        mode, frames = image.mode, getattr(image, "n_frames", 1)
        image.load()
        orientation = image.getexif().get(0x0112, 1)
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # as above
        raise BadImage(f"cannot be decoded: {_short(error)}") from error
    facts = ImageFacts(
        mode=mode, width=upright.width, height=upright.height, frames=frames, rotated=orientation in range(2, 9)
    )
    return upright, facts


def _narrow(image: Image.Image) -> Image.Image:
    """16-bit gray to 8-bit gray, 65535 to 255."""
    deep = np.asarray(image).astype(np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise BadImage("32-bit pixels beyond 0..65535 have no stated range")
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def _short(error: Exception) -> str:
    """One line without addresses, the same for the same bytes."""
    if isinstance(error, BadImage):
        return str(error)
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__} {text}".strip()[:160]


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
