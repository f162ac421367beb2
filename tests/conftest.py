"""A small project that really builds, and the command line as a process: shared by tests/cli and tests/pipeline."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# A law holds however slow the machine is; pytest-timeout ends what hangs.
settings.register_profile("edgetl", deadline=None)
settings.load_profile("edgetl")

SHAPES = {"box": (60, 200, 70), "cross": (60, 80, 220), "disc": (220, 60, 50)}
PER_CLASS = {"train": 40, "val": 10, "test": 34}

CONFIG = """\
schema = 1

[project]
name = "shapes"
version = "1.0.0"

[data]
train = "{data}/train"
val = "{data}/val"
test = "{data}/test"
image_size = 32

[model]
backbone = "timm:test_efficientnet"
weights = "none"

[finetune]
phases = [{{ train = "head", epochs = 2 }}, {{ train = "all", epochs = 10, lr = 5e-3, batchnorm = "train" }}]
batch_size = 16
device = "cpu"

[export]
batch = {{ min = 1, max = 8 }}

[quantize]
samples = 32

[parity]
max_drop = 0.05

[bench]
roofline = false
samples = 20
processes = 1
warmup = 2
threads = 1

[[target]]
device = "x86-64-cpu"
precisions = ["int8", "fp32"]

[[target]]
device = "intel-cpu"
precisions = ["int8", "fp32"]

[[target]]
device = "rtx-pc"
precisions = ["fp16"]

[[target]]
device = "jetson-orin-nano"
precisions = ["int8", "fp16"]
"""


def as_published(document: dict[str, Any]) -> None:
    """Hold what a command printed with ``--json`` against the schema that edgetl publishes for it, if there is one."""
    from edgetl.pipeline import schemas

    name = f"output-{document['kind']}"
    if name in schemas.NAMES and importlib.util.find_spec("jsonschema"):
        import jsonschema

        jsonschema.Draft202012Validator(schemas.schema(name)).validate(document)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command line that ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON on stdout, which must be alone there, and what its published schema says."""
        found = json.loads(self.out)
        as_published(found)
        return found

    @property
    def made(self) -> set[str]:
        """The stages that were not cached."""
        return {line.split()[0] for line in self.err.splitlines() if line.endswith(" s") and ": " in line}

    def failed(self, code: int, *words: str, hint: str = "") -> None:
        """It ended with this code, and its message names the words, carries the hint and is no traceback."""
        assert self.code == code, f"exit code {self.code}, not {code}:\n{self.err}"
        for word in words:
            assert word in self.err, f"{word!r} is not in:\n{self.err}"
        assert "Traceback" not in self.err, self.err
        assert hint in self.err.partition("try: ")[2], f"no hint {hint!r} in:\n{self.err}"


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder with edgetl.toml, ``.edgetl`` and ``dist``."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "edgetl.toml"

    @property
    def store(self) -> Path:
        return self.folder / ".edgetl"

    @property
    def bundle(self) -> Path:
        return self.folder / "dist" / "shapes-1.0.0"

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the bundle."""
        found: dict[str, Any] = json.loads((self.bundle / "manifest.json").read_text(encoding="utf-8"))
        return found

    def edit(self, *changes: tuple[str, str]) -> None:
        """Replace texts in edgetl.toml, each of which must be there; the first occurrence alone."""
        text = self.config.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        self.config.write_text(text, encoding="utf-8")

    def forget(self, *stages: str) -> None:
        """Remove results from the store."""
        for stage in stages:
            shutil.rmtree(self.store / stage)

    def assert_clean(self) -> None:
        """Nothing half-written is in the store or beside the bundle."""
        assert list((self.store / "tmp").iterdir()) == []
        dist = self.folder / "dist"
        assert not dist.exists() or [path.name for path in dist.iterdir()] == ["shapes-1.0.0"]

    def assert_unpublished(self) -> None:
        """Clean, and without any bundle."""
        self.assert_clean()
        assert not self.bundle.exists()


Edgetl = Callable[..., Done]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that two processes (pytest-xdist) end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """What was imported is there to stay: collecting garbage, once per training, need not look through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of pytest-xdist have in common."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def once(folder: Path) -> Iterator[bool]:
    """Whether a folder still has to be made: true for the first process that asks; the others wait until it is there.

    Where making it fails, the next process that asks has to.
    """
    done = folder.with_name(f"{folder.name}.done")
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if done.exists():
            yield False
            return
        shutil.rmtree(folder, ignore_errors=True)
        yield True
        done.touch()


