from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.data.verify import verify_images
from edgetl.errors import ImageError

LIMIT = 10_000


def noise(seed: int = 0, shape: tuple[int, ...] = (30, 40, 3)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_digests_follow_the_pixels_not_the_file(tmp_path: Path) -> None:
    noise(0).save(tmp_path / "a.png")
    noise(0).save(tmp_path / "b.bmp")
    noise(0).save(tmp_path / "c.tiff")
    noise(0).save(tmp_path / "d.webp", lossless=True)
    noise(1).save(tmp_path / "e.png")
    a, b, c, d, e = verify_images(sorted(tmp_path.iterdir()), max_pixels=LIMIT)
    assert a == b == c == d != e and len(a) == 64


def test_the_size_is_part_of_the_digest(tmp_path: Path) -> None:
    for name, size in (("a.png", (2, 3)), ("b.png", (3, 2))):
        Image.new("RGB", size).save(tmp_path / name)
    a, b = verify_images([tmp_path / "a.png", tmp_path / "b.png"], max_pixels=LIMIT)
    assert a != b


def test_unusual_but_sound_images(tmp_path: Path) -> None:
    Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)).save(tmp_path / "sixteen.png")
    noise().convert("CMYK").save(tmp_path / "cmyk.jpg")
    palette = noise().quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    noise().convert("LA").save(tmp_path / "grey-alpha.png")
    noise().convert("1").save(tmp_path / "one-bit.png")
    noise().save(tmp_path / "Prüfung 写真.png")
    paths = sorted(tmp_path.iterdir())
    assert len(set(verify_images(paths, max_pixels=LIMIT))) == len(paths) == 6


def test_an_image_turned_by_exif_is_a_copy_of_the_turned_one(tmp_path: Path) -> None:
    image = noise()
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    image.save(tmp_path / "exif.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png")
    a, b = verify_images([tmp_path / "exif.png", tmp_path / "turned.png"], max_pixels=LIMIT)
    assert a == b


def damaged(folder: Path) -> list[Path]:
    noise().save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    Image.new("RGB", (101, 100)).save(folder / "large.png")
    (folder / "folder.png").mkdir()
    names = ("whole.jpg", "truncated.jpg", "empty.png", "text.png", "large.png", "folder.png", "gone.png")
    return [folder / name for name in names]


def test_all_bad_images_are_named_at_once(tmp_path: Path) -> None:
    paths = damaged(tmp_path)
    with pytest.raises(ImageError) as error:
        verify_images(paths, max_pixels=LIMIT)
    message = error.value.message
    assert "6 of 7 images cannot be used" in message and error.value.exit_code == 3
    assert "whole.jpg" not in message and all(str(path) in message for path in paths[1:])
    assert "101" in message and "10,000" in message
    assert error.value.hint is not None and "max_pixels" in error.value.hint


@pytest.mark.parametrize("index", range(1, 7))
def test_each_kind_alone(tmp_path: Path, index: int) -> None:
    path = damaged(tmp_path)[index]
    with pytest.raises(ImageError, match=path.name):
        verify_images([path], max_pixels=LIMIT)


def test_twenty_are_named_of_many(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        verify_images([tmp_path / f"{n}.png" for n in range(100)], max_pixels=LIMIT)
    assert error.value.message.count("there is no such file") == 20 and "and 80 more" in error.value.message


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    seen: list[tuple[int, int]] = []
    verify_images([tmp_path / "a.png"] * 100, max_pixels=LIMIT, progress=lambda *state: seen.append(state))
    assert seen[-1] == (100, 100) and [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert verify_images([], max_pixels=LIMIT) == ()


def test_an_interruption_is_not_swallowed(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_images([tmp_path / "a.png"] * 500, max_pixels=LIMIT, progress=interrupt)
