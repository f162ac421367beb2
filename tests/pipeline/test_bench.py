"""Things side by side, in processes as they are, on graphs that take microseconds."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.benchmark import environment, sampler, sampling
from edgetl.benchmark.comparison import Comparison, slowdown
from edgetl.benchmark.process import Check, ColdStart
from edgetl.benchmark.roofline import Layer
from edgetl.benchmark.sampling import Plan, Sampled
from edgetl.benchmark.sensors import energy, nvidia
from edgetl.benchmark.sensors.reading import Reading
from edgetl.benchmark.steady import steady_state
from edgetl.benchmark.things import Thing
from edgetl.errors import BudgetError, MeasurementError, StorageError, UsageError
from edgetl.pipeline.bench import Benchmark, Measured, bench_things, gate
from edgetl.pipeline.timing import details_of, doubts, latency_of, median_cold, steadiness
from edgetl.runtime.onnxruntime import _IDENTITY

QUICK = Plan(samples=140, processes=2, warmup=5, threads=1)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = x."""
    path = tmp_path / "identity.onnx"
    path.write_bytes(_IDENTITY)
    return path


def test_a_thing_against_itself_gets_two_names_and_is_compared(graph: Path, tmp_path: Path) -> None:
    output = tmp_path / "calls.json"
    found = bench_things([graph], against=[graph], plan=QUICK, output=output, roofline=False)
    assert [item.name for item in found.measured] == [str(graph), f"{graph} (2)"]
    assert [(item.name, item.against) for item in found.comparisons] == [(str(graph), f"{graph} (2)")]
    assert found.slowdowns == ()
    document = json.loads(json.dumps(found.to_json()))
    assert document["measured"][0]["inputs"] == ["x float32[1]"]
    assert document["environment"]["processes"] == 2
    written = json.loads(output.read_text(encoding="utf-8"))
    for item in found.measured:
        kept = written["sampled"][item.name]["processes"]
        assert sum(map(sum, (each["counted"] for each in kept))) == item.latency.samples >= 70
        assert len(kept) == 2
        for process in kept:
            assert len(process["uses"]) == max(process["block"]) + 1
            assert all(use["wall_ns"] >= use["cpu_ns"] / 4 > 0 for use in process["uses"])
        assert document["measured"][0]["stability"]["outcome"] in ("stable", "unstable")
        assert "sensors (not read)" not in item.stability.unknown
        assert not any("not given" in witness for witness in item.stability.unknown)
    sensors = {each["name"]: each for each in written["details"]["conditions"]["series"]}
    began = min(sensors["cpu.busy"]["times_ns"])
    first = written["sampled"][found.measured[0].name]["processes"][0]["starts_ns"][0]
    assert began < first and len(sensors["cpu.busy"]["values"]) >= 2
    assert "values" not in document["conditions"]["series"][0]
    gate(found)


def test_without_anything_to_compare_with_the_first_one_is_it(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(_IDENTITY)
    found = bench_things(
        [graph, tmp_path / "other.onnx"], baseline=graph, max_slowdown=1000.0, plan=QUICK, roofline=False
    )
    assert [item.against for item in found.comparisons] == [str(graph)]
    assert [item.comparison.against for item in found.slowdowns] == [f"{graph} (2)"] * 2
    assert {item.outcome for item in found.slowdowns} == {"passed"}
    gate(found, unstable="allow")  # whether this machine is quiet is not what is tested


def test_an_engine_whose_outputs_do_not_depend_on_its_inputs_is_refused(tmp_path: Path) -> None:
    record = {"schema": 1, "backend": "null", "provider": "none", "precision": "fp32", "status": "ready",
              "files": ["null.json"]}  # fmt: skip
    (tmp_path / "engine.json").write_text(json.dumps(record), encoding="utf-8")
    ports = {"inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32"}],
             "outputs": [{"name": "y", "shape": ["batch", 2], "dtype": "float32"}]}  # fmt: skip
    (tmp_path / "null.json").write_text(json.dumps(ports), encoding="utf-8")
    with pytest.raises(MeasurementError, match="the same whatever it is fed") as caught:
        bench_things([tmp_path], plan=QUICK)
    assert caught.value.exit_code == 5