@pytest.fixture(scope="session")
def environment(common: Path) -> dict[str, str]:
    """For processes: no settings of the user's, and one OpenMP thread, because two of them spin on a busy machine."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("EDGETL_")}
    return {
        **mine,
        "XDG_CONFIG_HOME": str(common / "config"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


HEAVY = (
    "typer", "rich.progress", "pydantic", "cryptography.hazmat.primitives.serialization", "numpy", "PIL.Image",
    "safetensors.numpy", "torch", "torch.export", "torch._dynamo", "torch.onnx", "torch.utils.data", "timm",
    "accelerate", "onnx", "onnxscript", "onnxslim", "onnx_ir", "onnxruntime", "openvino", "edgetl.cli.app",
    "edgetl.pipeline.build", "edgetl.pipeline.check", "edgetl.pipeline.own_model", "edgetl.backends.onnxruntime",
)  # fmt: skip
"""What `edgetl build` imports: seconds, once and not for every process. What is not installed is left out."""


@dataclass(frozen=True, kw_only=True)
class Forked:
    """A process of the tests, with what they use of subprocess.Popen."""

    process: BaseProcess
    stderr: TextIO

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float = 240) -> int:
        """Its exit code; the negative number of the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.process.name} did not end in {timeout} s")
        return self.process.exitcode

    def communicate(self, timeout: float = 240) -> tuple[None, str]:
        """What it writes to stderr, to its end."""
        said = self.stderr.read()
        self.wait(timeout)
        return None, said

    def send_signal(self, number: int) -> None:
        if self.process.pid is not None and self.process.exitcode is None:
            os.kill(self.process.pid, number)


@pytest.fixture(scope="session")
def fork(environment: dict[str, str], common: Path) -> Iterator[Callable[..., Forked]]:
    """Start ``python -m edgetl``, or a script, in a process that is forked from one with :data:`HEAVY` imported.

    A process of its own as any other, to be looked at from outside and killed, but it need not import for seconds what
    the one before it has imported.
    """
    begun: list[Forked] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(HEAVY))
    mine = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(environment)  # some libraries read it when they are imported
        from multiprocessing.forkserver import ensure_running

        ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(mine)

    def start(
        arguments: Sequence[str | Path],
        *,
        program: str = "edgetl",
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        out: Path | str = os.devnull,
    ) -> Forked:
        reader, writer = context.Pipe(duplex=False)
        asked = {
            "program": program,
            "arguments": [str(each) for each in arguments],
            "environment": {**environment, **(env or {})},
            "folder": str(folder or common),
            "out": str(out),
            "err": writer,
        }
        script = str(Path(__file__).with_name("forked.py"))
        process = context.Process(target=runpy.run_path, args=(script, {"asked": asked}, "forked"))
        process.start()
        writer.close()
        with reader:
            forked = Forked(process=process, stderr=os.fdopen(os.dup(reader.fileno()), encoding="utf-8"))
        begun.append(forked)
        return forked

    yield start
    for forked in begun:
        if forked.process.is_alive():
            forked.process.kill()


