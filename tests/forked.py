"""What a process of the tests does that was forked from one in which the heavy libraries are imported already.

Run by :func:`runpy.run_path` with the global ``asked``; see ``fork`` in conftest.py. It becomes ``python -m edgetl``,
or a script, as if a shell had started it: with its own arguments, environment, folder, output and answer to Ctrl-C.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

asked: dict[str, Any] = globals()["asked"]

gc.freeze()  # the libraries are there to stay, and memory that is not looked through is not copied

os.environ.clear()
os.environ.update(asked["environment"])
os.chdir(asked["folder"])
for number, place in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
    opened = place.fileno() if hasattr(place, "fileno") else os.open(place, os.O_RDWR | os.O_CREAT)
    os.dup2(opened, number)
sys.stdin, sys.stdout, sys.stderr = (
    open(number, mode, encoding="utf-8", errors=errors, buffering=1, closefd=False)  # noqa: SIM115
    for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which the workers of pytest-xdist ignore
program = asked["program"]
sys.argv = [program, *asked["arguments"]]
if program == "edgetl":
    runpy.run_module(program, run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")
