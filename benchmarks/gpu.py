"""The GPU half of a build, on real digits: training, parity and latency of every engine that runs on this GPU.

    python benchmarks/gpu.py                          # on a machine with an NVIDIA GPU; `make gpu-check` runs it
    python benchmarks/gpu.py --target x86-64-vnni     # the same path without one
    python benchmarks/gpu.py --config my/edgetl.toml  # a project of yours instead of the digits
    PYTHONPATH=. python3 benchmarks/gpu.py            # with the packages that are there, where none can be installed

Fine-tunes, exports, compiles and proves as `edgetl build` does, for ONNX Runtime's CUDA provider, TensorRT-RTX and,
where it is installed, TensorRT, beside the processor. Then every engine that was shipped and runs on the GPU (without
one: here) is queried in scenarios, timed stage by stage, and looked into layer by layer. Parity, latencies, conditions,
energy, ceilings and training throughput are written into benchmarks/results/<gpu>.json, after every part anew: what
fails, hangs or has no time left costs its own figures alone, and is named under "failures".

A target whose library is not installed, and an engine that cannot be built here, are left out with their reasons. A
build whose gates refuse its engines leaves its reports, and the figures are taken from these.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgetl import backends, catalog
from edgetl.benchmark import environment
from edgetl.benchmark.ceilings import Device, measure_ceilings
from edgetl.config import TargetEntry
from edgetl.config.reading import load
from edgetl.errors import EdgetlError
from edgetl.pipeline import start
from edgetl.runtime.nvidia import this_machine
from edgetl.specs import Precision

TARGETS = ("nvidia-gpu", "rtx-pc", "x86-64-vnni")
RESULTS = Path(__file__).parent / "results"
SCENARIOS = {
    "single-stream": ("--scenario", "single-stream"),
    "offline": ("--scenario", "offline"),
    "fixed-rate": ("--scenario", "fixed-rate", "--rate", "100", "--percentile", "90"),
}
"""Name → arguments of `edgetl bench`."""
LAYERS = 10
"""Of each engine, those that lose most time are kept."""
TENSORRT = """\
schema = 1
description = "The GPU of this machine, TensorRT"
backend = "tensorrt"
provider = "GPU"
scheme = "tensorrt"
precisions = ["int8", "fp16", "fp32"]
built_on_device = false

[hardware]
architecture = "x86-64"
processor = "{name}"
compute_capability = ["{capability}"]
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", help=f"may be repeated [default: {', '.join(TARGETS)}]")
    parser.add_argument("--config", type=Path, help="edgetl.toml of another project, with targets of its own")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each scenario lasts at least")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing more is begun or waited for")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--store", type=Path, help="of an earlier run: what it has is not made again [default: none]")
    given = parser.parse_args(arguments)
    gpus = environment.gpu_names() or [gpu.name for gpu in this_machine().gpus]
    if not gpus and not given.target:
        sys.exit("nvidia-smi finds no NVIDIA GPU here; --target x86-64-vnni measures the processor")
    run = Run(minutes=given.minutes)
    file = given.results / f"{slug((gpus or [environment.cpu_name()])[0])}.json"
    document: dict[str, Any] = {"environment": environment.environment(), "ceilings": gpu_ceilings(run, gpus)}

    def save() -> None:
        done = {**document, "failures": run.failures, "seconds": round(run.seconds, 1)}
        given.results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets, document["left_out"] = given.target or [], {}
        if not given.config:
            try:
                targets, document["left_out"] = installed(targets or [*TARGETS, *tensorrt(folder)])
            except EdgetlError as error:  # there is no such target
                sys.exit("\n".join([error.message, error.hint or ""]).rstrip())
        config = given.config or project(folder / "project", targets)
        built = build(run, config, targets, folder, given.store or folder / "store", document["left_out"])
        if (folder / "reports" / "bench.json").is_file():
            found = gathered(folder / "reports", built)
            document |= {**found, "ceilings": {**document["ceilings"], **found["ceilings"]}}
        elif not gpus:
            sys.exit("\n".join(run.failures))  # with a GPU there are its ceilings at least
        document["engines"] = engines_of(built)
        save()
        if built is not None:
            queried = {name: each for name, each in document["engines"].items() if not gpus or ran_on_gpu(each)}
            look_at(run, Path(built["bundle"]), queried, given.seconds, save)
    if gpus and built is not None and not any(ran_on_gpu(engine) for engine in document["engines"].values()):
        run.failures.append("no engine ran on the GPU; the notes of the engines and left_out say why")
    save()
    for each, latency in document.get("latency", {}).items():
        print(f"{each:34} p50 {latency['p50_ms']:.3f} ms")
    for each, reason in document["left_out"].items():
        print(f"{each} was left out: {reason}")
    print(f"wrote {file} after {run.seconds:.0f} s")
    if run.failures:
        sys.exit("\n".join(run.failures))