@pytest.fixture(scope="session")
def edgetl(
    environment: dict[str, str], fork: Callable[..., Forked], tmp_path_factory: pytest.TempPathFactory
) -> Edgetl:
    """Run ``python -m edgetl`` with some arguments, and wait for it.

    Forked where that makes no difference: a Python with arguments of its own, or with a path of its own to find modules
    on, is a new one; and so is any with ``new=True``.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        python: tuple[str, ...] = (),
        new: bool = False,
    ) -> Done:
        if new or python or "PYTHONPATH" in (env or {}):
            done = subprocess.run(
                [sys.executable, *python, "-m", "edgetl", *map(str, arguments)],
                env={**environment, **(env or {})},
                cwd=cwd or elsewhere,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            return Done(code=done.returncode, out=done.stdout, err=done.stderr)
        out = elsewhere / "stdout"
        out.unlink(missing_ok=True)
        with (forked := fork(arguments, env=env, folder=cwd or elsewhere, out=out)).stderr:
            _, err = forked.communicate()
        return Done(code=forked.wait(), out=out.read_text(encoding="utf-8"), err=err)

    return run


@pytest.fixture(scope="session")
def start(fork: Callable[..., Forked]) -> Callable[..., Forked]:
    """Start ``python -m edgetl`` and return at once."""
    return lambda *arguments: fork(arguments)


def draw_shape(kind: str, generator: np.random.Generator, size: int = 32) -> Image.Image:
    """A coloured shape on noise."""
    y, x = np.mgrid[:size, :size]
    cy, cx = generator.uniform(12, 20, 2)
    radius = generator.uniform(6, 10)
    inside = {
        "box": (abs(y - cy) < 0.8 * radius) & (abs(x - cx) < 0.8 * radius),
        "cross": ((abs(y - cy) < 2.5) & (abs(x - cx) < radius)) | ((abs(x - cx) < 2.5) & (abs(y - cy) < radius)),
        "disc": (y - cy) ** 2 + (x - cx) ** 2 < radius**2,
    }[kind]
    pixels = generator.normal(110, 25, (size, size, 3))
    pixels[inside] = np.asarray(SHAPES[kind]) + generator.normal(0, 20, (int(inside.sum()), 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def shapes(common: Path) -> Path:
    """Images of three classes in train, val and test; not to be changed."""
    folder = common / "shapes"
    with once(folder) as to_make:
        if to_make:
            generator = np.random.default_rng(7)
            for split, count in PER_CLASS.items():
                for kind in SHAPES:
                    place = folder / split / kind
                    place.mkdir(parents=True)
                    for number in range(count):
                        draw_shape(kind, generator).save(place / f"{number:03}.png")
    return folder


@pytest.fixture(scope="session")
def example(common: Path) -> Callable[[str], Path]:
    """The table or manifest of an example by its name, written once for all processes; not to be changed."""

    def find(name: str) -> Path:
        from edgetl.pipeline import start

        folder = common / f"example-{name}"
        with once(folder) as to_make:
            if to_make:
                start.init(folder, name)
        [path] = (folder / "data").glob("*.csv")
        return path

    return find


@pytest.fixture(scope="session")
def make_project(shapes: Path) -> Callable[..., Project]:
    """Write edgetl.toml into a new folder; nothing is built."""

    def make(folder: Path, data: Path | None = None) -> Project:
        folder.mkdir(parents=True)
        (folder / "edgetl.toml").write_text(CONFIG.format(data=data or shapes), encoding="utf-8")
        return Project(folder=folder)

    return make


@pytest.fixture(scope="session")
def first_build(
    edgetl: Edgetl, make_project: Callable[..., Project], common: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, Done]:
    """The small project, built once for all tests, and what its command line said; not to be changed.

    The processes of pytest-xdist that come later have a copy of its store, and a bundle of their own.
    """
    project = Project(folder=common / "built" / "project")
    with once(project.folder.parent) as to_make:
        if to_make:
            done = edgetl("build", make_project(project.folder).folder, "--json", new=True)
            assert done.code == 0, done.err
            return project, done
    mine = Project(folder=tmp_path_factory.mktemp("built") / "project")
    shutil.copytree(project.folder, mine.folder, ignore=shutil.ignore_patterns("dist", "tmp"))
    done = edgetl("build", mine.folder, "--json")
    assert done.code == 0 and done.made <= {"bundle"}, done.err
    return mine, done


@pytest.fixture(scope="session")
def built(first_build: tuple[Project, Done]) -> Project:
    """The small project, built; not to be changed."""
    return first_build[0]


@pytest.fixture
def variant(built: Project, tmp_path: Path) -> Project:
    """The built project with a store of its own, without its bundle."""
    project = Project(folder=tmp_path / "variant")
    shutil.copytree(built.folder, project.folder, ignore=shutil.ignore_patterns("dist"))
    return project


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system with some options; skipped where that is not allowed."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mount{len(made)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("mounting a file system needs root")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", "--lazy", str(place)], check=False)
