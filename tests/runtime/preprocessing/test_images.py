from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from edgetl.errors import ImageError, ModelError
from edgetl.runtime.preprocessing import ImagePreprocessing, decode
from edgetl.runtime.preprocessing.images import INTERPOLATION

triples = st.tuples(*[st.floats(0.01, 1.0)] * 3)
contracts = st.builds(
    ImagePreprocessing,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    resize=st.sampled_from(["crop", "stretch", "pad"]),
    crop_pct=st.floats(0.2, 1.0),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest"]),
    mean=triples,
    std=triples,
    max_pixels=st.integers(1, 10**9),
)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class TestContract:
    @given(contracts)
    def test_json_round_trip(self, contract: ImagePreprocessing) -> None:
        again = ImagePreprocessing.from_json(json.loads(json.dumps(contract.to_json())))
        assert again == contract and again.digest() == contract.digest()

    def test_the_digest_is_stable(self) -> None:
        # A stored digest must mean the same in the next version: change this only together with the format.
        contract = ImagePreprocessing(height=224, width=224)
        text = (
            '{"crop_pct":1.0,"height":224,"interpolation":"bicubic","kind":"image","max_pixels":64000000,"mean":[0.5,0.5,0.5],'
            '"resize":"crop","std":[0.5,0.5,0.5],"width":224}'
        )
        assert json.dumps(contract.to_json(), sort_keys=True, separators=(",", ":")) == text
        assert contract.digest() == "746e5a9b00b24ba67c0f096d260fe0d34e760878a304f6ab8515c0362b223823"

    @pytest.mark.parametrize(
        "change",
        [
            {"height": 9}, {"width": 9}, {"resize": "pad"}, {"crop_pct": 0.9}, {"interpolation": "nearest"},
            {"mean": (0.4, 0.5, 0.5)}, {"std": (0.4, 0.5, 0.5)}, {"max_pixels": 5},
        ],
    )  # fmt: skip
    def test_every_field_is_in_the_digest(self, change: dict[str, object]) -> None:
        contract = ImagePreprocessing(height=8, width=8)
        assert replace(contract, **change).digest() != contract.digest()  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "change",
        [
            {"colour": "bgr"}, {"mean": [0.5]}, {"mean": 1}, {"mean": ["a", "b", "c"]}, {"std": [0, 1, 1]},
            {"resize": "squash"}, {"interpolation": "lanczos"},
        ],
    )  # fmt: skip
    def test_another_contract_is_refused(self, change: dict[str, object]) -> None:
        with pytest.raises(ModelError, match="preprocessing contract"):
            ImagePreprocessing.from_json({"height": 8, "width": 8, **change})

    def test_a_missing_field_is_refused(self) -> None:
        with pytest.raises(ModelError, match="width"):
            ImagePreprocessing.from_json({"height": 8})


class TestApply:
    @settings(deadline=None)
    @given(contracts, st.integers(1, 200), st.integers(1, 200))
    def test_the_shape_is_the_contracts_for_any_image(self, contract: ImagePreprocessing, w: int, h: int) -> None:
        tensor = contract.apply(Image.new("RGB", (w, h), (255, 0, 128)))
        assert tensor.shape == (3, contract.height, contract.width) and tensor.dtype == np.float32
        assert tensor.flags.c_contiguous and np.isfinite(tensor).all()

    @given(triples, triples)
    def test_values_follow_the_formula(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        image = noise(16, 16)
        tensor = ImagePreprocessing(height=16, width=16, mean=mean, std=std).apply(image)  # type: ignore[arg-type]
        pixels = np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255.0
        expected = (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6 / min(std))

    def test_channels_are_red_green_blue(self) -> None:
        tensor = ImagePreprocessing(height=4, width=4).apply(Image.new("RGB", (9, 9), (255, 0, 51)))
        np.testing.assert_allclose(tensor[:, 0, 0], [1.0, -1.0, -0.6], atol=1e-6)

    def test_crop_takes_the_centre_and_pad_keeps_everything(self) -> None:
        image = Image.new("RGB", (30, 10), (255, 255, 255))
        image.paste((0, 0, 0), (10, 0, 20, 10))
        crop = ImagePreprocessing(height=10, width=10).apply(image)
        assert (crop == -1.0).all()
        pad = ImagePreprocessing(height=30, width=30, resize="pad").apply(image)
        assert (pad[:, :10] == -1.0).all() and (pad[:, 20:] == -1.0).all() and (pad[:, 10:20, :10] == 1.0).all()
        stretched = ImagePreprocessing(height=30, width=30, resize="stretch", interpolation="nearest").apply(image)
        assert (stretched[:, :, 10:20] == -1.0).all() and (stretched[:, :, :10] == 1.0).all()

    @given(contracts, st.integers(1, 50), st.integers(1, 50))
    def test_pad_is_pillows_where_that_keeps_the_image(self, contract: ImagePreprocessing, w: int, h: int) -> None:
        contract = replace(contract, resize="pad")
        image, size = noise(w, h), (contract.width, contract.height)
        assume(round(w / h * contract.height) and round(h / w * contract.width))
        expected = ImageOps.pad(image, size, method=INTERPOLATION[contract.interpolation], color=(0, 0, 0))
        np.testing.assert_array_equal(np.asarray(contract.sized(image)), np.asarray(expected))

    @pytest.mark.parametrize("size", [(1, 300), (300, 1), (2, 1000)])
    def test_pad_keeps_a_line_of_a_thin_image(self, size: tuple[int, int]) -> None:
        """It was black altogether, and with Pillow 10.3 an error."""
        pad = ImagePreprocessing(height=32, width=32, resize="pad").apply(Image.new("RGB", size, (255, 255, 255)))
        assert (pad == 1.0).sum() == 3 * 32 and (pad[:, :15] == -1.0).all() == (size[0] > size[1])

    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    @pytest.mark.parametrize(
        ("height", "width", "side", "crop_pct"),
        [
            (320, 480, 224, 1.0),
            (320, 480, 224, 0.875),
            (333, 500, 64, 0.8),
            (480, 320, 64, 1.0),
            (400, 512, 64, 0.8),
            (400, 512, 224, 1.0),  # the longer side is cut off, not rounded
            (512, 389, 224, 0.875),  # half a pixel of margin goes to the even side
            (511, 512, 224, 0.9),
        ],
    )
    def test_it_is_torchvisions_resize_and_centre_crop(
        self, height: int, width: int, side: int, crop_pct: float, interpolation: str
    ) -> None:
        theirs, ours = both(height, width, side, crop_pct, interpolation)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def both(height: int, width: int, side: int, crop_pct: float, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """A part of a photograph, preprocessed by torchvision and by edgetl."""
    data = pytest.importorskip("skimage.data")
    transforms = pytest.importorskip("torchvision.transforms")
    photograph = Image.fromarray(data.astronaut()[:height, :width])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    size = int(side / crop_pct)
    scaled = transforms.Resize(size, transforms.InterpolationMode(interpolation))(photograph)
    cropped = transforms.CenterCrop(side)(scaled)
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])(cropped).numpy()
    contract = ImagePreprocessing(
        height=side, width=side, crop_pct=crop_pct, interpolation=interpolation, mean=mean, std=std  # type: ignore[arg-type]
    )  # fmt: skip
    return theirs, contract.apply(photograph)


