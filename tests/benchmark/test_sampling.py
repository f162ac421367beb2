"""Rounds, passes and blocks: in which order, and what counts. Nothing depends on how fast this machine is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgetl.benchmark import sampling
from edgetl.benchmark.conditions import Conditions, Series
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.process import Block, Check, ColdStart
from edgetl.benchmark.roofline import Layer
from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.sampling import SETTLING, Plan, measure
from edgetl.benchmark.sensors.reading import Reading
from edgetl.benchmark.steady import Steady
from edgetl.benchmark.things import Thing, engine_thing
from edgetl.errors import ModelError, UsageError


def thing(name: str) -> Thing:
    return Thing(name=name, opener="engine", path=Path("/nowhere"))


class Clockwork:
    """Stands in for processes: a clock that every call moves by what a test says. Everything else is the real code."""

    def __init__(self, warm: int = 0, drift: float = 0.0) -> None:
        self.warm, self.drift, self.now = warm, drift, 0
        self.living: list[str] = []
        self.log: list[tuple[str, str]] = []
        self.calls: dict[str, int] = {}

    @contextmanager
    def started(self, thing: Thing, feeds: Feeds, *, threads: int | None) -> Iterator[_Hand]:
        self.log.append(("start", thing.name))
        self.living.append(thing.name)
        self.calls[thing.name] = 0
        try:
            yield _Hand(self, thing.name)
        finally:
            self.living.remove(thing.name)
            self.log.append(("end", thing.name))


class _Hand:
    cold = ColdStart(start_ms=1.0, import_ms=2.0, load_ms=3.0, first_ms=4.0)
    inputs = ("x float32[1, 4]",)
    timer_ns = 50

    def __init__(self, clock: Clockwork, name: str) -> None:
        self.clock, self.name = clock, name

    def block(self, calls: int) -> Block:
        self.clock.log.append(("block", self.name))
        starts, times = [], []
        for place in range(calls):
            made = self.clock.calls[self.name]
            level = 1000 * (1 + self.clock.drift * made) * (3 if made < self.clock.warm else 1) + made % 7
            level *= 5 if place == 0 else 1  # what the others left in the caches
            starts.append(self.clock.now)
            times.append(int(level))
            self.clock.now += int(level) + 10
            self.clock.calls[self.name] += 1
        engine_ms = times[-1] / 2e6 if self.name == "b" else None
        return Block(starts_ns=np.array(starts), times_ns=np.array(times), engine_ms=engine_ms)

    def check(self) -> Check:
        self.clock.log.append(("check", self.name))
        return Check(depends_on_input=True, multiply_adds={"fp32": 7})


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    made = Clockwork()
    monkeypatch.setattr(sampling, "started", made.started)
    return made


def run(names: str, plan: Plan) -> tuple[sampling.Sampled, ...]:
    return measure([thing(name) for name in names], Feeds(), plan)


def test_an_engines_own_clock_counts_where_calls_do(clockwork: Clockwork) -> None:
    clockwork.warm = 30  # three times as slow
    a, b = run("ab", Plan(samples=100, processes=2, warmup=30))
    assert a.engine_clock_p50_ms is None
    last = np.flatnonzero(np.append(b.place[1:] == 0, True))
    counted = [place for place in last if b.counted[place]]
    assert 0 < len(counted) < len(last)
    assert b.engine_clock_p50_ms == pytest.approx(np.median(b.times_ns[counted]) / 2e6)


def test_every_round_has_a_fresh_process_of_each_thing_alive_at_once(clockwork: Clockwork) -> None:
    found = run("abc", Plan(samples=100, processes=4, warmup=10))
    rounds = "".join(what[0] for what, _ in clockwork.log).split("eee")
    assert len(rounds) == 5 and rounds[-1] == ""
    assert all(each.startswith("sssb") for each in rounds[:-1])
    assert [each.thing.name for each in found] == ["a", "b", "c"]
    for each in found:
        assert len(each.cold) == len(each.steady) == 4
        assert np.unique(each.process).tolist() == [0, 1, 2, 3]
    assert clockwork.living == []


def test_every_pass_visits_all_in_a_new_order(clockwork: Clockwork) -> None:
    run("abcd", Plan(samples=200, processes=1, warmup=0))
    blocks = [name for what, name in clockwork.log if what == "block"]
    passes = [tuple(blocks[index : index + 4]) for index in range(0, len(blocks), 4)]
    assert len(passes) == 20
    assert all(sorted(each) == list("abcd") for each in passes)
    assert len(set(passes)) > 5


def test_the_order_is_the_seeds(clockwork: Clockwork) -> None:
    def order(seed: int) -> list[tuple[str, str]]:
        clockwork.log.clear()
        run("abc", Plan(samples=50, processes=2, seed=seed))
        return list(clockwork.log)

    assert order(1) == order(1) != order(2)


def test_every_time_is_kept_with_its_process_block_place_and_start(clockwork: Clockwork) -> None:
    (found,) = run("a", Plan(samples=100, processes=2, warmup=10, block=10))
    assert len(found.times_ns) == 2 * 6 * (10 + SETTLING)
    assert found.block.tolist() == 2 * [index for index in range(6) for _ in range(10 + SETTLING)]
    assert found.place.tolist() == 12 * list(range(10 + SETTLING))
    assert (np.diff(found.starts_ns) > 0).all()
    assert found.settling.sum() == 12 * SETTLING
    # What settles costs five times as much; nothing of it counts, and nothing else is left out.
    assert found.times_ns[found.counted].max() < 1100
    assert found.counted.sum() == 120
    assert (found.check.multiply_adds, found.timer_ns) == ({"fp32": 7}, 50)


def test_a_warm_up_is_found_kept_apart_and_made_up_for(clockwork: Clockwork) -> None:
    clockwork.warm = 4 * (10 + SETTLING)
    (found,) = run("a", Plan(samples=240, processes=2, warmup=20))
    assert [each.start for each in found.steady] == [40, 40]
    assert (found.warmup & ~found.settling).sum() == 80
    assert found.counted.sum() >= 240  # more passes than were planned
    assert (found.times_ns[found.counted] < 1100).all()
    assert not (found.counted & found.warmup).any()
    series = found.series()
    assert series.block.min() == 4 and len(series.times_ns) == found.counted.sum()


def test_what_never_becomes_steady_is_given_up_after_twice_the_calls_and_says_so(clockwork: Clockwork) -> None:
    clockwork.drift = 0.01
    found = run("ab", Plan(samples=200, processes=1, warmup=0))
    for each in found:
        assert [steady.outcome for steady in each.steady] == ["never"]
        assert len(each.times_ns) == 40 * (10 + SETTLING)
        assert each.counted.sum() == 400  # nothing was found to leave out


def test_all_get_as_many_passes_where_one_needs_more(clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = sampling._Taking.look

    def late(self: sampling._Taking) -> Steady:
        found = honest(self)
        slow = self.thing.name == "b" and found.samples < 130
        return Steady(outcome="never", start=None, samples=found.samples, reason="not yet") if slow else found

    monkeypatch.setattr(sampling._Taking, "look", late)
    a, b = run("ab", Plan(samples=100, processes=1, warmup=0))
    assert len(a.times_ns) == len(b.times_ns) == 13 * (10 + SETTLING)


def test_progress_counts_to_the_end(clockwork: Clockwork) -> None:
    seen: list[tuple[int, int]] = []
    measure([thing("a")], Feeds(), Plan(samples=60, processes=3, warmup=0), progress=lambda *now: seen.append(now))
    assert seen == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_everything_is_plain_json(clockwork: Clockwork) -> None:
    (found,) = run("a", Plan(samples=40, processes=2, warmup=0))
    document = json.loads(json.dumps(found.to_json()))
    assert [len(each["times_ns"]) for each in document["processes"]] == 2 * [2 * (10 + SETTLING)]
    assert document["processes"][0]["cold_start"]["load_ms"] == 3.0
    assert sum(document["processes"][1]["counted"]) == 20
    assert "/nowhere" not in json.dumps(document)


@pytest.mark.parametrize("plan", [Plan(samples=0), Plan(processes=0), Plan(block=0), Plan(warmup=-1)])
def test_a_plan_of_nothing(plan: Plan) -> None:
    with pytest.raises(UsageError, match="at least one call, process"):
        run("a", plan)


def test_nothing_to_time_and_two_of_one_name() -> None:
    with pytest.raises(UsageError, match="needs a thing"):
        run("", Plan())
    with pytest.raises(UsageError, match="names of their own"):
        run("aa", Plan())


def test_one_that_cannot_be_opened_leaves_no_process_of_the_others(clockwork: Clockwork) -> None:
    honest = clockwork.started

    def failing(thing: Thing, feeds: Feeds, *, threads: int | None) -> object:
        if thing.name == "b":
            raise ModelError("b is broken")
        return honest(thing, feeds, threads=threads)

    sampling.started = failing  # type: ignore[assignment]
    with pytest.raises(ModelError, match="b is broken"):
        run("abc", Plan())
    assert clockwork.living == []


def test_real_processes(tmp_path: Path) -> None:
    """The same with processes as they are: two engines that compute nothing."""
    things = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        record = {"schema": 1, "backend": "null", "provider": "none", "precision": "fp32", "status": "ready",
                  "files": ["null.json"]}  # fmt: skip
        (folder / "engine.json").write_text(json.dumps(record), encoding="utf-8")
        ports = {"inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32"}],
                 "outputs": [{"name": "y", "shape": ["batch", 2], "dtype": "float32"}]}  # fmt: skip
        (folder / "null.json").write_text(json.dumps(ports), encoding="utf-8")
        things.append(engine_thing(folder, name=name))
    one, two = measure(things, Feeds(), Plan(samples=80, processes=2, warmup=5, threads=1))
    assert one.counted.sum() >= 80 and two.counted.sum() >= 80
    # Blocks of both take turns on one clock.
    firsts = sorted(
        (each.starts_ns[(each.process == 0) & (each.block == index)][0], each.thing.name, index)
        for each in (one, two)
        for index in range(int(each.block[each.process == 0].max()) + 1)
    )
    assert [index for _, _, index in firsts] == sorted(index for _, _, index in firsts)
    assert all(each.start_ms > 0 for each in one.cold)
    assert all(len(each.uses) == len(np.unique(each.process * 1000 + each.block)) for each in (one, two))


# --- whether it may be believed --------------------------------------------------------------------------------------


def with_uses(found: sampling.Sampled, waiting: dict[int, int]) -> sampling.Sampled:
    """Block → its time without a processor, ns; the others had none."""
    blocks = int((found.place == 0).sum())
    uses = tuple({"wall_ns": 10**6, "cpu_ns": 10**6, "waiting_ns": waiting.get(index, 0), "involuntary": 0}
                 for index in range(blocks))  # fmt: skip
    return replace(found, uses=uses)


def test_what_the_system_says_of_blocks_counts_where_their_calls_do(clockwork: Clockwork) -> None:
    clockwork.warm = 2 * (SETTLING + 10)
    (found,) = run("a", Plan(samples=140, processes=2, warmup=20))
    assert found.uses == ()
    assert any("not given" in witness for witness in found.stability().unknown)
    before_steady, later = {0: 10**9, 1: 10**9}, {5: 10**9}
    assert found.warmup[: 2 * (SETTLING + 10)].all()
    assert with_uses(found, before_steady).stability().stable
    (reason,) = with_uses(found, later).stability().reasons
    assert reason.kind == "neighbour" and reason.figures["waiting_ms"] == 1000
    document = json.loads(json.dumps(with_uses(found, later).to_json()))
    blocks = int(found.block[found.process == 0].max()) + 1
    assert [len(each["uses"]) for each in document["processes"]] == [blocks, blocks]
    assert document["processes"][0]["uses"][5]["waiting_ns"] == 10**9


@pytest.mark.parametrize("name", ["gpu0.clock.sm", "jetson.frequency.gr3d"])
def test_a_gpu_that_idles_says_nothing_of_an_engine_on_the_processor(clockwork: Clockwork, name: str) -> None:
    (found,) = run("a", Plan(samples=140, processes=2, warmup=0))
    begin, end = found.counted_ns
    slowing = Series(
        name=name, unit="MHz", source="a test", kind="level", times_ns=np.linspace(begin, end, 12).astype(np.int64),
        values=np.array([1980.0] * 6 + [345.0] * 6),
    )  # fmt: skip
    seen = Conditions(facts=(), series=(slowing,), period_s=0.5, reading_ms=1.0, background=False)

    def on(*providers: str) -> sampling.Sampled:
        one = Layer(
            name="conv", kind="Conv", precision="fp32", provider="", multiply_adds=7, weight_bytes=1,
            activation_bytes=1, time_ms=None,
        )  # fmt: skip
        layers = tuple(replace(one, provider=provider) for provider in providers)
        return replace(found, check=replace(found.check, layers=layers))

    assert on("CPUExecutionProvider").stability(seen).stable
    for engine in (on("CUDAExecutionProvider"), on("CPUExecutionProvider", "CUDAExecutionProvider"), on()):
        assert [reason.kind for reason in engine.stability(seen).reasons] == ["frequency"]


def test_sensors_are_read_between_blocks_and_never_within_one(clockwork: Clockwork) -> None:
    def read() -> list[Reading]:
        clockwork.log.append(("read", ""))
        return [Reading(name="x", value=1.0, unit="", source="a test")]

    with Sampler(period_s=1e-9, sources=[read]) as sampler:
        measure([thing("a")], Feeds(), Plan(samples=60, processes=2, warmup=0), sampler=sampler)
    found = [what for what, _ in clockwork.log]
    blocks = found.count("block")
    assert found.count("read") == blocks + 2  # as it is entered and left
    assert all(found[index + 1] == "read" for index, what in enumerate(found) if what == "block")
    assert len(sampler.conditions().series[0].values) == blocks + 2
