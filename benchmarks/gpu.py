"""The GPU half of a build, on real digits: training, parity and latency of every engine that runs on this GPU.

    python benchmarks/gpu.py                          # on a machine with an NVIDIA GPU; `make gpu-check` runs it
    python benchmarks/gpu.py --target x86-64-vnni     # the same path without one
    python benchmarks/gpu.py --config my/edgetl.toml  # a project of yours instead of the digits

Fine-tunes, exports, compiles and proves as `edgetl build` does, for ONNX Runtime's CUDA provider, TensorRT-RTX and,
where it is installed, TensorRT, beside the processor. Then every engine that was shipped and runs here is queried in
scenarios, timed stage by stage, and looked into layer by layer. Parity, latencies, conditions, energy, ceilings
and training throughput are written into benchmarks/results/<gpu>.json, also where the last part fails.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetl.benchmark import environment
from edgetl.pipeline import start
from edgetl.runtime.nvidia import this_machine

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
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    given = parser.parse_args(arguments)
    gpus = environment.gpu_names()
    if not gpus and not given.target:
        sys.exit("nvidia-smi finds no NVIDIA GPU here; --target x86-64-vnni measures the processor")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = given.config or project(folder / "project", given.target or [*TARGETS, *tensorrt(folder)])
        only = [each for target in given.target or () if given.config for each in ("--target", target)]
        places = ("--store", folder / "store", "--set", f'bundle.output="{folder / "dist"}"')
        built, failed = edgetl("build", config, *places, *only)
        if built is None:
            sys.exit(failed)
        document = gathered(Path(built["bundle"]), built)
        document["engines"], failures = looked_at(Path(built["bundle"]), built, given.seconds)
    document["seconds"] = round(time.perf_counter() - began, 1)
    given.results.mkdir(parents=True, exist_ok=True)
    file = given.results / f"{slug((gpus or [environment.cpu_name()])[0])}.json"
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for each, latency in document["latency"].items():
        print(f"{each:34} p50 {latency['p50_ms']:.3f} ms")
    print(f"wrote {file} after {document['seconds']:.0f} s")
    if gpus and not any(ran_on_gpu(engine) for engine in document["engines"].values()):
        failures.append("no engine ran on the GPU; the notes of the engines say why")
    if failures:
        sys.exit("\n".join(failures))


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


def edgetl(*arguments: str | Path) -> tuple[Any, str]:
    """Run `edgetl … --json`: what it found, None where it failed; and how it failed."""
    words = [str(each) for each in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "edgetl", *words, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout)["result"], ""
    try:
        found = json.loads(done.stdout)["result"]["message"]
    except (ValueError, KeyError):
        found = "see above"
    return None, f"edgetl {words[0]} ended with exit code {done.returncode}: {found}"


def gathered(bundle: Path, built: dict[str, Any]) -> dict[str, Any]:
    """What the build found out, without single calls.

    Args:
        bundle: Its folder.
        built: What `edgetl build --json` says.
    """
    bench, parity = (json.loads((bundle / "reports" / f"{name}.json").read_text()) for name in ("bench", "parity"))
    for found in bench["roofline"].values():
        timed = [layer for layer in found["layers"] if layer["time_ms"] is not None]
        found["layers"] = sorted(timed, key=lambda layer: layer["least_ms"] - layer["time_ms"])[:LAYERS]
    left_out = ("schema", "histogram", "steady")
    return {
        **{name: found for name, found in bench.items() if name not in left_out},
        "training": built["phases"],
        "parity": parity["engines"],
    }


def looked_at(bundle: Path, built: dict[str, Any], seconds: float) -> tuple[dict[str, Any], list[str]]:
    """Every engine of a build with what became of it; those that were shipped and run here in scenarios and stages.

    Args:
        bundle: Its folder.
        built: What `edgetl build --json` says.
        seconds: That each scenario lasts at least.

    Returns:
        By engine's name; and what failed.
    """
    facts = ("provider", "status", "shipped", "note", "versions", "placement")
    engines = {
        f"{each['target']} {each['precision']}": {name: each[name] for name in facts} for each in built["engines"]
    }
    failures = []
    verified, failed = edgetl("verify", bundle, "--layers")
    failures += [failed] if failed else []
    for found in verified["engines"] if verified else ():
        layers = found["layers"]
        engines[found["name"]]["layers"] = layers["statement"] if layers else found["layers_skipped"]
    for name, engine in engines.items():
        if engine["status"] != "ready" or not engine["shipped"]:
            continue
        target, precision = name.split()
        chosen = ("bench", bundle, "--target", target, "--precision", precision)
        asked = {each: (*words, "--duration", str(seconds)) for each, words in SCENARIOS.items()}
        for each, words in {**asked, "stages": ("--stages",)}.items():
            run, failed = edgetl(*chosen, *words)
            failures += [f"{name}: {failed}"] if failed else []
            engine[each] = run and run.get("scenario", run.get("stages"))
    return engines, failures


def ran_on_gpu(engine: dict[str, Any]) -> bool:
    """Whether an engine ran, and not on the processor."""
    return engine["status"] == "ready" and not engine["provider"].upper().startswith("CPU")


def slug(name: str) -> str:
    """As a file's name: "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.split(",")[0].lower()).strip("-")


if __name__ == "__main__":
    main()
