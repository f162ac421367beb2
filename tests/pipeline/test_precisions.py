from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetl.pipeline import precisions

SMOOTHED = """schema = 1
description = "smoothed"
smoothing = "search"
[activations]
method = "mse"
[weights]
method = "mse"
"""


def test_a_changed_graph_is_kept_for_the_recipe_that_judged_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "calibration_samples", lambda *_: ())
    monkeypatch.setattr(precisions, "_calibration_inputs", lambda *_: {})
    artifact: Any = SimpleNamespace(digest="a")

    def key(recipe: str) -> dict[str, Any]:
        path = tmp_path / "mine.toml"
        path.write_text(recipe)
        seen: list[dict[str, Any]] = []
        config = SimpleNamespace(quantize=SimpleNamespace(recipe=str(path)))
        session: Any = SimpleNamespace(config=config, stage=lambda *given: seen.append(given[2]))
        precisions.equalize(session, artifact, artifact, artifact, artifact)
        return seen[0]

    plain = key(SMOOTHED)
    assert key(SMOOTHED) == plain
    for other in (
        SMOOTHED.replace('smoothing = "search"', 'smoothing = "search"\nkeep_float = ["Gemm"]'),
        SMOOTHED.replace('smoothing = "search"', 'smoothing = "search"\noutlier_channels = "search"'),
        SMOOTHED.replace('method = "mse"', 'method = "minmax"', 1),
    ):
        assert key(other) != plain