def project(folder: Path, targets: Sequence[str]) -> Path:
    """The digits, for these targets; every precision that they offer."""
    config = start.init(folder, "digits").config
    text, _, _ = config.read_text(encoding="utf-8").partition("[[target]]")
    config.write_text(text + "".join(f'[[target]]\ndevice = "{target}"\n\n' for target in targets), encoding="utf-8")
    return config


def tensorrt(folder: Path) -> list[str]:
    """A target for TensorRT on this machine's first GPU, written into a folder; none where it is not installed."""
    machine = this_machine()
    if not machine.gpus or machine.is_jetson or importlib.util.find_spec("tensorrt") is None:
        return []
    gpu = machine.gpus[0]
    path = folder / "tensorrt-here.toml"
    path.write_text(TENSORRT.format(name=gpu.name, capability=gpu.compute_capability), encoding="utf-8")
    return [str(path)]


class Run:
    """Commands of edgetl, which have a time together, and what failed of them.

    Args:
        minutes: After which none is begun or waited for.
    """

    def __init__(self, *, minutes: float) -> None:
        self._began = time.perf_counter()
        self._most_s = 60.0 * minutes
        self.failures: list[str] = []

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._began

    def edgetl(self, *arguments: str | Path) -> tuple[Any, str]:
        """Run `edgetl … --json`: what it found, None where it failed; and how it failed."""
        words = [str(each) for each in arguments]
        left_s = self._most_s - self.seconds
        over = f"the {self._most_s / 60.0:g} minutes are over"
        if left_s <= 0:
            return None, f"edgetl {words[0]} was not begun: {over}"
        command = [sys.executable, "-m", "edgetl", *words, "--json"]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=left_s)
        except subprocess.TimeoutExpired:
            return None, f"edgetl {words[0]} was ended: {over}"
        try:
            found = json.loads(done.stdout)["result"]
            failed = found["message"] if done.returncode else ""
        except (ValueError, KeyError, TypeError):  # it crashed, or a library wrote to stdout
            failed = "see above"
        if failed:
            return None, f"edgetl {words[0]} ended with exit code {done.returncode}: {failed}"
        return found, ""


