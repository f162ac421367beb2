"""Sensors of Linux, on trees as machines have them: a PC, a virtual machine, a Jetson, and broken ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark.sensors import energy, linux, load
from edgetl.benchmark.sensors.reading import Reading, read_number, read_text, unknown

Tree = Callable[[dict[str, str]], Path]

CPU = "sys/devices/system/cpu"
INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor @ 2.50GHz
flags\t\t: fpu sse2 avx avx2 fma f16c hypervisor avx512f avx512_vnni arch_capabilities

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor @ 2.50GHz
"""
ORIN = """processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd42
"""


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return make


def values(readings: list[Reading]) -> dict[str, object]:
    return {one.name: one.value for one in readings}


def reasons(readings: list[Reading]) -> dict[str, str]:
    return {one.name: one.why for one in readings if one.value is None}


# --- readings --------------------------------------------------------------------------------------------------------


def test_a_reading_has_a_value_or_a_reason() -> None:
    with pytest.raises(ValueError, match="and not both"):
        Reading(name="a", value=None, source="b")
    with pytest.raises(ValueError, match="and not both"):
        Reading(name="a", value=0, source="b", why="no")
    assert unknown("a", "it is off", source="b", unit="W").to_json() == {
        "name": "a", "value": None, "unit": "W", "source": "b", "why": "it is off", "kind": "fact",
    }  # fmt: skip
    assert Reading(name="a", value=0.0, source="b").to_json()["value"] == 0.0
    assert Reading(name="a", value=False, source="b").to_json()["value"] is False


@pytest.mark.parametrize("text", ["", "\n", "<unsupported>", "nan", "inf", "12 MHz", "\x00"])
def test_what_is_no_number_is_unknown_and_never_zero(tree: Tree, text: str) -> None:
    root = tree({"sys/x": text})
    found = read_number("x", root / "sys/x", root=root, unit="MHz")
    assert found.value is None
    assert "not a number" in found.why
    assert found.source == "/sys/x"


def test_reasons_of_files(tree: Tree) -> None:
    root = tree({"sys/folder/file": "1", "sys/empty": "\n"})
    assert "no such file" in read_number("x", root / "sys/none", root=root, unit="").why
    assert "is a directory" in read_number("x", root / "sys/folder", root=root, unit="").why
    assert read_text("x", root / "sys/empty", root=root).why == "it is empty"
    assert read_number("x", root / "sys/folder/file", root=root, unit="").value == 1.0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_this_user_may_not_read(tree: Tree) -> None:
    root = tree({"sys/secret": "1"})
    (root / "sys/secret").chmod(0)
    assert "may not read" in read_number("x", root / "sys/secret", root=root, unit="").why


@given(st.sets(st.integers(0, 200)))
def test_lists_of_processors_there_and_back(cpus: set[int]) -> None:
    assert linux.cpu_list(linux.cpu_ranges(cpus)) == tuple(sorted(cpus))


def test_lists_of_processors() -> None:
    assert linux.cpu_list("0-2,5\n") == (0, 1, 2, 5)
    assert linux.cpu_ranges((5, 0, 1, 2)) == "0-2,5"
    with pytest.raises(ValueError, match="invalid literal"):
        linux.cpu_list("a-b")


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_of_a_virtual_machine(tree: Tree) -> None:
    root = tree({"proc/cpuinfo": INTEL, f"{CPU}/online": "0-1\n", f"{CPU}/isolated": "\n"})
    readings = linux.cpu_facts(root, (0, 1))
    found = values(readings)
    assert found["cpu.model"] == "Intel(R) Xeon(R) Processor @ 2.50GHz"
    assert found["cpu.flags"] == "avx avx2 fma f16c avx512f avx512_vnni"
    assert found["cpu.virtual"] is True
    assert (found["cpu.affinity"], found["cpu.online"]) == ("0-1", "0-1")
    assert found["cpu.isolated"] == "none"
    assert found["cpu.governor"] is None
    assert found["cpu.turbo"] is None
    assert reasons(readings)["cpu.governor"] == "this machine has no such file"
    assert json.loads(json.dumps([one.to_json() for one in readings]))


