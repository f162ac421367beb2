from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.config import Augment
from edgetl.data.augment import AugmentedSamples
from edgetl.data.dataset import Dataset, Sample
from edgetl.data.leaks import check_leaks
from edgetl.data.loader import Samples, batches
from edgetl.data.parts import Part
from edgetl.data.splits import draw_calibration
from edgetl.data.verify import verify_images
from edgetl.errors import DataError, ImageError, LeakError
from edgetl.runtime.preprocessing import ImagePreprocessing, decode

CONTRACT = ImagePreprocessing(height=8, width=8)
Make = Callable[[dict[str, dict[str, int]]], Path]


@pytest.fixture
def pairs(make_folders: Make, tmp_path: Path) -> tuple[list[Path], list[Part]]:
    """Images as files, and the same as parts of one file."""
    files = sorted(make_folders({"d": {"a": 5, "b": 4}}).rglob("*.png"))
    parts = []
    with (tmp_path / "all.bin").open("wb") as file:
        for path in files:
            parts.append(
                Part(tmp_path / "all.bin", file.tell(), path.stat().st_size, f"{path.parent.name}/{path.name}")
            )
            file.write(path.read_bytes())
    return files, parts


def test_it_reads_what_the_file_has(pairs: tuple[list[Path], list[Part]]) -> None:
    files, parts = pairs
    for path, part in zip(files, parts, strict=True):
        assert part.read_bytes() == path.read_bytes()
        assert part.suffix == ".png" and str(part) == f"{part.file}: {part.name}"
        np.testing.assert_array_equal(CONTRACT(part), CONTRACT(path))
        assert decode(part).tobytes() == decode(path).tobytes()
    assert pickle.loads(pickle.dumps(parts)) == parts == sorted(parts)
    assert len({*parts, *parts}) == len(parts)
    assert verify_images(parts, max_pixels=1000) == verify_images(files, max_pixels=1000)


@given(st.binary(max_size=200), st.integers(0, 250), st.integers(0, 250))
def test_any_range_is_read_or_refused(content: bytes, offset: int, size: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f"
        file.write_bytes(content)
        part = Part(file, offset, size, "x.png")
        if offset + size <= len(content) or not size:
            assert part.read_bytes() == content[offset : offset + size]
        else:
            with pytest.raises(ImageError, match="ends too early"):
                part.read_bytes()


def test_a_file_that_is_gone_cut_or_replaced(pairs: tuple[list[Path], list[Part]]) -> None:
    parts = pairs[1]
    whole = parts[0].file.read_bytes()
    parts[0].file.write_bytes(whole[: parts[-1].offset + 10])
    with pytest.raises(ImageError, match=r"all\.bin: b/3\.png: the file ends too early: 10 of"):
        CONTRACT(parts[-1])
    parts[0].file.write_bytes(b"x" * len(whole))
    with pytest.raises(ImageError, match=r"9 of 9 images[\s\S]*all\.bin: a/0\.png: this is not an image"):
        verify_images(parts, max_pixels=1000)
    parts[0].file.unlink()
    with pytest.raises(ImageError, match=r"all\.bin: a/0\.png: there is no such file any more"):
        CONTRACT(parts[0])
    parts[0].file.mkdir()
    with pytest.raises(ImageError, match=r"a/0\.png: cannot be read: Is a directory") as error:
        parts[0].read_bytes()
    assert error.value.exit_code == 3
    with pytest.raises(ImageError, match=r"a/0\.png: .*pixels are more than the limit"):
        parts[0].file.rmdir()
        parts[0].file.write_bytes(whole)
        decode(parts[0], max_pixels=5)


def test_a_data_set_of_parts_and_files_is_written_and_read(pairs: tuple[list[Path], list[Part]]) -> None:
    files, parts = pairs
    samples = [Sample(raw, place % 2, None, str(place)) for place, raw in enumerate([*parts, *files])]
    dataset = Dataset(("a", "b"), tuple(samples), tuple(samples[:1]), tuple(samples[-1:]))
    again = Dataset.from_json(json.loads(json.dumps(dataset.to_json())))
    assert again == dataset and again.digest() == dataset.digest()
    assert again.train[0].raw.file is again.train[1].raw.file  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "raw", [["/f", -1, 2, "x"], ["/f", 0, 2], ["/f", 0.0, 2, "x"], [3, 0, 2, "x"], ["/f", 0, True, "x"], 7]
)
def test_a_damaged_record_of_a_part_is_refused(raw: object) -> None:
    values = Dataset(("a", "b"), (Sample(Path("/x"), 0, None, "d"),), (), ()).to_json()
    with pytest.raises(DataError, match="the stored data set"):
        Dataset.from_json({**values, "val": [[raw, 0, None, "d"]]})
    with pytest.raises(DataError, match="the stored data set"):
        Dataset.from_json({**values, "raw": "texts", "val": [[["/f", 0, 1, "x"], 0, None, "d"]]})


def test_loading_augmenting_and_drawing(pairs: tuple[list[Path], list[Part]]) -> None:
    files, parts = pairs
    digests = verify_images(parts, max_pixels=1000)
    of_parts, of_files = (
        tuple(
            Sample(raw, place % 2, None, digest) for place, (raw, digest) in enumerate(zip(raws, digests, strict=True))
        )
        for raws in (parts, files)
    )
    one, other = Samples(of_parts, CONTRACT), Samples(of_files, CONTRACT)
    for first, second in zip(batches(one, 4), batches(other, 4), strict=True):
        np.testing.assert_array_equal(first[0], second[0])
    changed = [AugmentedSamples(samples, Augment(flip=0.5, crop=0.5), 3) for samples in (one, other)]
    np.testing.assert_array_equal(changed[0][1, 2][0], changed[1][1, 2][0])
    drawn = [[sample.digest for sample in draw_calibration(samples, 4, 0)] for samples in (of_parts, of_files)]
    assert drawn[0] == drawn[1]
    with pytest.raises(LeakError, match=r"images with the same pixels[\s\S]*train: .*all\.bin: a/0\.png"):
        check_leaks({"train": of_parts, "test": of_files})


def test_workers_of_a_data_loader(pairs: tuple[list[Path], list[Part]]) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    samples = Samples(tuple(Sample(part, 0, None, str(part.offset)) for part in pairs[1]), CONTRACT)
    loader = torch.utils.data.DataLoader(samples, batch_size=3, num_workers=2)
    images = torch.cat([batch for batch, _ in loader]).numpy()
    np.testing.assert_array_equal(images, np.stack([CONTRACT(path) for path in pairs[0]]))
