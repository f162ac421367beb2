"""From an opened engine to what a scenario calls."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from edgetl.benchmark.scenarios import Issue
from edgetl.errors import UsageError
from edgetl.runtime.preprocessing import Array
from edgetl.runtime.runner import Runner, run_batch


def issue_of(runner: Runner, inputs: Array, *, smallest: int = 1, largest: int | None = None) -> Issue:
    """Answer queries with an engine, a batch at a time.

    Args:
        runner: With one input, whose leading dimension is the batch; it stays open as long as queries come.
        inputs: All samples, shape (n, ...), in the input's dtype; a query's indices are their places.
        smallest: The smallest batch that the engine takes, where its shape does not tell.
        largest: The largest; None: any. A query of more samples takes several calls.

    Returns:
        For :func:`edgetl.benchmark.scenarios.run` and :func:`edgetl.benchmark.loadgen.run_loadgen`. Samples of a larger
        query are gathered into a batch while its time runs, for so they would be on a device.

    Raises:
        UsageError: There is no sample, or the engine has several inputs.
    """
    if len(runner.inputs) != 1:
        raise UsageError(f"the engine has {len(runner.inputs)} inputs; scenarios are for engines of one")
    if not len(inputs):
        raise UsageError("a scenario needs at least one sample")
    name, fixed = runner.inputs[0].name, runner.inputs[0].shape[0]
    most = fixed if isinstance(fixed, int) else (largest or sys.maxsize)
    one_by_one = smallest == 1 if isinstance(fixed, str) else fixed == 1
    feeds = [{name: np.ascontiguousarray(inputs[at : at + 1])} for at in range(len(inputs))]

    def issue(indices: Sequence[int]) -> object:
        if one_by_one and len(indices) == 1:
            return runner.run(feeds[indices[0]])
        for at in range(0, len(indices), most):
            run_batch(runner, inputs[list(indices[at : at + most])], smallest=smallest)
        return None

    return issue