def test_facts_of_a_jetson(tree: Tree) -> None:
    frequencies = {"scaling_governor": "schedutil", "scaling_min_freq": "729600", "scaling_max_freq": "1510400"}
    files = {f"{CPU}/cpu{n}/cpufreq/{name}": text for n in range(3) for name, text in frequencies.items()}
    files[f"{CPU}/cpu2/cpufreq/scaling_governor"] = "performance\n"
    board = {"proc/cpuinfo": ORIN, "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"}
    found = values(linux.cpu_facts(tree({**files, **board}), (0, 1, 2)))
    assert found["cpu.model"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["cpu.flags"] == "asimd asimdhp asimddp"
    assert found["cpu.virtual"] is None
    assert (found["cpu.governor[0-1]"], found["cpu.governor[2]"]) == ("schedutil", "performance")
    assert found["cpu.frequency.max"] == pytest.approx(1510.4)
    assert found["cpu.frequency.hardware_max"] is None


@pytest.mark.parametrize(
    ("files", "value"),
    [
        ({f"{CPU}/intel_pstate/no_turbo": "1\n"}, False),
        ({f"{CPU}/intel_pstate/no_turbo": "0\n"}, True),
        ({f"{CPU}/cpufreq/boost": "1\n"}, True),
        ({f"{CPU}/intel_pstate/no_turbo": "?\n"}, None),
        ({}, None),
    ],
)
def test_turbo(tree: Tree, files: dict[str, str], value: bool | None) -> None:
    assert values(linux.cpu_facts(tree(files), (0,)))["cpu.turbo"] is value


def test_a_model_by_its_part_alone(tree: Tree) -> None:
    assert values(linux.cpu_facts(tree({"proc/cpuinfo": ORIN}), (0,)))["cpu.model"] == "implementer 0x41 part 0xd42"
    assert values(linux.cpu_facts(tree({"proc/cpuinfo": "nonsense"}), (0,)))["cpu.model"] is None


def test_a_machine_without_proc(tmp_path: Path) -> None:
    found = linux.cpu_facts(tmp_path, (0,))
    assert {one.name for one in found if one.value is not None} == {"cpu.affinity"}


# --- frequency, temperature, throttling ------------------------------------------------------------------------------


def test_frequency_is_that_of_the_fastest_processor(tree: Tree) -> None:
    speeds = {0: "800000", 1: "3600000", 2: "<unknown>"}
    root = tree({f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq": text for n, text in speeds.items()})
    assert values(linux.frequency(root, (0, 1, 2))) == {"cpu.frequency": 3600.0, "cpu.frequency.lowest": 800.0}
    (none,) = linux.frequency(root, (2,))
    assert (none.value, none.unit) == (None, "MHz")
    (zero,) = linux.frequency(tree({f"{CPU}/cpu5/cpufreq/scaling_cur_freq": "0"}), (5,))
    assert zero.value is None


def test_temperatures_and_their_broken_sensors(tree: Tree) -> None:
    zones = [
        ("CPU-therm", "44437"),
        ("GPU-therm", "-256000"),
        ("PMIC-Die", "100000"),
        ("CPU-therm", "45000"),
        ("x", "?"),
    ]
    files = {}
    for number, (kind, temp) in enumerate(zones):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = kind
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = temp
    files["sys/class/hwmon/hwmon0/name"] = "coretemp"
    files["sys/class/hwmon/hwmon0/temp1_input"] = "51000"
    files["sys/class/hwmon/hwmon0/temp1_label"] = "Package id 0"
    files["sys/class/hwmon/hwmon1/name"] = "nvme"
    files["sys/class/hwmon/hwmon1/temp1_input"] = "33000"
    readings = linux.temperatures(tree(files))
    assert values(readings) == {
        "temperature.CPU-therm": pytest.approx(44.437),
        "temperature.GPU-therm": None,
        "temperature.CPU-therm#2": 45.0,
        "temperature.x": None,
        "temperature.Package id 0": 51.0,
    }
    assert "-256 °C" in reasons(readings)["temperature.GPU-therm"]
    assert {one.kind for one in readings} == {"level"}


def test_no_temperature_is_unknown(tmp_path: Path) -> None:
    (found,) = linux.temperatures(tmp_path)
    assert found.value is None
    assert "no sensor" in found.why


def test_the_lowest_passive_trip_point(tree: Tree) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    trips = [
        ("critical", "104500"),
        ("passive", "99000"),
        ("passive", "70000"),
        ("active", "50000"),
        ("passive", "-274000"),
    ]
    files = {f"{zone}/type": "cpu-thermal"}
    for number, (kind, temp) in enumerate(trips):
        files |= {f"{zone}/trip_point_{number}_type": kind, f"{zone}/trip_point_{number}_temp": temp}
    assert values(linux.trip_points(tree(files))) == {"temperature.cpu-thermal.passive": 70.0}


def test_what_a_core_and_a_package_count_is_told_once(tree: Tree) -> None:
    """Four processors are two cores with two threads each, of one package; a fifth is another package."""
    files = {}
    for cpu, (package, core, of_core, of_package) in enumerate(
        [(0, 0, 3, 7), (0, 1, 1, 7), (0, 0, 3, 7), (0, 1, 1, 7), (1, 0, 2, 4)]
    ):
        files[f"{CPU}/cpu{cpu}/topology/physical_package_id"] = f"{package}\n"
        files[f"{CPU}/cpu{cpu}/topology/core_id"] = f"{core}\n"
        files[f"{CPU}/cpu{cpu}/thermal_throttle/core_throttle_count"] = f"{of_core}\n"
        files[f"{CPU}/cpu{cpu}/thermal_throttle/package_throttle_count"] = f"{of_package}\n"
    found = values(linux.throttling(tree(files), range(5)))
    assert found == {"throttle.core": 6.0, "throttle.package": 11.0}


def test_throttling_counters_and_cooling(tree: Tree) -> None:
    files = {}
    for cpu, (core, package) in enumerate([(3, 7), (4, 7)]):
        files[f"{CPU}/cpu{cpu}/thermal_throttle/core_throttle_count"] = str(core)
        files[f"{CPU}/cpu{cpu}/thermal_throttle/package_throttle_count"] = str(package)
    devices = [("pwm-fan", "3"), ("cpufreq-cpu0", "2"), ("TCC Offset", "5"), ("Processor", "0"), ("17000000.gpu", "1")]
    for number, (kind, state) in enumerate(devices):
        files[f"sys/class/thermal/cooling_device{number}/type"] = kind
        files[f"sys/class/thermal/cooling_device{number}/cur_state"] = state
    files["sys/devices/platform/soc/soc:firmware/get_throttled"] = "50005\n"
    assert values(linux.throttling(tree(files), (0, 1))) == {
        "throttle.core": 7.0,
        "throttle.package": 14.0,
        "cooling.cpufreq-cpu0.1": 2.0,
        "cooling.Processor.3": 0.0,
        "cooling.17000000.gpu.4": 1.0,
        "cooling.firmware": 5,
    }


def test_throttling_is_unknown_in_a_virtual_machine(tmp_path: Path) -> None:
    assert values(linux.throttling(tmp_path, (0,))) == {"throttle.core": None, "throttle.package": None}


# --- load ------------------------------------------------------------------------------------------------------------


STAT = """cpu  300 30 60 900 12 0 6 30 0 0
cpu0 100 10 20 300 4 0 2 10 50 0
cpu1 200 20 40 600 8 0 4 20 0 0
intr 1
"""


def test_processor_times(tree: Tree) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    found = values(load.processor_times(tree({"proc/stat": STAT}), (1,)))
    assert found == {"cpu.busy": 264 / ticks, "cpu.idle": 600 / ticks, "cpu.iowait": 8 / ticks, "cpu.steal": 20 / ticks}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpu0 1 2 3 4", "no line for cpu1"),
        ("cpu1 1 2 x 4 5", "not as expected"),
        ("cpu1 1 2", "cpu1 1 2"),
        ("", "cpu1"),
    ],
)
def test_a_stat_that_is_broken(tree: Tree, text: str, words: str) -> None:
    readings = load.processor_times(tree({"proc/stat": text}), (1,))
    assert set(values(readings).values()) == {None}
    assert words in readings[0].why


def process(pid: int, name: str, ticks: tuple[int, int, int, int]) -> str:
    return f"{pid} ({name}) S 1 1 1 0 -1 4194560 100 0 0 0 {' '.join(map(str, ticks))} 20 0 1 0 100 1000 50\n"


def test_own_times_are_those_of_the_family(tree: Tree) -> None:
    root = tree({
        "proc/10/stat": process(10, "python3", (100, 20, 7, 3)),
        "proc/10/task/10/children": "11 ",
        "proc/10/task/15/children": "12 99 ",  # 99 has ended meanwhile
        "proc/11/stat": process(11, "a) (b c", (50, 5, 0, 0)),
        "proc/11/task/11/children": "",
        "proc/12/stat": process(12, "x", (1, 1, 0, 0)),
        "proc/12/task/12/children": "",
    })  # fmt: skip
    (found,) = load.own_times(root, 10)
    assert found.value == pytest.approx(187 / os.sysconf("SC_CLK_TCK"))


def test_own_times_are_unknown_where_the_kernel_does_not_tell_the_children(tree: Tree) -> None:
    root = tree({"proc/10/stat": process(10, "python3", (1, 1, 1, 1)), "proc/10/task/10/comm": "python3"})
    (found,) = load.own_times(root, 10)
    assert (found.value, found.why) == (None, "this machine has no such file")
    root = tree({"proc/10/task/10/children": "", "proc/10/stat": "10 (x) S 1"})
    (found,) = load.own_times(root, 10)
    assert found.value is None


def test_own_times_of_this_process_are_there() -> None:
    before = load.own_times()[0].value
    if before is None:
        pytest.skip("this kernel does not tell a process's children")
    assert isinstance(before, float)
    assert before > 0


def test_pressure(tree: Tree) -> None:
    text = "some avg10=18.86 avg60=16.15 avg300=9.51 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
    readings = load.pressure(tree({"proc/pressure/cpu": text, "proc/pressure/io": "full total=3"}))
    assert values(readings) == {"pressure.cpu": 2.5, "pressure.memory": None, "pressure.io": None}


@pytest.mark.parametrize(
    ("files", "throttled", "periods"),
    [
        (
            {
                "proc/self/cgroup": "0::/user.slice/a.scope\n",
                "sys/fs/cgroup/user.slice/a.scope/cpu.stat": "usage_usec 9\nnr_throttled 4\nthrottled_usec 250000\n",
            },
            0.25,
            4.0,
        ),
        (  # the quota is that of a group around it
            {
                "proc/self/cgroup": "0::/user.slice/a.scope/worker\n",
                "sys/fs/cgroup/user.slice/a.scope/worker/cpu.stat": "usage_usec 9\nnr_throttled 0\nthrottled_usec 0\n",
                "sys/fs/cgroup/user.slice/a.scope/cpu.stat": "usage_usec 9\nnr_throttled 4\nthrottled_usec 250000\n",
                "sys/fs/cgroup/user.slice/cpu.stat": "usage_usec 9\nnr_throttled 0\nthrottled_usec 0\n",
                "sys/fs/cgroup/cpu.stat": "usage_usec 9\n",
            },
            0.25,
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,cpuacct:/docker/abc\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 3\nnr_throttled 1\nthrottled_time 500000000\n",
            },
            0.5,
            1.0,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.stat": "usage_usec 9\nuser_usec 5\n"}, None, None),
        ({"proc/self/cgroup": "0::/\n"}, None, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.stat": "nr_throttled many\n"}, None, None),
        ({}, None, None),
    ],
    ids=["version 2", "around it", "version 1 in a container", "the root group", "no file", "broken", "no cgroups"],
)
def test_control_groups(tree: Tree, files: dict[str, str], throttled: float | None, periods: float | None) -> None:
    readings = load.control_group(tree(files))
    assert values(readings) == {"cgroup.throttled": throttled, "cgroup.periods_throttled": periods}
    assert all(one.why for one in readings if one.value is None)


# --- energy ----------------------------------------------------------------------------------------------------------


def test_rapl_zones_and_their_parts(tree: Tree) -> None:
    base = "sys/class/powercap"
    root = tree({
        f"{base}/intel-rapl:0/name": "package-0",
        f"{base}/intel-rapl:0/energy_uj": "5000000",
        f"{base}/intel-rapl:0/max_energy_range_uj": "262143328850",
        f"{base}/intel-rapl:0:0/name": "dram",
        f"{base}/intel-rapl:0:0/energy_uj": "hello",
        f"{base}/intel-rapl:0:0/max_energy_range_uj": "65712999613",
        f"{base}/intel-rapl:1/name": "package-1",
        f"{base}/intel-rapl:1/energy_uj": "1",
    })  # fmt: skip
    readings = energy.rapl(root)
    assert values(readings) == {
        "energy.rapl.package-0": 5.0, "energy.rapl.package-0.dram": None, "energy.rapl.package-1": None,
    }  # fmt: skip
    assert readings[0].wraps_at == pytest.approx(262143.32885)
    assert "wraps around is not known" in readings[2].why


def test_no_rapl(tmp_path: Path) -> None:
    (found,) = energy.rapl(tmp_path)
    assert found.value is None


def test_rails_of_a_jetson(tree: Tree) -> None:
    chip = "sys/class/hwmon/hwmon1"
    root = tree({
        f"{chip}/name": "ina3221",
        f"{chip}/in1_label": "VDD_IN\n", f"{chip}/in1_input": "5000\n", f"{chip}/curr1_input": "1016\n",
        f"{chip}/in2_label": "VDD_SOC\n", f"{chip}/in2_input": "5000\n", f"{chip}/curr2_input": "\n",
        f"{chip}/curr3_input": "4\n",
        "sys/class/hwmon/hwmon2/name": "amdgpu", "sys/class/hwmon/hwmon2/power1_input": "35000000",
    })  # fmt: skip
    assert values(energy.hwmon_power(root)) == {
        "power.VDD_IN": pytest.approx(5.08), "power.VDD_SOC": None, "power.amdgpu.power1": 35.0,
    }  # fmt: skip


V2, V1 = {"proc/self/cgroup": "0::/a/b\n"}, {"proc/self/cgroup": "4:cpu,cpuacct:/a/b\n"}
GROUP, OLD = "sys/fs/cgroup/a/b", "sys/fs/cgroup/cpu,cpuacct/a/b"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({**V2, f"{GROUP}/cpu.stat": "", f"{GROUP}/cpu.max": "150000 100000\n"}, 1.5),
        ({**V2, f"{GROUP}/cpu.stat": "", f"{GROUP}/cpu.max": "max 100000\n"}, None),
        (
            {**V2, f"{GROUP}/cpu.stat": "", f"{GROUP}/cpu.max": "max 100000\n",
             "sys/fs/cgroup/a/cpu.max": "50000 100000\n"},
            0.5,
        ),
        ({**V1, f"{OLD}/cpu.stat": "", f"{OLD}/cpu.cfs_quota_us": "-1\n", f"{OLD}/cpu.cfs_period_us": "100000"}, None),
        ({**V1, f"{OLD}/cpu.stat": "", f"{OLD}/cpu.cfs_quota_us": "300000", f"{OLD}/cpu.cfs_period_us": "100000"}, 3.0),
        ({**V2, f"{GROUP}/cpu.stat": "", f"{GROUP}/cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_container(tree: Tree, files: dict[str, str], quota: float | None) -> None:
    found = load.quota(tree(files))
    assert (found.name, found.value, bool(found.why)) == ("cgroup.quota", quota, quota is None)
