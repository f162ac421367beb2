"""Bundles for tests of diagnosis: what makes them stands beside them, in sealed.py, and needs what makes engines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sealed import Parts, Seal

FOLDER = str(Path(__file__).parent)
if FOLDER not in sys.path:
    sys.path.append(FOLDER)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    import sealed

    return sealed.make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def seal(parts: Parts, tmp_path: Path) -> Seal:
    """A function that makes a bundle of one engine, which a defect may have been put into."""
    import sealed

    return sealed.sealer(parts, tmp_path)
