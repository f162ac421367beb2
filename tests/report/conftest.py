"""Reports to render: one of a good day, one of a bad one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgetl.report import model


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    """``sample.py``: reports, and what replaces their texts and numbers."""
    spec = importlib.util.spec_from_file_location("edgetl_report_samples", Path(__file__).with_name("sample.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def good(sample: ModuleType) -> model.Report:
    report: model.Report = sample.sample_report()
    return report


@pytest.fixture(scope="session")
def bad(sample: ModuleType) -> model.Report:
    report: model.Report = sample.failed_report()
    return report
