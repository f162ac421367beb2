"""What is inside a model, and what is on this machine."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from edgetl.errors import EdgetlError
from edgetl.pipeline import describe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def _extras() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    return found


def test_the_extras_are_those_of_pyproject() -> None:
    """doctor lists what an extra installs; cuda-python and the fallback of ort-gpu are not what one looks for."""
    declared = {
        extra: {re.split(r"[\s<>=!~;\[]", requirement)[0] for requirement in requirements}
        for extra, requirements in _extras().items()
        if extra not in ("all", "dev")
    }
    assert set(describe.EXTRAS) == set(declared)
    for extra, names in describe.EXTRAS.items():
        assert set(names) <= declared[extra], extra
        assert declared[extra] - set(names) <= {"cuda-python", "onnxruntime"}, extra


def test_every_extra_that_a_backend_names_exists() -> None:
    from edgetl import backends

    assert {backends.backend(name).extra for name in backends.names()} <= set(_extras())


def test_all_leaves_out_what_needs_nvidias_own_index() -> None:
    (everything,) = _extras()["all"]
    inside = set(re.findall(r"[\w-]+", everything.split("[", 1)[1]))
    assert inside == set(describe.EXTRAS) - {"tensorrt", "ort"}  # ort and ort-gpu must not be installed together


def test_this_machine_is_plain_json() -> None:
    found = describe.describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert set(found["extras"]) == set(describe.EXTRAS)
    assert found["targets"]


@pytest.mark.parametrize("content", [b"", b"garbage" * 20])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("onnx_ir")
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(EdgetlError) as caught:
        describe.describe_model(tmp_path / "m.onnx")
    assert caught.value.exit_code == 2
