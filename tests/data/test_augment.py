from __future__ import annotations

import math
import pickle
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from edgetl.config import Augment  # noqa: E402
from edgetl.data.augment import AugmentedSamples, mixed, preview  # noqa: E402
from edgetl.data.dataset import Sample  # noqa: E402
from edgetl.data.loader import Samples  # noqa: E402
from edgetl.errors import DataError, ImageError, MissingExtraError, UsageError  # noqa: E402
from edgetl.runtime.preprocessing import ImagePreprocessing  # noqa: E402

CONTRACT = ImagePreprocessing(
    height=24, width=20, crop_pct=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
PLAIN = ImagePreprocessing(height=48, width=48, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
ALL = Augment(
    flip=0.5,
    vertical_flip=0.5,
    crop=0.3,
    rotate=45,
    colour=0.5,
    noise=0.1,
    erase=0.5,
    randaugment=15,
    mixup=0.4,
    cutmix=1,
)

per_image = st.builds(
    Augment,
    flip=st.floats(0, 1),
    vertical_flip=st.floats(0, 1),
    crop=st.floats(0, 1, exclude_min=True),
    rotate=st.floats(0, 180),
    colour=st.floats(0, 1),
    noise=st.floats(0, 1),
    erase=st.floats(0, 1),
    randaugment=st.integers(0, 30),
)
per_batch = st.builds(Augment, mixup=st.floats(0, 1e3), cutmix=st.floats(0, 1e3))
contracts = st.builds(
    ImagePreprocessing,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    resize=st.sampled_from(["crop", "stretch", "pad"]),
    crop_pct=st.floats(0.5, 1.0),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest"]),
)


def odd_images() -> list[Image.Image]:
    """One pixel, slivers, a photograph's shape; grey, transparent, sixteen bits, palette, black and white."""
    noise = np.random.default_rng(0)

    def pixels(*shape: int) -> Any:
        return noise.integers(0, 256, shape, dtype=np.uint8)

    return [
        Image.fromarray(pixels(1, 1, 3)),
        Image.fromarray(pixels(1, 90, 3)),
        Image.fromarray(pixels(90, 1, 3)),
        Image.fromarray(pixels(40, 60, 3)),
        Image.fromarray(pixels(28, 28)),
        Image.fromarray(pixels(30, 20, 4)),
        Image.fromarray(noise.integers(0, 65536, (20, 30), dtype=np.uint16)),
        Image.fromarray(pixels(25, 25, 3)).convert("P"),
        Image.fromarray(pixels(25, 31)).convert("1"),
    ]


@pytest.fixture(scope="module")
def samples() -> Iterator[Samples]:
    with tempfile.TemporaryDirectory() as folder:
        yield write(Path(folder), odd_images())


def write(folder: Path, images: list[Image.Image], contract: ImagePreprocessing = CONTRACT) -> Samples:
    listed = []
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
        listed.append(Sample(folder / f"{number}.png", number % 3, None, str(number)))
    return Samples(tuple(listed), contract)


def generators() -> tuple[bytes, str, str]:
    """The state of everybody's generators."""
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())


def stripes(height: int, width: int) -> Image.Image:
    """Red tells the column, green the row; blue is 128."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).round()[None, :]
    pixels[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return Image.fromarray(pixels)


# --- what a key gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [Augment(), Augment(mixup=0.2, cutmix=1.0)])
def test_with_nothing_switched_on_it_is_the_sample_itself(samples: Samples, augment: Augment) -> None:
    changed = AugmentedSamples(samples, augment, 3)
    assert len(changed) == len(samples) == 9
    for index in range(-9, 9):
        image, label = changed[7, index]
        np.testing.assert_array_equal(image, samples[index][0])
        assert image.dtype == np.float32 and label == samples[index][1]


@settings(max_examples=40, deadline=None)
@given(per_image, contracts, st.integers(-(2**65), 2**65), st.integers(0, 2**40), st.integers(-9, 8))
def test_the_same_key_gives_the_same_bits(
    samples: Samples, augment: Augment, contract: ImagePreprocessing, seed: int, epoch: int, index: int
) -> None:
    changed = AugmentedSamples(replace(samples, preprocessing=contract), augment, seed)
    before = generators()
    image, label = changed[epoch, index]
    assert generators() == before
    assert image.shape == (3, contract.height, contract.width) and image.dtype == np.float32
    assert np.isfinite(image).all() and image.flags.c_contiguous
    torch.manual_seed(epoch)
    np.random.seed(index + 9)
    changed[epoch + 1, index], changed[epoch, index - 1 if index > 0 else index + 1]
    again, label_again = pickle.loads(pickle.dumps(changed))[epoch, index % 9]
    np.testing.assert_array_equal(image, again)
    assert label == label_again == samples[index][1]


def test_threads_and_worker_processes_see_the_same(samples: Samples) -> None:
    changed = AugmentedSamples(samples, ALL, 5)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(len(samples))]
    alone = [changed[key][0] for key in keys]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone, pool.map(lambda key: changed[key][0], keys), strict=True):
            np.testing.assert_array_equal(one, other)
    order = np.random.default_rng(1).permutation(len(keys)).tolist()
    batches = [[keys[place] for place in order[start : start + 6]] for start in range(0, len(keys), 6)]
    loader = torch.utils.data.DataLoader(changed, batch_sampler=batches, num_workers=2)
    loaded = torch.cat([images for images, _ in loader]).numpy()
    np.testing.assert_array_equal(loaded, np.stack([alone[place] for place in order]))


def test_seeds_epochs_and_samples_have_draws_of_their_own(tmp_path: Path) -> None:
    same = write(tmp_path, [stripes(30, 30)] * 4)
    seen = {
        AugmentedSamples(same, Augment(noise=0.1), seed)[epoch, index][0].tobytes()
        for seed in (-1, 0, 1, 2**32)
        for epoch in range(4)
        for index in range(4)
    }
    assert len(seen) == 64


def test_flips_are_as_often_as_they_should_be(tmp_path: Path) -> None:
    changed = AugmentedSamples(
        write(tmp_path, [stripes(4, 4)] * 25, replace(PLAIN, height=4, width=4)), Augment(flip=0.3), 0
    )
    flipped = np.array([[changed[epoch, index][0][0, 0, 0] > 0.5 for index in range(25)] for epoch in range(60)])
    spread = math.sqrt(0.3 * 0.7 / flipped.size)
    assert abs(flipped.mean() - 0.3) < 4 * spread
    # Neighbouring keys are independent: both flipped as often as chance has it.
    for first, second in ((flipped[1:], flipped[:-1]), (flipped[:, 1:], flipped[:, :-1])):
        assert abs((first & second).mean() - 0.09) < 4 * math.sqrt(0.09 * 0.91 / first.size)


@pytest.mark.parametrize("key", [3, (1,), (1, 2, 3), "ab", (0.5, 1), ("0", 1), None, slice(0, 2)])
def test_a_key_is_a_pair_of_integers(samples: Samples, key: Any) -> None:
    with pytest.raises(TypeError):
        AugmentedSamples(samples, ALL, 0)[key]


def test_keys_that_are_not_there(samples: Samples) -> None:
    changed = AugmentedSamples(samples, ALL, 0)
    for index in (9, -10, 10**30):
        with pytest.raises(IndexError, match=f"no sample {index}: there are 9"):
            changed[0, index]
    with pytest.raises(UsageError, match="-1; epochs count from 0"):
        changed[-1, 0]
    np.testing.assert_array_equal(changed[np.int64(1), np.int32(3)][0], changed[1, 3][0])  # type: ignore[index]
    with pytest.raises(IndexError):
        AugmentedSamples(Samples((), CONTRACT), ALL, 0)[0, 0]


def test_an_image_that_went_away(tmp_path: Path) -> None:
    changed = AugmentedSamples(write(tmp_path, [stripes(9, 9)]), ALL, 0)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"0\.png: this is not an image"):
        changed[0, 0]
    (tmp_path / "0.png").unlink()
    with pytest.raises(ImageError, match="no such file"):
        changed[0, 0]


def test_too_large_an_image_is_refused_as_ever(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="more than the limit of 80"):
        AugmentedSamples(write(tmp_path, [stripes(9, 9)], replace(PLAIN, max_pixels=80)), ALL, 0)[0, 0]


def test_without_torchvision(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(MissingExtraError, match="'torchvision', which is not installed") as caught:
        AugmentedSamples(samples, Augment(colour=0.5), 0)[0, 3]
    assert caught.value.hint == "pip install 'edgetl[train]'"


# --- what is changed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize(
    ("augment", "axes"), [({"flip": 1}, 2), ({"vertical_flip": 1}, 1), ({"flip": 1, "vertical_flip": 1}, (1, 2))]
)
def test_flips(tmp_path: Path, resize: Any, augment: dict[str, float], axes: Any) -> None:
    same = write(tmp_path, [stripes(40, 61)], replace(CONTRACT, resize=resize))
    np.testing.assert_array_equal(AugmentedSamples(same, Augment(**augment), 0)[0, 0][0], np.flip(same[0][0], axes))


@pytest.mark.parametrize(("resize", "size"), [("crop", (256, 256)), ("stretch", (200, 256)), ("crop", (256, 300))])
def test_crops_keep_their_share_and_hardly_stretch(tmp_path: Path, resize: Any, size: tuple[int, int]) -> None:
    changed = AugmentedSamples(write(tmp_path, [stripes(*size)], replace(PLAIN, resize=resize)), Augment(crop=0.4), 0)
    areas = []
    for epoch in range(60):
        image = changed[epoch, 0][0]
        # From the middle of one pixel to another 40 further, so that the edges' filters do not count.
        across, down = (image[0, 20, 44] - image[0, 20, 4]) * 48 / 40, (image[1, 44, 20] - image[1, 4, 20]) * 48 / 40
        natural = size[0] / size[1] if resize == "crop" else 1.0  # of width to height, in shares of the image
        assert 0.72 < across / down / natural < 1.39
        areas.append(across * down)
    assert 0.38 < min(areas) < 0.47 and 0.75 < max(areas) < 1.02


@pytest.mark.parametrize("share", [1e-9, 0.01])
@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_tiny_crops(samples: Samples, share: float, resize: Any) -> None:
    changed = AugmentedSamples(
        replace(samples, preprocessing=replace(CONTRACT, resize=resize)), Augment(crop=share, rotate=90), 0
    )
    for index in range(len(samples)):
        assert np.isfinite(changed[0, index][0]).all()


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(60, 90), (90, 60), (21, 20), (7, 300)])
def test_hardly_rotated_is_what_the_contract_gives(tmp_path: Path, resize: Any, size: tuple[int, int]) -> None:
    """The window that is rotated is the one that the contract cuts out, to the pixel."""
    same = write(tmp_path, [stripes(*size)], replace(PLAIN, crop_pct=0.875, resize=resize))
    turned = AugmentedSamples(same, Augment(rotate=1e-7), 0)[0, 0][0]
    np.testing.assert_allclose(turned, same[0][0], atol=2.01 / 255)


def test_rotations_show_the_image_or_its_mirror_but_no_fill(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), (0, 255, 0))
    wide.paste((0, 0, 255), (100, 0, 200, 100))  # what the contract shows
    same = write(tmp_path, [wide, Image.new("RGB", (64, 64), (90, 90, 90))], replace(PLAIN, interpolation="bilinear"))
    changed = AugmentedSamples(same, Augment(rotate=60), 0)
    assert same[0][0][1].max() < 0.2  # the filter mixes a little green into the outermost columns
    for epoch in range(10):
        shown = changed[epoch, 0][0]
        assert shown[1:].sum(axis=0).min() > 0.9  # green or blue everywhere, black nowhere
        np.testing.assert_allclose(changed[epoch, 1][0], 90 / 255, atol=1.01 / 255)
    assert max(float(changed[epoch, 0][0][1].max()) for epoch in range(10)) == 1.0
    padded = replace(same, preprocessing=replace(PLAIN, resize="pad"))
    assert AugmentedSamples(padded, Augment(rotate=60), 0)[0, 1][0].min() == 0.0


def test_rotations_turn_up_to_their_angle(tmp_path: Path) -> None:
    """Of the ramp in red, the slope turns with the image; the pixels in the middle show it."""
    changed = AugmentedSamples(write(tmp_path, [stripes(256, 256)], PLAIN), Augment(rotate=30), 0)
    angles = []
    for epoch in range(40):
        red = changed[epoch, 0][0][0]
        angles.append(math.degrees(math.atan2(red[34, 24] - red[14, 24], red[24, 34] - red[24, 14])))
    assert -31.5 < min(angles) < -20 and 20 < max(angles) < 31.5


def test_colours_change_and_shapes_do_not(tmp_path: Path) -> None:
    grey = Image.fromarray(np.asarray(stripes(48, 48))[..., 0])
    same = write(tmp_path, [stripes(48, 48), grey], PLAIN)
    changed = AugmentedSamples(same, Augment(colour=0.4), 0)
    brightness = []
    for epoch in range(30):
        red, green, blue = changed[epoch, 1][0]
        np.testing.assert_array_equal(red, green)  # a grey image has no hue to turn
        np.testing.assert_array_equal(red, blue)
        assert (np.diff(red, axis=1) >= 0).all()
        brightness.append(red.mean())
        assert not np.array_equal(changed[epoch, 0][0], same[0][0])
    assert min(brightness) < 0.4 < 0.55 < max(brightness)


def test_noise_is_on_the_scale_of_pixels(tmp_path: Path) -> None:
    contract = replace(CONTRACT, height=96, width=96)
    images = [Image.new("RGB", (96, 96), (level, level, level)) for level in (128, 0, 255)]
    same = write(tmp_path, images, contract)
    changed = AugmentedSamples(same, Augment(noise=0.1), 0)
    std, mean = (np.asarray(values, np.float32)[:, None, None] for values in (contract.std, contract.mean))
    noise = (changed[0, 0][0] - same[0][0]) * std
    np.testing.assert_allclose(noise.std(axis=(1, 2)), 0.1, rtol=0.05)
    np.testing.assert_allclose(noise.mean(axis=(1, 2)), 0.0, atol=0.005)
    assert abs(np.corrcoef(noise.reshape(3, -1))[0, 1]) < 0.05  # every channel has its own
    for index in (1, 2):
        pixels = changed[0, index][0] * std + mean
        assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6


def test_an_erased_rectangle_is_the_mean(tmp_path: Path) -> None:
    changed = AugmentedSamples(
        write(tmp_path, [Image.new("RGB", (64, 64), (255, 255, 255))], PLAIN), Augment(erase=1), 0
    )
    shares = []
    for epoch in range(60):
        gone = changed[epoch, 0][0] == 0.0
        assert (gone == gone[0]).all()
        rows, columns = gone[0].any(axis=1), gone[0].any(axis=0)
        assert gone[0].sum() == rows.sum() * columns.sum()
        shares.append(gone[0].mean())
    assert 0.005 < min(shares) < 0.06 and 0.25 < max(shares) < 0.36
    half = replace(changed, augment=Augment(erase=0.5))
    assert 15 < sum((half[epoch, 0][0] == 0.0).any() for epoch in range(60)) < 45


@pytest.mark.parametrize("magnitude", [1, 9, 30])
def test_randaugment(samples: Samples, magnitude: int) -> None:
    changed = AugmentedSamples(samples, Augment(randaugment=magnitude), 0)
    seen = {changed[epoch, 3][0].tobytes() for epoch in range(40)}
    assert len(seen) > 20
    for index in range(len(samples)):
        assert all(np.isfinite(changed[epoch, index][0]).all() for epoch in range(5))


def test_randaugment_fills_with_the_colour_of_the_border(tmp_path: Path) -> None:
    """A digit on black stays on black when it is moved."""
    image = Image.new("RGB", (48, 48))
    image.paste((255, 255, 255), (18, 18, 30, 30))
    changed = AugmentedSamples(write(tmp_path, [image], PLAIN), Augment(randaugment=12), 0)
    images = [changed[epoch, 0][0] for epoch in range(60)]
    moved = [image for image in images if not np.array_equal(image[0] > 0.5, images[0][0] > 0.5)]
    assert len(moved) > 15 and sum(image[:, 0, 0].max() < 0.2 for image in moved) > 0.8 * len(moved)


# --- batches ---------------------------------------------------------------------------------------------------------


def batch(count: int, side: int = 8) -> tuple[Any, Any]:
    """Image i has the value i everywhere, and the label i."""
    labels = torch.arange(count)
    return labels.float()[:, None, None, None].expand(count, 3, side, side).clone(), labels


@settings(max_examples=60, deadline=None)
@given(per_batch, st.integers(1, 7), st.integers(1, 9), st.integers(-(2**65), 2**65))
def test_a_mixed_batch(augment: Augment, count: int, side: int, seed: int) -> None:
    images, labels = batch(count, side)
    before = generators()
    out, targets = mixed(images, labels, count, augment, seed)
    assert generators() == before
    assert out.shape == images.shape and out.dtype == torch.float32 and out.isfinite().all()
    assert targets.shape == (count, count) and targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    assert ((targets >= 0) & (targets <= 1)).all()
    # What is in the image is what the target says is in it.
    torch.testing.assert_close(out.mean((1, 2, 3)), targets @ labels.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(images, batch(count, side)[0])
    torch.manual_seed(count)
    again = mixed(images, labels, count, augment, seed)
    assert torch.equal(out, again[0]) and torch.equal(targets, again[1])


def test_nothing_switched_on_gives_one_hot_labels() -> None:
    images, labels = batch(4)
    out, targets = mixed(images, labels, 6, Augment(flip=1.0), 0)
    assert out is images and torch.equal(targets, torch.eye(6)[:4])


def test_mixup_blends_and_cutmix_pastes() -> None:
    images, labels = batch(5, 32)
    for seed in range(20):
        blended, targets = mixed(images, labels, 5, Augment(mixup=1.0), seed)
        assert (blended.amax((1, 2, 3)) == blended.amin((1, 2, 3))).all() and (targets.diagonal() < 1).all()
        pasted, _ = mixed(images, labels, 5, Augment(cutmix=1.0), seed)
        assert set(pasted.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    kinds = [bool((mixed(images, labels, 5, Augment(mixup=1, cutmix=1), seed)[0] % 1).any()) for seed in range(60)]
    assert 15 < sum(kinds) < 45


def test_alpha_decides_how_much_is_mixed() -> None:
    images, labels = batch(5)

    def largest(alpha: float) -> float:
        shares = [mixed(images, labels, 5, Augment(mixup=alpha), seed)[1][0].max() for seed in range(50)]
        return float(torch.stack(shares).mean())

    assert largest(0.05) > 0.93 and 0.7 < largest(1.0) < 0.8 and largest(1e4) < 0.51
    with pytest.raises(ValidationError, match="finite"):
        Augment(mixup=math.inf)


def test_targets_may_be_soft_and_images_of_half_precision() -> None:
    images, labels = batch(4)
    soft = torch.nn.functional.one_hot(labels, 4).float()
    one, other = mixed(images, soft, 4, ALL, 3), mixed(images, labels, 4, ALL, 3)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert mixed(images.bfloat16(), labels, 4, ALL, 3)[0].dtype == torch.bfloat16
    assert mixed(images[:0], labels[:0], 4, ALL, 3)[1].shape == (0, 4)


@pytest.mark.parametrize("bad", [-1, 4])
def test_a_label_that_is_no_class(bad: int) -> None:
    images, labels = batch(4)
    labels[2] = bad
    with pytest.raises(DataError, match="with 4 classes they are 0 to 3"):
        mixed(images, labels, 4, ALL, 0)


@pytest.mark.parametrize(
    ("images", "labels"), [((4, 3, 8, 8), (3,)), ((4, 3, 8), (4,)), ((4, 3, 8, 8), (4, 5)), ((4, 3, 8, 8), ())]
)
def test_shapes_that_are_no_batch(images: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises((UsageError, TypeError)):
        mixed(torch.zeros(images), torch.zeros(labels), 4, ALL, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("augment", [Augment(), Augment(mixup=0.4), Augment(cutmix=1.0)])
def test_a_gpu_mixes_the_same(augment: Augment) -> None:
    images, labels = batch(6)
    state = torch.cuda.get_rng_state()
    out, targets = mixed(images.cuda(), labels.cuda(), 6, augment, 1)
    assert out.is_cuda and targets.is_cuda and torch.equal(state, torch.cuda.get_rng_state())
    torch.testing.assert_close((out.cpu(), targets.cpu()), mixed(images, labels, 6, augment, 1))


# --- a sheet to look at ----------------------------------------------------------------------------------------------


def test_a_preview_shows_the_original_first(tmp_path: Path) -> None:
    same = write(tmp_path, [stripes(48, 48)] * 3, PLAIN)
    sheet = np.asarray(preview(same, Augment(flip=1.0), 0, 5, epochs=2))
    assert sheet.shape == (3 * 98, 3 * 98, 3)  # 48 pixels twice, and a border
    tile = sheet[1:97:2, 1:97:2]
    np.testing.assert_array_equal(tile, np.asarray(stripes(48, 48)))
    np.testing.assert_array_equal(sheet[99:195:2, 99:195:2], tile[:, ::-1])


def test_a_preview_is_a_function_of_its_seed_and_mixes(samples: Samples) -> None:
    one, other = (preview(samples, ALL, seed, 4) for seed in (0, 1))
    assert one.tobytes() == preview(samples, ALL, 0, 4).tobytes() != other.tobytes()
    blended = preview(samples, Augment(mixup=1.0), 0, 4).tobytes()
    assert blended != preview(samples, Augment(), 0, 4).tobytes()


def test_previews_of_nothing(samples: Samples) -> None:
    with pytest.raises(DataError, match="no samples to preview"):
        preview(Samples((), CONTRACT), ALL, 0, 3)
    for count, epochs in ((0, 3), (3, 0), (-1, 1)):
        with pytest.raises(UsageError, match="at least 1"):
            preview(samples, ALL, 0, count, epochs=epochs)