def test_what_cannot_be_timed_is_known_before_any_process_starts(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no"):
        bench_things([graph], baseline=tmp_path / "nowhere")


# --- energy ----------------------------------------------------------------------------------------------------------


def test_energy_of_each_by_a_counter_that_is_there(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meter of 20 W, which starts again from zero after 5 s."""

    def meter() -> list[Reading]:
        joules = 20.0 * time.perf_counter_ns() / 1e9 % 100.0
        return [Reading(name="energy.meter", value=joules, unit="J", source="a test", kind="counter", wraps_at=100.0)]

    monkeypatch.setattr(sampler, "linux_sources", lambda root, cpus: [meter])
    monkeypatch.setattr(sampling, "Sampler", partial(sampler.Sampler, period_s=0.02))
    found = bench_things([graph], against=[graph], plan=replace(QUICK, energy_s=0.2), roofline=False)
    for item in found.measured:
        one = next(each for each in item.energy if each.sensor == "energy.meter")
        assert one.joules is not None and one.per_inference_j is not None and one.idle_w is not None
        assert 0.2 <= one.seconds < 2.0 and one.inferences > 100
        assert one.joules == pytest.approx(20.0 * one.seconds, rel=0.02)
        assert one.idle_w == pytest.approx(20.0, rel=0.02)
        assert one.per_inference_j == one.joules / one.inferences
        assert one.above_idle_per_inference_j == pytest.approx(0.0, abs=0.03 * one.per_inference_j)
    document = found.to_json()["measured"]
    assert document[0]["energy"][0]["per_inference_j"] > 0
    assert [line.partition(":")[0] for line in found.energy_lines] == [
        f"energy per inference of {graph}", f"energy per inference of {graph} (2)"
    ]  # fmt: skip
    assert " mJ by energy.meter, " in found.energy_lines[0]
    assert found.measured[0].latency.samples >= 70  # what ran for its energy is not among the calls


def test_energy_without_a_sensor_is_unknown_and_no_zero(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "linux_sources", lambda root, cpus: [lambda: energy.rapl(tmp_path)])
    monkeypatch.setattr(nvidia.Nvml, "sample", lambda self: [])
    found = bench_things([graph], plan=QUICK, roofline=False)
    (one,) = found.measured[0].energy
    assert (one.sensor, one.joules, one.per_inference_j, one.idle_w) == ("energy.rapl", None, None, None)
    assert found.energy_lines == ["energy per inference: unknown (this machine shows no RAPL counter)"]
    details = details_of([found.measured[0].sampled], found.conditions, threads=1)
    assert details["energy"] == {str(graph): [one.to_json()]}
    assert found.measured[0].sampled.energy_run is None


# --- the gate --------------------------------------------------------------------------------------------------------


def benchmark(*spans: tuple[float, float]) -> Benchmark:
    made = [
        Comparison(
            name=f"new {index}", against="old", ratio=(low + high) / 2, lower=low, upper=high, confidence=0.95,
            verdict="no difference", rounds=5,
        )
        for index, (low, high) in enumerate(spans)
    ]  # fmt: skip
    slowdowns = tuple(slowdown(each, 0.03) for each in made)
    return Benchmark(measured=(), comparisons=(), slowdowns=slowdowns, environment={})


def test_what_is_undecided_fails_unless_it_is_allowed() -> None:
    found = benchmark((0.9, 1.0), (1.0, 1.1))
    with pytest.raises(BudgetError, match="undecided:\n  new 1 may or may not be slower") as caught:
        gate(found)
    assert "--undecided allow" in (caught.value.hint or "")
    assert "new 0" not in caught.value.message
    gate(found, undecided="allow")


def test_what_is_slower_fails_whatever_is_allowed() -> None:
    for undecided in ("fail", "allow"):
        with pytest.raises(BudgetError, match=r"slower than allowed:\n  new 1 is slower by more than 3\.0%") as caught:
            gate(benchmark((0.9, 1.0), (1.2, 1.4)), undecided=undecided)  # type: ignore[arg-type]
        assert caught.value.exit_code == 5


def test_an_unstable_measurement_passes_no_gate_unless_it_is_allowed() -> None:
    found = benchmark((0.9, 1.0))
    old, other = measured("old", STALLED), measured("of no gate", STALLED)
    with pytest.raises(MeasurementError, match=r"UNSTABLE.*\n  old: .* took up to 900 ms") as caught:
        gate(replace(found, measured=(measured("new 0"), old, other)))
    assert caught.value.exit_code == 5
    assert "--unstable allow" in (caught.value.hint or "") and "swapped memory" in (caught.value.hint or "")
    assert "of no gate" not in caught.value.message
    gate(replace(found, measured=(measured("new 0"), old, other)), unstable="allow")
    gate(replace(found, measured=(measured("new 0"), measured("old"), other)))
    gate(replace(found, slowdowns=(), measured=(old,)))  # no baseline: it is told, and that is all
    assert replace(found, measured=(old,)).to_json()["measured"][0]["stability"]["outcome"] == "unstable"


def test_slower_than_allowed_comes_before_unstable() -> None:
    with pytest.raises(BudgetError):
        gate(replace(benchmark((1.2, 1.4)), measured=(measured("old", STALLED),)))


# --- what a build keeps ----------------------------------------------------------------------------------------------


STALLED = 900_000_000
"""What one call takes, ns."""


def measured(name: str, slowest: int = 0) -> Measured:
    """A measurement that held still but for one call."""
    quiet = sampled(name, 2_000_000)
    times = quiet.times_ns.copy()
    times[150] = max(slowest, times[150])
    made = replace(quiet, times_ns=times, starts_ns=np.cumsum(times) - times)
    return Measured(
        sampled=made, latency=latency_of(made), cold=median_cold(made.cold), steadiness=steadiness(made),
        stability=made.stability(),
    )  # fmt: skip


def sampled(name: str, level: int, warm: int = 0, **check: Any) -> Sampled:
    """Two processes of 10 blocks each."""
    number = np.arange(2 * 130)
    times = level + number % 7 * 1000 + np.where(number % 130 < warm, level, 0)
    process, place = number // 130, number % 13
    steady = tuple(steady_state(times[(process == index) & (place >= 3)]) for index in (0, 1))
    cold = tuple(ColdStart(start_ms=1, import_ms=2, load_ms=part, first_ms=4) for part in (3, 5))
    return Sampled(
        thing=Thing(name=name, opener="engine", path=Path("/x")), inputs=(), times_ns=times,
        starts_ns=np.cumsum(times), process=process, block=number % 130 // 13, place=place, steady=steady, cold=cold,
        timer_ns=60, check=Check(**{"depends_on_input": True, "multiply_adds": {}, **check}),
    )  # fmt: skip


def test_the_details_of_a_measurement_are_plain_and_complete() -> None:
    things = [sampled("a", 2_000_000, warm=39), sampled("b", 1_000_000, depends_on_input=False)]
    found = json.loads(json.dumps(details_of(things, threads=1, references=("b",))))
    assert found["steady"]["a"] == {
        "warmup_samples": 60, "settling_samples": 60, "not_steady": 0, "reasons": []
    }  # fmt: skip
    assert found["cold_start"]["a"]["load_ms"] == 4
    assert found["comparisons"]["b"] == []
    assert found["comparisons"]["a"][0]["verdict"] == "slower"
    assert found["implausible"] == {"a": [], "b": ["its outputs are the same whatever it is fed"]}
    assert latency_of(things[0]).samples == 140
    assert {name: each["outcome"] for name, each in found["stability"].items()} == {"a": "stable", "b": "stable"}
    assert found["conditions"] is None
    assert found["energy"] == {"a": [], "b": []}


def test_what_never_becomes_steady_is_told_with_its_reason() -> None:
    series = sampled("a", 1_000_000)
    rising = np.linspace(1e6, 2e6, 100).astype(np.int64)
    restless = Sampled(**{**vars(series), "steady": (steady_state(rising), series.steady[1])})
    found = steadiness(restless)
    assert found["not_steady"] == 1 and "still changed" in found["reasons"][0]
    assert restless.counted.sum() == 200  # all but what settles
    assert doubts(restless, latency_of(restless), threads=1) == ()
    assert median_cold(restless.cold).first_ms == 4


def test_an_engine_on_the_processor_is_held_to_what_processors_can_do_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "gpu_names", lambda: ["NVIDIA H200, 580.159.04"])

    def doubted(provider: str) -> tuple[str, ...]:
        layer = Layer(
            name="conv", kind="Conv", precision="fp32", provider=provider, multiply_adds=10**15, weight_bytes=1,
            activation_bytes=1, time_ms=None,
        )  # fmt: skip
        found = sampled("a", 1_000_000, multiply_adds={"fp32": 10**15}, layers=(layer,))
        return doubts(found, latency_of(found), threads=1)

    assert "this machine needs at least" in doubted("CPUExecutionProvider")[0]
    assert doubted("CUDAExecutionProvider") == ()


def test_a_file_of_calls_that_cannot_be_written_leaves_nothing_and_keeps_the_old_one(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    output = place / "calls.json"
    output.write_text("of yesterday", encoding="utf-8")

    def full(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text.encode()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="the disk is full"):
        bench_things([graph], plan=Plan(samples=20, processes=1, threads=1), output=output, roofline=False)
    assert [path.name for path in place.iterdir()] == ["calls.json"]
    assert output.read_bytes() == b"of yesterday"


def test_a_link_to_a_file_of_calls_stays_one(graph: Path, tmp_path: Path) -> None:
    """`--output /dev/stdout` is a link, too: it was replaced by a file, for every other process as well."""
    there, output = tmp_path / "calls.json", tmp_path / "latest.json"
    there.write_text("of yesterday", encoding="utf-8")
    output.symlink_to(there)
    bench_things([graph], plan=Plan(samples=20, processes=1, threads=1), output=output, roofline=False)
    assert output.is_symlink() and "sampled" in json.loads(there.read_text(encoding="utf-8"))


def test_what_was_fed_with_something_else_did_not_do_the_same_work(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    paths = []
    for size in (2, 3):
        ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size]) for name in ("x", "y")]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", ports[:1], ports[1:])
        paths.append(tmp_path / f"{size}.onnx")
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, paths[-1])
    plan = Plan(samples=20, processes=1, threads=1)
    found = bench_things(paths[:1], against=paths[1:], plan=plan, roofline=False)
    assert found.notes == (
        f"{paths[0]} was fed with float32[1, 2], and {paths[1]} with float32[1, 3]: they did not do the same work",
        "one process each: no interval knows what others would have shown; --processes 5",
    )
    assert found.to_json()["notes"] == list(found.notes)
    assert bench_things(paths[:1], plan=plan, roofline=False).notes == ()


def test_which_engine_of_a_bundle_was_timed_is_told() -> None:
    one = measured("dist/digits")
    thing = replace(one.sampled.thing, engine="arm64-cpu int8, which did not run where the bundle was built (no ARM)")
    timed = replace(one, sampled=replace(one.sampled, thing=thing))
    found = Benchmark(measured=(timed,), comparisons=(), slowdowns=(), environment={})
    assert found.notes == (
        "timed of dist/digits is arm64-cpu int8, which did not run where the bundle was built (no ARM)",
    )
