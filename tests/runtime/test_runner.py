from __future__ import annotations

import contextlib
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import UsageError
from edgetl.runtime.runner import FeedsCheck, TensorSpec, check_feeds

INPUTS = (
    TensorSpec(name="x", shape=("n", 3), dtype="float32"),
    TensorSpec(name="ids", shape=("n", "tokens"), dtype="int64"),
)


def feeds() -> dict[str, np.ndarray]:
    return {"x": np.zeros((2, 3), np.float32), "ids": np.zeros((2, 5), np.int64)}


def refused(check: FeedsCheck, given: dict[str, np.ndarray]) -> bool:
    """Whether it refuses them, as the check without a memory does."""
    try:
        check_feeds(given, INPUTS)
        expected = False
    except UsageError:
        expected = True
    if expected:
        with pytest.raises(UsageError):
            check(given)
    else:
        check(given)
    return expected


class TestFeedsCheck:
    @given(
        st.lists(st.sampled_from(["same", "new", "shape", "dtype", "missing", "other", "more", "values"]), max_size=8)
    )
    def test_whatever_came_before_it_says_what_a_check_says(self, changes: list[str]) -> None:
        check, current = FeedsCheck(INPUTS), feeds()
        check(current)
        for change in changes:
            if change == "new":
                current = feeds()
            elif change == "shape":  # of the very array that was checked
                current["x"].shape = (3, 2) if current["x"].shape == (2, 3) else (2, 3)
            elif change == "dtype":
                current["x"].dtype = np.int32 if current["x"].dtype == np.float32 else np.float32
            elif change == "values":
                current["x"].flat[0] += 1
            given = dict(current)
            if change == "missing":
                del given["ids"]
            elif change == "other":
                given["y"] = given.pop("ids")
            elif change == "more":
                given["y"] = given["x"]
            refused(check, given)
            refused(check, current)

    def test_no_array_lives_longer(self) -> None:
        check, given = FeedsCheck(INPUTS), feeds()
        check(given)
        there = weakref.ref(given["x"])
        del given
        gc.collect()
        assert there() is None
        check(feeds())

    def test_threads_with_arrays_of_their_own(self) -> None:
        """An engine may be shared: what one thread had checked says nothing of another's arrays."""
        check = FeedsCheck(INPUTS)

        def right() -> None:
            given = feeds()
            for turn in range(3000):
                check(given if turn % 3 else feeds())

        def refused_always() -> int:
            given = {"x": np.zeros((2, 4), np.float32), "ids": np.zeros((2, 5), np.int64)}
            count = 0
            for _ in range(3000):
                with contextlib.suppress(UsageError):
                    check(given)
                    count += 1
            return count

        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(right) for _ in range(3)]
            wrong = pool.submit(refused_always).result()
            for other in others:
                other.result()
        assert wrong == 0

    def test_an_engine_without_inputs(self) -> None:
        check = FeedsCheck(())
        check({})
        check({})
        with pytest.raises(UsageError, match="given were"):
            check({"x": np.zeros(1)})

    def test_a_scalar_of_numpy(self) -> None:
        check = FeedsCheck((TensorSpec(name="x", shape=(), dtype="float32"),))
        for _ in range(2):
            check({"x": np.float32(1)})  # type: ignore[dict-item]
        with pytest.raises(UsageError):
            check({"x": np.float64(1)})  # type: ignore[dict-item]
