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


def test_statistics_are_kept_for_a_model_its_samples_in_any_order_and_preprocessing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key(
        samples: str = "abc", model: str = "m", preprocessing: str = "p", device: str = "cpu", memory_mb: int = 512
    ) -> dict[str, Any]:
        drawn = tuple(SimpleNamespace(digest=digest) for digest in samples)
        deploy = SimpleNamespace(preprocessing=SimpleNamespace(digest=lambda: preprocessing))
        monkeypatch.setattr(precisions, "calibration_samples", lambda *_: drawn)
        monkeypatch.setattr(precisions, "read_deploy", lambda _: deploy)
        seen: list[dict[str, Any]] = []
        quantize = SimpleNamespace(device=device, memory_mb=memory_mb)
        session: Any = SimpleNamespace(
            config=SimpleNamespace(quantize=quantize), stage=lambda *given: seen.append(given[2])
        )
        artifact: Any = SimpleNamespace(digest=model, folder=Path())
        precisions.calibrate(session, artifact, artifact, artifact)
        return seen[0]

    plain = key()
    assert key("cab") == plain and key(memory_mb=64) == plain, "neither changes a bit of them"
    others = [key("abd"), key("ab"), key("abcc"), key(model="n"), key(preprocessing="q"), key(device="cuda")]
    assert plain not in others and all(others.count(other) == 1 for other in others)
