from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_help_lists_the_rows() -> None:
    """Names of rows have percent signs, which argparse took for places to fill: --help ended with a traceback."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "coverage.py", "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "AUC, 5% positive" in " ".join(done.stdout.split())
