"""The preprocessing contract of images: from the bytes of a file to a float32 tensor."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgetl.errors import ImageError, ModelError
from edgetl.runtime.preprocessing.base import Array, Readable, digest_of_contract, stacked

INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
"""Pillow's filter of every name that a contract may have."""


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """How an encoded image becomes a float32 tensor of shape (3, height, width), RGB.

    Scale to [0, 1], subtract ``mean``, divide by ``std``; each per channel. The EXIF orientation is applied;
    transparency is laid over black; every other colour mode is converted to RGB.
    """

    kind: ClassVar[str] = "image"
    dtype: ClassVar[str] = "float32"

    height: int
    """Of the tensor, in pixels."""
    width: int
    """Of the tensor, in pixels."""
    resize: Literal["crop", "stretch", "pad"] = "crop"
    """crop: scale the shorter side, cut out the centre; stretch: ignore the aspect; pad: keep everything, on black."""
    crop_pct: float = 1.0
    """With crop: the share of the scaled shorter side that is kept."""
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    """Pillow's filter of that name (bicubic and bilinear are antialiased)."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """On the scale 0 to 1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """On the scale 0 to 1."""
    max_pixels: int = 64_000_000
    """An image with more is refused before it is decoded."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ImagePreprocessing:
        """The inverse of :meth:`to_json`.

        Raises:
            ModelError: A field is missing or unknown, or its value is of the wrong kind.
        """
        values = {name: value for name, value in values.items() if name != "kind"}
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ModelError(f"the preprocessing contract has unknown fields: {', '.join(unknown)}")
        try:
            triples: dict[str, Any] = {
                name: tuple(float(number) for number in values[name]) for name in ("mean", "std") if name in values
            }
            contract = cls(**{**values, **triples})
        except (TypeError, ValueError) as error:
            raise ModelError(f"the preprocessing contract cannot be read: {error}") from None
        if contract.interpolation not in INTERPOLATION or contract.resize not in ("crop", "stretch", "pad"):
            raise ModelError(
                f"the preprocessing contract asks for resize '{contract.resize}', interpolation"
                f" '{contract.interpolation}'",
                hint=f"resize is crop, stretch or pad; interpolation is {', '.join(INTERPOLATION)}",
            )
        if len(contract.mean) != 3 or len(contract.std) != 3 or not all(contract.std):
            raise ModelError("the preprocessing contract needs three means and three standard deviations, none zero")
        return contract

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``ImagePreprocessing.from_json(p.to_json()) == p``."""
        return {"kind": self.kind, **json.loads(json.dumps(asdict(self)))}

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest_of_contract(self.to_json())

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, height, width)."""
        return 3, self.height, self.width

    def together(self, samples: Sequence[Array]) -> Array:
        """A batch: float32 (n, 3, height, width)."""
        return stacked(samples)

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """The tensor of a decoded image.

        Args:
            image: From :func:`decode`: mode RGB, any size.

        Returns:
            float32, shape (3, height, width).
        """
        pixels = np.asarray(self.sized(image), dtype=np.float32).transpose(2, 0, 1)
        # One multiply-add per pixel; the constants are float32 so that nothing widens to float64.
        scale = np.float32(1.0) / (np.float32(255.0) * np.asarray(self.std, dtype=np.float32))
        shift = np.asarray(self.mean, dtype=np.float32) / np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(pixels * scale[:, None, None] - shift[:, None, None])

    def __call__(self, raw: Readable | bytes | str) -> NDArray[np.float32]:
        """The tensor of an image: a file or its path, a part of one, or bytes; see :func:`decode` and :meth:`apply`."""
        return self.prepare(self.decode(raw))

    def decode(self, raw: Readable | bytes | str) -> Image.Image:
        """The pixels of an image, as :func:`decode` gives them."""
        return decode(Path(raw) if isinstance(raw, str) else raw, max_pixels=self.max_pixels)

    def prepare(self, decoded: Image.Image) -> NDArray[np.float32]:
        """The tensor of a decoded image; see :meth:`apply`."""
        return self.apply(decoded)

    def sized(self, image: Image.Image) -> Image.Image:
        """The geometry alone: a decoded image at the size of the tensor, still as bytes.

        Args:
            image: From :func:`decode`: mode RGB, any size.

        Returns:
            Mode RGB, ``width`` × ``height``; the image itself where it has that size already.
        """
        filter_ = INTERPOLATION[self.interpolation]
        size = (self.width, self.height)
        if self.resize == "stretch":
            return image if image.size == size else image.resize(size, filter_)
        if self.resize == "pad":
            inner = self._padded(image.width, image.height)
            image = image if image.size == inner else image.resize(inner, filter_)
            around = Image.new("RGB", size)
            around.paste(image, (round((self.width - inner[0]) / 2), round((self.height - inner[1]) / 2)))
            return around
        scaled = self.scaled(image.width, image.height)
        image = image if image.size == scaled else image.resize(scaled, filter_)
        left, top = round((scaled[0] - self.width) / 2), round((scaled[1] - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))

    def _padded(self, width: int, height: int) -> tuple[int, int]:
        """With pad: the size to which an image is scaled, as Pillow's ``ImageOps.pad`` has it.

        A thin image keeps one pixel: Pillow fails there, or, in newer versions, puts out black alone.
        """
        if width * self.height > height * self.width:
            return self.width, max(1, round(height / width * self.width))
        return max(1, round(width / height * self.height)), self.height

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """With crop: the size to which an image of some size is scaled before its centre is cut out.

        Rounded as torchvision's Resize and timm do, so that published weights see the pixels that they were evaluated
        with.

        Returns:
            Width and height, in pixels; neither below the tensor's.
        """
        inner = (int(self.width / self.crop_pct), int(self.height / self.crop_pct))
        if inner[0] * height >= inner[1] * width:
            return inner[0], max(self.height, int(inner[0] * height / width))
        return max(self.width, int(inner[1] * width / height)), inner[1]


def decode(source: Readable | bytes, *, max_pixels: int = 64_000_000) -> Image.Image:
    """Decode an image completely.

    Args:
        source: A file or a part of one, or its bytes.
        max_pixels: An image with more is refused before its pixels are decoded.

    Returns:
        An image in mode RGB, turned as its EXIF orientation says.

    Raises:
        ImageError: Not there, not an image, truncated, or too large; the message names the file.
    """
    name = "the image" if isinstance(source, (bytes, bytearray, memoryview)) else str(source)
    try:
        opened = Image.open(source if isinstance(source, Path) else io.BytesIO(_bytes_of(source)))
        with opened:
            if opened.width * opened.height > max_pixels:
                raise ImageError(
                    f"{name}: {opened.width} × {opened.height} pixels are more than the limit of {max_pixels:,}",
                    hint="scale the image down, or raise data.max_pixels",
                )
            return _rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: this is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: the image has more pixels than the limit of Pillow itself") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{name}: damaged or truncated: {error}") from None


def _bytes_of(source: Readable | bytes) -> bytes:
    return source if isinstance(source, (bytes, bytearray, memoryview)) else source.read_bytes()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow clips these to 0..255 instead of scaling: sixteen-bit photographs would come out white.
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0.0) > 255.0 else 255.0
        return Image.fromarray((values * (255.0 / top)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
