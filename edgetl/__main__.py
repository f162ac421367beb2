"""python -m edgetl, and the console script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    from edgetl.cli.app import run
    from edgetl.cli.terminal import open_streams

    open_streams()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