def installed(targets: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The targets whose library is here, and why the others are left out: a build with one of those would not begin."""
    left_out = {}
    for name in targets:
        target = catalog.target(name)
        backend = backends.backend(target.backend)
        if backend.version() is None:
            left_out[name] = f"{target.backend} is not installed: pip install 'edgetl[{backend.extra}]'"
    return [name for name in targets if name not in left_out], left_out


def build(run: Run, config: Path, targets: Sequence[str], folder: Path, store: Path, left_out: dict[str, str]) -> Any:
    """What `edgetl build --json` says; None where it failed. "reports" has its reports, also where it was refused.

    Where it ends before there are reports, every engine is compiled by itself, and those of which that fails are left
    out. The store keeps what has been trained.

    Args:
        run: Runs the commands; learns what failed.
        config: Of the project.
        targets: Of its targets; none: all of them.
        folder: For the bundle and the reports.
        store: Of what is built.
        left_out: Grows by the engines that are left out, with the reason.
    """
    places = ("--store", store, "--set", f'bundle.output="{folder / "dist"}"')

    def attempt(words: Sequence[str]) -> Any:
        built, failed = run.edgetl("build", config, *places, *words, "--reports", folder / "reports")
        run.failures += [failed] if failed else []
        return built

    built = attempt([word for target in targets for word in ("--target", target)])
    if built is not None or (folder / "reports" / "bench.json").is_file():
        return built
    kept: list[tuple[TargetEntry, list[Precision]]] = []
    for entry, precisions in asked(config, targets):
        reasons = {each: run.edgetl("compile", config, *places, *only([(entry, [each])]))[1] for each in precisions}
        left_out |= {f"{catalog.target(entry.device).name} {each}": why for each, why in reasons.items() if why}
        if built_here := [each for each, why in reasons.items() if not why]:
            kept.append((entry, built_here))
    return attempt(only(kept)) if kept else None


def asked(config: Path, targets: Sequence[str]) -> list[tuple[TargetEntry, tuple[Precision, ...]]]:
    """The targets of a project, or those of them that are named, with their precisions; none of what is no project."""
    try:
        entries = [(entry, catalog.target(entry.device)) for entry in load(config).target]
        names = {catalog.target(each).name for each in targets}
    except EdgetlError:  # the build said so
        return []
    return [(entry, entry.precisions or each.precisions) for entry, each in entries if not names or each.name in names]


def only(engines: Sequence[tuple[TargetEntry, Sequence[Precision]]]) -> tuple[str, str]:
    """Arguments of `edgetl build` for these engines of a project and no others."""
    tables = []
    for entry, precisions in engines:
        budget = ", ".join(f"{name} = {most}" for name, most in entry.budget.model_dump(exclude_none=True).items())
        device = json.dumps(entry.device, ensure_ascii=False)  # TOML has no surrogates
        tables.append(f"{{ device = {device}, precisions = {json.dumps(precisions)}, budget = {{ {budget} }} }}")
    return "--set", f"target=[{', '.join(tables)}]"


def gpu_ceilings(run: Run, gpus: Sequence[str]) -> dict[str, Any]:
    """What the GPU can do at most, whatever becomes of the engines; none where there is no GPU."""
    device: Device = "cuda"
    try:
        return {device: measure_ceilings(device, threads=environment.usable_cores()).to_json()} if gpus else {}
    except EdgetlError as error:
        run.failures.append(error.message)
        return {}


def gathered(reports: Path, built: dict[str, Any] | None) -> dict[str, Any]:
    """What the build found out, without single calls.

    Args:
        reports: The folder of its reports.
        built: What `edgetl build --json` says; None of one that was refused, which does not tell its training.
    """
    bench, parity = (json.loads((reports / f"{name}.json").read_text()) for name in ("bench", "parity"))
    for found in bench["roofline"].values():
        timed = [layer for layer in found["layers"] if layer["time_ms"] is not None]
        found["layers"] = sorted(timed, key=lambda layer: layer["least_ms"] - layer["time_ms"])[:LAYERS]
    left_out = ("schema", "histogram", "steady")
    return {
        **{name: found for name, found in bench.items() if name not in left_out},
        "training": built["phases"] if built else [],
        "parity": parity["engines"],
    }


def engines_of(built: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Every engine of a build with what became of it, by name."""
    facts = ("provider", "status", "shipped", "note", "versions", "placement")
    made = built["engines"] if built else []
    return {f"{each['target']} {each['precision']}": {name: each[name] for name in facts} for each in made}


def look_at(
    run: Run, bundle: Path, engines: dict[str, dict[str, Any]], seconds: float, save: Callable[[], None]
) -> None:
    """Look into the layers of a bundle's engines, and query those that run here in scenarios and stages.

    Args:
        run: Runs the commands; learns what failed.
        bundle: Its folder.
        engines: By name; what is found out is added to them.
        seconds: That each scenario lasts at least.
        save: Is called after every engine.
    """
    for name, engine in engines.items():
        if engine["status"] != "ready" or not engine["shipped"]:
            continue
        target, precision = name.split()
        chosen = ("bench", bundle, "--target", target, "--precision", precision)
        asked = {each: (*words, "--duration", str(seconds)) for each, words in SCENARIOS.items()}
        for each, words in {**asked, "stages": ("--stages",)}.items():
            found, failed = run.edgetl(*chosen, *words)
            run.failures += [f"{name}: {failed}"] if failed else []
            engine[each] = found and found.get("scenario", found.get("stages"))
        save()
    verified, failed = run.edgetl("verify", bundle, "--layers")
    run.failures += [failed] if failed else []
    for found in verified["engines"] if verified else ():
        layers = found["layers"]
        if found["name"] in engines:
            engines[found["name"]]["layers"] = layers["statement"] if layers else found["layers_skipped"]


def ran_on_gpu(engine: dict[str, Any]) -> bool:
    """Whether an engine ran, and not on the processor."""
    return engine["status"] == "ready" and not engine["provider"].upper().startswith("CPU")


def slug(name: str) -> str:
    """As a file's name: "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.split(",")[0].lower()).strip("-")


if __name__ == "__main__":
    main()
