"""python -m edgetl, and the console script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    from edgetl.cli.app import run
    from edgetl.cli.terminal import open_streams

    open_streams()
    code = run(sys.argv[1:])
    # Where an interruption came up within an exec() (modules with dataclasses have them), `python -m` ends by SIGINT,
    # though it was handled, and not with this code; the next exec() makes Python forget it.
    exec("")
    sys.exit(code)


if __name__ == "__main__":
    main()