class TestDecode:
    def test_a_path_and_its_bytes_are_the_same_image(self, tmp_path: Path) -> None:
        path = tmp_path / "Prüfung 写真.png"
        noise().save(path)
        assert decode(path).tobytes() == decode(path.read_bytes()).tobytes() == noise().tobytes()
        contract = ImagePreprocessing(height=8, width=8)
        np.testing.assert_array_equal(contract(path), contract.apply(noise()))

    def test_sixteen_bits_are_scaled_not_clipped(self) -> None:
        values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
        got = np.asarray(decode(encoded(Image.fromarray(values))))[..., 0].astype(int)
        assert np.abs(got - values / 257.0).max() <= 1.0 and got.max() >= 254

    def test_colour_modes_come_out_as_rgb(self) -> None:
        image = Image.new("RGB", (8, 8), (200, 100, 50))
        assert decode(encoded(image.convert("CMYK"), "JPEG")).mode == "RGB"
        grey = decode(encoded(Image.new("L", (8, 8), 77)))
        assert grey.getpixel((0, 0)) == (77, 77, 77)
        assert decode(encoded(Image.new("1", (8, 8), 1))).getpixel((0, 0)) == (255, 255, 255)

    def test_transparency_lies_over_black(self) -> None:
        assert decode(encoded(Image.new("RGBA", (4, 4), (200, 100, 50, 0)))).getpixel((0, 0)) == (0, 0, 0)
        half = decode(encoded(Image.new("LA", (4, 4), (200, 128)))).getpixel((0, 0))
        assert isinstance(half, tuple) and all(abs(value - 100) <= 1 for value in half)
        palette = Image.new("P", (4, 4), 1)
        palette.putpalette([255, 0, 0, 0, 255, 0])
        palette.putpixel((0, 0), 0)
        got = decode(encoded(palette, transparency=1))
        assert got.getpixel((0, 0)) == (255, 0, 0) and got.getpixel((2, 2)) == (0, 0, 0)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, orientation: int) -> None:
        image = noise(16, 8)
        exif = image.getexif()
        exif[0x0112] = orientation
        got = decode(encoded(image, exif=exif))
        turn = {
            2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }  # fmt: skip
        expected = image.transpose(turn[orientation]) if orientation in turn else image
        assert got.size == expected.size and got.tobytes() == expected.tobytes()

    def test_the_limit_holds_before_pixels_are_decoded(self) -> None:
        with pytest.raises(ImageError, match=r"40 .* 30 pixels are more than the limit of 1,199"):
            decode(encoded(noise()), max_pixels=1199)
        assert decode(encoded(noise()), max_pixels=1200).size == (40, 30)
        small = encoded(noise())
        for side in (12_000, 60_000):  # beyond our limit, and beyond the one at which Pillow itself refuses
            chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
            bomb = small[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + small[33:]
            with pytest.raises(ImageError, match="limit"):
                decode(bomb)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
    def test_a_truncated_file_is_refused(self, kind: str, share: float) -> None:
        content = encoded(noise(), kind)
        with pytest.raises(ImageError):
            decode(content[: int(len(content) * share)])

    @settings(deadline=None)
    @given(st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]), st.data())
    def test_damage_gives_an_image_or_an_image_error(self, kind: str, data: st.DataObject) -> None:
        content = bytearray(encoded(noise(), kind))
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
            content[place] = data.draw(st.integers(0, 255))
        try:
            assert decode(bytes(content), max_pixels=100_000).mode == "RGB"
        except ImageError as error:
            assert error.exit_code == 3

    def test_the_message_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("hello")
        with pytest.raises(ImageError, match=r"text\.png: this is not an image"):
            decode(tmp_path / "text.png")
        with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
            decode(tmp_path / "gone.png")
        with pytest.raises(ImageError, match="damaged"):
            decode(tmp_path)
