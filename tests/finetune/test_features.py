"""Features of a frozen backbone: the engines that compute them, the choice between them, and their files."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from edgetl.errors import DataError, ModelError, UsageError  # noqa: E402
from edgetl.finetune import features as stage  # noqa: E402
from edgetl.finetune.features import TorchExtractor, body_of, fastest, read, write  # noqa: E402

WIDTH = 12


def network(seed: int = 0) -> nn.Sequential:
    """Convolution, BatchNorm with statistics of its own, pool, a hidden layer and a head behind dropout."""
    torch.manual_seed(seed)
    module = nn.Sequential()
    module.add_module("stem", nn.Conv2d(3, 8, 3, stride=2))
    module.add_module("norm", nn.BatchNorm2d(8))
    module.add_module("act", nn.ReLU())
    module.add_module("pool", nn.AdaptiveAvgPool2d(1))
    module.add_module("flat", nn.Flatten())
    module.add_module("hidden", nn.Linear(8, WIDTH))
    module.add_module("drop", nn.Dropout(0.5))
    module.add_module("head", nn.Linear(WIDTH, 3))
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2.0)
    return module


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16), dtype=np.float32)


def batches(count: int, size: int, views: int = 1, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    labels = np.arange(count) % 3
    for view in range(views):
        found = images(count, seed + view)
        for start in range(0, count, size):
            yield found[start : start + size], labels[start : start + size]


def straight(module: nn.Sequential, inputs: np.ndarray) -> np.ndarray:
    """What the layers before the head say, one after the other."""
    with torch.no_grad():
        return module.eval()[:-2](torch.from_numpy(inputs)).numpy()


class Fixed:
    """An extractor of known answers: sums of pixels, times a factor, after some work."""

    def __init__(self, name: str, factor: float = 1.0, work: int = 0) -> None:
        self.name, self.factor, self.work = name, factor, work

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        side = np.ones((300, 300))
        for _ in range(self.work):
            side @ side
        return (inputs.sum((2, 3)) * self.factor).astype(np.float32)


class TestTorchExtractor:
    def test_features_are_what_the_head_is_fed(self) -> None:
        module = network()
        found = TorchExtractor(module, "head")(images(5))
        assert found.dtype == np.float32
        assert stage.difference(found, straight(module, images(5))) < 1e-5

    def test_the_network_is_not_changed(self) -> None:
        module = network().train()
        module.requires_grad_(True)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        TorchExtractor(module, "head")(images(5))
        assert module.training and module.norm.training
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        assert not module.head._forward_pre_hooks

    def test_autocast_around_it_changes_nothing(self) -> None:
        extractor = TorchExtractor(network(), "head")
        alone = extractor(images(4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert np.array_equal(extractor(images(4)), alone)

    @pytest.mark.parametrize("head", ["", "classifier", "heads"])
    def test_a_head_that_is_not_there_is_named(self, head: str) -> None:
        with pytest.raises(ModelError, match=r"no module '.*' to be its head; its last modules are hidden, drop, head"):
            TorchExtractor(network(), head)

    def test_a_head_that_is_fed_maps_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"fed one tensor \(n, width\) per image; it is fed \[\[2, 8, 7, 7\]\]"):
            TorchExtractor(network(), "norm")(images(2))

    def test_a_head_that_runs_twice_or_never_is_refused(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head, self.idle = nn.Flatten(), nn.Linear(768, 768), nn.Linear(2, 2)

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return self.head(self.head(self.body(inputs)))

        with pytest.raises(ModelError, match="should be fed one tensor"):
            TorchExtractor(Twice(), "head")(images(2))
        with pytest.raises(ModelError, match=r"it is fed \[\]"):
            TorchExtractor(Twice(), "idle")(images(2))

    @pytest.mark.parametrize("wrong", [images(2).astype(np.float64), images(2)[0], images(0), images(2).astype("u1")])
    def test_images_of_another_kind_are_refused(self, wrong: np.ndarray) -> None:
        with pytest.raises(UsageError, match="images are float32"):
            TorchExtractor(network(), "head")(wrong)

    def test_what_stands_behind_the_head_does_not_matter(self) -> None:
        module = network()
        longer = nn.Sequential(module, nn.Softmax(dim=1))
        assert np.array_equal(TorchExtractor(longer, "0.head")(images(3)), TorchExtractor(module, "head")(images(3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
def test_on_a_gpu_features_are_the_cpus() -> None:
    module = network()
    found = TorchExtractor(module, "head", device="cuda")(images(33))
    assert stage.difference(found, TorchExtractor(module, "head")(images(33))) < 1e-4
    assert next(module.parameters()).device.type == "cpu"


class TestDifference:
    def test_it_is_relative_to_the_root_mean_square(self) -> None:
        expected = np.full((2, 2), 2.0, np.float32)
        assert stage.difference(expected + np.float32(0.5), expected) == pytest.approx(0.25)
        assert stage.difference(expected, expected) == 0.0

    def test_what_cannot_be_compared_is_never_small(self) -> None:
        zero, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
        assert stage.difference(zero, zero) == 0.0
        assert stage.difference(one, zero) == np.inf
        assert not stage.difference(one * np.float32("nan"), one) <= 1e9
        assert not stage.difference(one * np.float32("inf"), one) <= 1e9
        with pytest.raises(ModelError, match=r"the shape \[1, 2\], not \[2, 2\]"):
            stage.difference(one, np.ones((2, 2), np.float32))


class TestChoice:
    def test_the_fastest_that_is_the_same_is_taken(self) -> None:
        slow, quick = Fixed("slow", work=30), Fixed("quick")
        choice = fastest([slow, quick, Fixed("wrong", factor=1.01)], images(8), slow(images(8)))
        assert choice.name == "quick"
        assert set(choice.images_per_s) == {"slow", "quick"}
        assert choice.images_per_s["quick"] > choice.images_per_s["slow"] > 0
        assert choice.differences["quick"] == 0.0
        assert choice.differences["wrong"] > stage.TOLERANCE
        assert "differ from PyTorch's by" in choice.refused["wrong"]
        assert json.loads(json.dumps(choice.to_json(), allow_nan=False))["name"] == "quick"

    def test_another_networks_features_are_refused(self) -> None:
        reference = TorchExtractor(network(0), "head")
        expected = reference(images(8))
        with pytest.raises(ModelError, match="no engine computes the backbone's features"):
            fastest([TorchExtractor(network(1), "head")], images(8), expected)

    def test_bfloat16_is_refused(self) -> None:
        class Half(Fixed):
            def __call__(self, inputs: np.ndarray) -> np.ndarray:
                with torch.no_grad():
                    body = body_of(network().eval().bfloat16(), "head")
                    return body(torch.from_numpy(inputs).bfloat16()).float().numpy()

        reference = TorchExtractor(network(), "head")
        choice = fastest([reference, Half("half")], images(8), reference(images(8)))
        assert choice.name == "torch"
        assert set(choice.refused) == {"half"}

    def test_other_shapes_and_nan_are_refused_with_a_record_that_is_json(self) -> None:
        class Cut(Fixed):
            def __call__(self, inputs: np.ndarray) -> np.ndarray:
                return super().__call__(inputs)[:, :2]

        good = Fixed("good")
        choice = fastest([good, Cut("cut"), Fixed("nan", factor=float("nan"))], images(4), good(images(4)))
        assert choice.refused["cut"] == "features have the shape [4, 2], not [4, 3]"
        assert "nan" in choice.refused and "nan" not in choice.differences
        json.dumps(choice.to_json(), allow_nan=False)

    def test_a_reference_that_is_not_finite_is_the_networks_fault(self) -> None:
        with pytest.raises(ModelError, match="NaN or infinite"):
            fastest([Fixed("a")], images(4), np.full((4, 3), np.nan, np.float32))

    def test_nobody_and_no_rounds_are_refused(self) -> None:
        with pytest.raises(ModelError, match="none was given"):
            fastest([], images(4), np.ones((4, 3), np.float32))
        with pytest.raises(UsageError, match="at least 1"):
            fastest([Fixed("a")], images(4), np.ones((4, 3), np.float32), rounds=0)


class TestFiles:
    @pytest.mark.parametrize(("count", "size", "views"), [(10, 4, 1), (10, 4, 3), (3, 8, 2), (1, 1, 1)])
    def test_what_is_written_is_read(self, tmp_path: Path, count: int, size: int, views: int) -> None:
        extractor = TorchExtractor(network(), "head")
        told: list[tuple[str, int, int]] = []
        write(
            tmp_path, batches(count, size, views), extractor, count=count, views=views, facts={"why": "test"},
            progress=lambda *step: told.append(step), what="features of train",
        )  # fmt: skip
        found = read(tmp_path)
        assert isinstance(found.values, np.memmap) and not found.values.flags.writeable
        assert found.values.dtype == np.float32 and found.values.shape == (views, count, WIDTH)
        for view in range(views):
            assert np.allclose(found.values[view], extractor(images(count, view)), atol=1e-6)
        assert found.labels.tolist() == [index % 3 for index in range(count)]
        assert told[-1] == ("features of train", count * views, count * views)
        facts = json.loads((tmp_path / stage.FACTS).read_text())
        assert (facts["engine"], facts["shape"], facts["why"]) == ("torch", [views, count, WIDTH], "test")

    def test_batches_may_straddle_views(self, tmp_path: Path) -> None:
        whole = [pair for view in range(3) for pair in batches(5, 1, seed=view)]
        pixels, labels = np.concatenate([a for a, _ in whole]), np.concatenate([b for _, b in whole])
        odd = [(pixels[i : i + 4], labels[i : i + 4]) for i in range(0, 15, 4)]
        found = write(tmp_path, odd, Fixed("sum"), count=5, views=3)
        assert np.allclose(found.values.reshape(15, 3), pixels.sum((2, 3)))
        assert found.labels.tolist() == [0, 1, 2, 0, 1]

    def test_labels_of_several_classes_each_are_kept(self, tmp_path: Path) -> None:
        many = np.eye(4, dtype=np.float32)
        found = write(tmp_path, [(images(4), many)], Fixed("sum"), count=4)
        assert np.array_equal(found.labels, many) and found.labels.dtype == np.float32

    def test_memory_holds_one_batch(self, tmp_path: Path) -> None:
        """3,000 × 3,000 float32 are 36 MB; a batch of 20 is 0.24 MB."""

        class Wide(Fixed):
            def __call__(self, inputs: np.ndarray) -> np.ndarray:
                return np.repeat(inputs[:, 0, 0, :1], 3000, axis=1)

        def stream() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for _ in range(150):
                yield np.ones((20, 3, 4, 4), np.float32), np.zeros(20, np.int64)

        tracemalloc.start()
        try:
            found = write(tmp_path, stream(), Wide("wide"), count=3000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert found.values.nbytes == 36_000_000
        assert peak < 4_000_000

    @pytest.mark.parametrize(
        ("given_count", "given_views", "announced", "views", "words"),
        [
            (8, 1, 9, 1, "hold 8 samples; 9 in 1 views"),
            (8, 1, 7, 1, "more than the 7 samples"),
            (8, 1, 8, 2, "hold 8 samples; 8 in 2 views"),
            (8, 3, 8, 2, "more than the 8 samples in 2 views"),
            (8, 1, 0, 1, "no features to compute"),
            (8, 1, 8, 0, "no features to compute"),
        ],
    )
    def test_another_number_of_samples_is_refused(
        self, tmp_path: Path, given_count: int, given_views: int, announced: int, views: int, words: str
    ) -> None:
        with pytest.raises(DataError, match=words):
            write(tmp_path, batches(given_count, 3, given_views), Fixed("sum"), count=announced, views=views)

    def test_views_in_another_order_are_refused(self, tmp_path: Path) -> None:
        labels = np.arange(6)
        with pytest.raises(DataError, match="labels in view 1 are not those of view 0"):
            write(tmp_path, [(images(6), labels), (images(6), labels[::-1])], Fixed("sum"), count=6, views=2)

    def test_features_that_are_none_are_refused(self, tmp_path: Path) -> None:
        class Odd(Fixed):
            def __call__(self, inputs: np.ndarray) -> np.ndarray:
                return super().__call__(inputs)[:, : len(inputs)]

        with pytest.raises(ModelError, match="NaN or infinite"):
            write(tmp_path, batches(4, 2), Fixed("sum", factor=float("inf")), count=4)
        with pytest.raises(ModelError, match=r"returned float32\[1, 1\] as features, not float32\[1, 2\]"):
            write(tmp_path, batches(3, 2), Odd("odd"), count=3)

    def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(self, mounted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        class Wide(Fixed):
            def __call__(self, inputs: np.ndarray) -> np.ndarray:
                return np.ones((len(inputs), 100_000), np.float32)

        with pytest.raises(OSError, match="No space left"):
            write(mounted("size=1m"), batches(40, 4), Wide("wide"), count=40)

    def test_a_folder_without_features_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not hold whole features") as caught:
            read(tmp_path)
        assert caught.value.hint == "edgetl build --force features"

    @pytest.mark.parametrize("name", [stage.FEATURES, stage.LABELS, stage.FACTS])
    @pytest.mark.parametrize("damage", ["gone", "empty", "text", "short", "long"])
    def test_damaged_files_are_refused(self, tmp_path: Path, name: str, damage: str) -> None:
        write(tmp_path, batches(6, 3), Fixed("sum"), count=6)
        path = tmp_path / name
        whole = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            changed = {"empty": b"", "text": b"[1]", "short": whole[:-5], "long": whole + b"\0"}
            path.write_bytes(changed[damage])
        with pytest.raises(DataError):
            read(tmp_path)

    def test_labels_of_another_split_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path, batches(6, 3), Fixed("sum"), count=6)
        np.save(tmp_path / stage.LABELS, np.arange(5))
        with pytest.raises(DataError, match="not what was written with"):
            read(tmp_path)

    def test_pickles_are_never_loaded(self, tmp_path: Path) -> None:
        write(tmp_path, batches(6, 3), Fixed("sum"), count=6)
        np.save(tmp_path / stage.LABELS, np.array([{}] * 6, dtype=object), allow_pickle=True)
        with pytest.raises(DataError):
            read(tmp_path)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.integers(0, 127), value=st.integers(0, 255), cut=st.integers(0, 200))
    def test_a_damaged_header_is_refused_or_harmless(self, tmp_path: Path, place: int, value: int, cut: int) -> None:
        """One byte of the header changed: the same numbers, or a refusal. Cut anywhere: a refusal."""
        found = write(tmp_path, batches(6, 3), Fixed("sum"), count=6)
        expected, path = np.array(found.values), tmp_path / stage.FEATURES
        del found  # its map would see the changes
        whole = bytearray(path.read_bytes())
        path.write_bytes(whole[:cut] if cut < len(whole) else whole[:-1])
        with pytest.raises(DataError):
            read(tmp_path)
        whole[place] = value
        path.write_bytes(whole)
        try:
            again = read(tmp_path)
        except DataError:
            return
        assert np.array_equal(again.values, expected)


def train_head(source: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, 3)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(5):
        loss = nn.functional.cross_entropy(head(torch.from_numpy(np.array(source))), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.weight.detach()


def test_a_head_trained_on_the_files_is_the_one_trained_on_computed_features(tmp_path: Path) -> None:
    extractor = TorchExtractor(network(), "head")
    found = write(tmp_path, batches(24, 8), extractor, count=24)
    computed = np.concatenate([extractor(inputs) for inputs, _ in batches(24, 8)])
    assert torch.equal(train_head(found.values[0], found.labels), train_head(computed, found.labels))
