from __future__ import annotations

import gc
import pickle
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.data.dataset import Sample
from edgetl.data.loader import Samples, batches
from edgetl.errors import ImageError, UsageError
from edgetl.runtime.preprocessing import ImagePreprocessing

CONTRACT = ImagePreprocessing(height=8, width=9)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    listed = []
    for number in range(23):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (12, 10), (number * 10, 0, 0)).save(path)
        listed.append(Sample(path, number % 3, None, str(number)))
    return Samples(tuple(listed), CONTRACT)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("edgetl-batches")]


def test_one_sample(samples: Samples) -> None:
    image, label = samples[4]
    assert image.shape == (3, 8, 9) and image.dtype == np.float32 and label == 1 and label.dtype == np.int64
    np.testing.assert_array_equal(image, CONTRACT(samples.samples[4].raw))
    assert len(samples) == 23 and samples[-1][1] == samples[22][1]
    assert len(samples[2:5]) == 3 and samples[2:5].samples[0] == samples.samples[2]
    with pytest.raises(IndexError):
        samples[23]


def test_it_can_be_pickled(samples: Samples) -> None:
    again = pickle.loads(pickle.dumps(samples))
    np.testing.assert_array_equal(again[7][0], samples[7][0])


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_batches_are_all_samples_in_order(samples: Samples, batch_size: int) -> None:
    pairs = list(batches(samples, batch_size))
    images, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    assert images.dtype == np.float32 and labels.dtype == np.int64
    assert [len(y) for _, y in pairs[:-1]] == [batch_size] * (len(pairs) - 1)
    np.testing.assert_array_equal(images, np.stack([samples[index][0] for index in range(23)]))
    np.testing.assert_array_equal(labels, [sample.label for sample in samples.samples])
    assert workers() == []


def test_nothing_gives_no_batch(samples: Samples) -> None:
    assert list(batches(samples[:0], 4)) == []


def test_a_batch_size_of_zero_is_refused_at_once(samples: Samples) -> None:
    with pytest.raises(UsageError, match="batch size is 0"):
        batches(samples, 0)


def test_closing_stops_the_threads(samples: Samples) -> None:
    stream = batches(samples, 2)
    next(stream)
    assert workers()
    stream.close()
    assert workers() == []


def test_a_damaged_image_raises_where_its_batch_would_come(samples: Samples) -> None:
    samples.samples[13].raw.write_bytes(b"damaged")
    stream = batches(samples, 5)
    assert [len(next(stream)[1]) for _ in range(2)] == [5, 5]
    with pytest.raises(ImageError, match=r"13\.png"):
        next(stream)
    assert workers() == []


def test_at_most_three_batches_are_alive(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    allocate = np.empty

    class Tracked(np.ndarray):
        """A plain ndarray that a weak reference can watch."""

    def empty(*args: object, **kwargs: object) -> np.ndarray:
        array = allocate(*args, **kwargs).view(Tracked)  # type: ignore[call-overload]
        made.append(weakref.ref(array))
        return array  # type: ignore[no-any-return]

    monkeypatch.setattr("edgetl.data.loader.np.empty", empty)
    most = 0
    gc.freeze()  # what other tests have loaded is not looked through each time
    for images, _ in batches(samples, 2):
        gc.collect()
        most = max(most, sum(1 for reference in made if reference() is not None))
        assert images.shape[1:] == (3, 8, 9)
    gc.unfreeze()
    assert len(made) == 12 and 1 <= most <= 3


def test_a_torch_loader_takes_it(samples: Samples) -> None:
    pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    images, labels = next(iter(DataLoader(samples, batch_size=4)))  # type: ignore[arg-type]
    assert tuple(images.shape) == (4, 3, 8, 9) and labels.tolist() == [0, 1, 2, 0]
