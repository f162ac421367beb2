from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.data.dataset import Sample
from edgetl.data.leaks import check_groups, check_leaks
from edgetl.errors import LeakError


def samples(split: str, digests: str, group: str | None = None) -> list[Sample]:
    return [Sample(Path(f"/{split}/{n}.png"), 0, group, digest) for n, digest in enumerate(digests)]


def test_distinct_content_passes_and_copies_inside_a_split_too() -> None:
    check_leaks({"train": samples("train", "aabc"), "val": samples("val", "d"), "test": samples("test", "ee")})


def test_a_pair_is_named_by_both_paths() -> None:
    with pytest.raises(LeakError) as error:
        check_leaks({"train": samples("train", "abc"), "val": samples("val", "d"), "test": samples("test", "xb")})
    assert error.value.exit_code == 3
    assert "1 pair of images" in error.value.message
    assert "train: /train/1.png" in error.value.message and "test: /test/1.png" in error.value.message


def test_ten_pairs_are_named_and_all_are_counted() -> None:
    with pytest.raises(LeakError) as error:
        check_leaks({"train": samples("train", "aaaa"), "val": samples("val", "aaa"), "test": samples("test", "a")})
    assert "19 pairs of images" in error.value.message  # 4·3 + 4·1 + 3·1
    assert error.value.message.count("  train: ") + error.value.message.count("  val: ") == 10 + 10
    assert "and 9 more" in error.value.message


@pytest.mark.parametrize("allowed", [("train", "calibration"), ("calibration", "train")])
def test_calibration_may_come_from_train_alone(allowed: tuple[str, str]) -> None:
    named = {"train": samples("train", "abc"), "test": samples("test", "d"), "calibration": samples("c", "ab")}
    check_leaks(named, [allowed])
    with pytest.raises(LeakError, match="2 pairs"):
        check_leaks(named)
    with pytest.raises(LeakError, match="1 pair "):
        check_leaks({**named, "calibration": samples("c", "abd")}, [allowed])


def test_a_group_in_two_splits() -> None:
    check_groups({"train": samples("train", "ab"), "test": samples("test", "cd")})
    check_groups({"train": samples("train", "ab", "p1"), "test": samples("test", "cd", "p2")})
    with pytest.raises(LeakError, match=r"1 group stands in two splits:\n  'p1' in train and test"):
        check_groups({"train": samples("train", "ab", "p1"), "test": samples("test", "cd", "p1")})
