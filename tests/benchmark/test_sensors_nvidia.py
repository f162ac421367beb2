"""NVIDIA's sensors: recorded answers of NVML and of nvidia-smi, of Jetsons from JetPack 3 to 7, and broken ones."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.sensors import jetson, nvidia
from edgetl.benchmark.sensors.reading import Reading


def values(readings: list[Reading]) -> dict[str, object]:
    return {one.name: one.value for one in readings}


# --- NVML ------------------------------------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


def recorded(**changes: Any) -> Any:
    """NVML's answers as recorded on a machine with two GPUs; ``changes`` replaces calls."""

    def not_supported(*_: object) -> None:
        raise NVMLError("Not Supported")

    calls: dict[str, Any] = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}abcdef",
        "nvmlSystemGetDriverVersion": lambda: b"535.104.05",
        "nvmlDeviceGetName": lambda handle: "NVIDIA H200",
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: {1: 1980, 2: 3201}[kind],
        "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1755, 2: 3201}[kind],
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        "nvmlDeviceGetPowerUsage": lambda handle: 123_456,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 987_654_321,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 41,
        "nvmlDeviceGetTemperatureThreshold": not_supported,
        "nvmlDeviceGetPersistenceMode": lambda handle: 1,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [],
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=37, memory=5),
        "nvmlDeviceGetPerformanceState": lambda handle: 0,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x24,
    }
    return SimpleNamespace(**{**calls, **changes})


def test_facts_and_samples_of_one_gpu() -> None:
    with nvidia.Nvml(gpus=[1], library=recorded()) as gpu:
        assert gpu.problem == ""
        facts, sample = gpu.facts(), gpu.sample()
    found = values(facts)
    assert found["gpu.driver"] == "535.104.05"
    assert (found["gpu1.name"], found["gpu1.clock.sm.max"], found["gpu1.power.limit"]) == ("NVIDIA H200", 1980, 700.0)
    assert (found["gpu1.persistence"], found["gpu1.processes"]) == (True, 0)
    assert found["gpu1.temperature.slowdown"] is None
    assert next(one.why for one in facts if one.value is None) == "the driver says: Not Supported"
    now = values(sample)
    assert (now["gpu1.clock.sm"], now["gpu1.power"], now["gpu1.load"]) == (1755, 123.456, 37)
    assert now["gpu1.energy"] == pytest.approx(987_654.321)
    assert next(one for one in sample if one.name == "gpu1.energy").kind == "counter"
    assert {name for name, value in now.items() if ".throttle." in name and value} == {
        "gpu1.throttle.power_cap", "gpu1.throttle.sw_thermal",
    }  # fmt: skip
    assert not any(name.startswith("gpu0") for name in now)


def test_newer_drivers_call_them_event_reasons() -> None:
    library = recorded(nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 0x40)
    with nvidia.Nvml(library=library) as gpu:
        found = values(gpu.sample())
    assert found["gpu0.throttle.hw_thermal"] is True
    assert found["gpu0.throttle.power_cap"] is False


@pytest.mark.parametrize(
    ("visible", "gpus"), [("1", {"gpu1"}), ("0,1", {"gpu0", "gpu1"}), ("GPU-0abc", {"gpu0"}), ("", set()), ("7", set())]
)
def test_visible_devices(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: set[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with nvidia.Nvml(library=recorded()) as gpu:
        assert {one.name.partition(".")[0] for one in gpu.sample()} == gpus
        assert bool(gpu.problem) is not bool(gpus)


def failing(*_: object) -> None:
    raise NVMLError("Driver Not Loaded")


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (recorded(nvmlInit=failing), "does not start: Driver Not Loaded"),
        (recorded(nvmlDeviceGetCount=failing), "does not list"),
        (recorded(nvmlDeviceGetCount=lambda: 0), "shows no GPU"),
    ],
)
def test_nvml_without_a_gpu(library: Any, words: str) -> None:
    with nvidia.Nvml(library=library) as gpu:
        assert words in gpu.problem
        (fact,) = gpu.facts()
        assert fact.value is None
        assert gpu.sample() == []


def test_nvml_that_cannot_say_anything_is_unknown_everywhere() -> None:
    names = [name for name in vars(recorded()) if name.startswith("nvmlDeviceGet")]
    keep = {"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"}
    library = recorded(**{name: failing for name in names if name not in keep})
    with nvidia.Nvml(library=library) as gpu:
        assert {one.value for one in gpu.sample()} == {None}
        assert all("Driver Not Loaded" in one.why for one in gpu.sample())


def test_a_missing_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with nvidia.Nvml() as gpu:
        assert gpu.problem == "the package nvidia-ml-py is not installed"


def test_this_machine_answers_or_says_why_not() -> None:
    with nvidia.Nvml() as gpu:
        assert gpu.facts()
        assert bool(gpu.problem) or gpu.sample()


# --- nvidia-smi ------------------------------------------------------------------------------------------------------


SMI = """index, name, driver_version, pstate, persistence_mode, temperature.gpu, power.draw [W], enforced.power.limit [W], clocks.current.sm [MHz], clocks.max.sm [MHz]
0, NVIDIA GeForce RTX 3060, 535.183.01, P2, Disabled, 61, 112.35 W, 170.00 W, 1882 MHz, 2130 MHz
1, Orin (nvgpu), 540.3.0, N/A, Disabled, N/A, [N/A], [Not Supported], [Unknown Error], 918 MHz
"""  # noqa: E501


def test_a_table_of_nvidia_smi() -> None:
    found = nvidia.parse_smi(SMI)
    now = values(found)
    assert now["gpu0.name"] == "NVIDIA GeForce RTX 3060"
    assert (now["gpu0.temperature.gpu"], now["gpu0.power.draw"], now["gpu0.clocks.current.sm"]) == (
        61.0,
        112.35,
        1882.0,
    )
    assert {one.unit for one in found if one.name in ("gpu0.power.draw", "gpu0.temperature.gpu")} == {"W", "°C"}
    missing = {"power.draw", "enforced.power.limit", "clocks.current.sm", "temperature.gpu", "pstate"}
    assert {name for name, value in now.items() if value is None} == {f"gpu1.{name}" for name in missing}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "index, name\n",
    ],
)
def test_nvidia_smi_without_a_table(text: str) -> None:
    (found,) = nvidia.parse_smi(text)
    assert found.value is None


def test_a_broken_line_of_nvidia_smi() -> None:
    found = nvidia.parse_smi("index, name\n0, A\n1\n")
    assert values(found) == {"gpu0.name": "A", "gpu": None}


# --- nvpmodel, jetson_clocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN (0)"),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", "MODE_15W_6CORE (2)"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n", "25W (1)"),
        ("NVPM VERB: Current mode: NV Power Mode: 25W\n1\nNVPM VERB: PARAM CPU_ONLINE", "25W (1)"),
        ("NV Power Mode: MAXN_SUPER\r\n", "MAXN_SUPER"),
    ],
)
def test_power_modes(text: str, mode: str) -> None:
    assert jetson.parse_nvpmodel(text) == mode


@pytest.mark.parametrize("text", ["", "NVPM ERROR: permission denied", "NV Power Mode:\n"])
def test_no_power_mode(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        jetson.parse_nvpmodel(text)


CLOCKS = """SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Developer Kit
Online CPUs: 0-1
cpu0:  Online=1 Governor=schedutil MinFreq={0} MaxFreq=1510400 CurrentFreq=960000 IdleStates: WFI=1 c7=1
cpu1:  Online=1 Governor=schedutil MinFreq={0} MaxFreq=1510400 CurrentFreq=729600 IdleStates: WFI=1 c7=1
cpu2: Online=0 Governor=schedutil MinFreq=1 MaxFreq=1510400 CurrentFreq=729600 IdleStates: WFI=1 c7=1
GPU MinFreq={1} MaxFreq=624750000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=0
DLA0_CORE:   Online=1 MinFreq=0 MaxFreq=1369600000 CurrentFreq=1369600000
FAN Dynamic Speed control=active hwmon2_pwm1=55
NV Power Mode: 15W
"""


def test_locked_clocks() -> None:
    assert jetson.parse_jetson_clocks(CLOCKS.format(1510400, 624750000)) is True
    assert jetson.parse_jetson_clocks(CLOCKS.format(729600, 624750000)) is False
    assert jetson.parse_jetson_clocks(CLOCKS.format(1510400, 306000000)) is False
    tx1 = "cpu0: Gonvernor=interactive MinFreq=1734000 MaxFreq=1734000 CurrentFreq=1734000\n"
    assert jetson.parse_jetson_clocks(tx1) is True
    with pytest.raises(ValueError, match="root"):
        jetson.parse_jetson_clocks("Error: run as root")


def test_a_machine_that_is_no_jetson() -> None:
    found = jetson.facts()
    assert [one.name for one in found] == ["jetson.power_mode", "jetson.clocks_locked"]
    assert all(one.why for one in found if one.value is None)


def program(folder: Path, text: str) -> str:
    path = folder / "tegrastats"
    path.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_the_frequency_of_a_built_in_gpu(tmp_path: Path) -> None:
    for name, text in (("17000000.gpu", "918000000"), ("15340000.vic", "729600000")):
        (tmp_path / "sys/class/devfreq" / name).mkdir(parents=True)
        (tmp_path / "sys/class/devfreq" / name / "cur_freq").write_text(text, encoding="utf-8")
    assert values(jetson.gpu_frequency(tmp_path)) == {"jetson.frequency.gpu": 918.0}
    (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("0", encoding="utf-8")
    (found,) = jetson.gpu_frequency(tmp_path)
    assert (found.value, found.why) == (None, "the GPU has no power")


# --- tegrastats ------------------------------------------------------------------------------------------------------


TX1_28 = (
    "RAM 3468/3983MB (lfb 48x4MB) SWAP 873/8192MB (cached 295MB) cpu [17%,13%,29%,5%]@408 EMC 1%@408 APE 25 GR3D 3%@76"
)
TX2_32 = (
    "RAM 2135/7855MB (lfb 1057x4MB) CPU [2%@2035,0%@2035,0%@2035,2%@2035,2%@2036,2%@2035] EMC_FREQ 1%@1866 "
    "GR3D_FREQ 0%@1300 APE 150 MTS fg 0% bg 0% BCPU@30C MCPU@30C GPU@29C PLL@30C Tboard@28C Tdiode@28.25C PMIC@100C "
    "thermal@29.4C VDD_IN 3104/4029 VDD_CPU 291/730 VDD_GPU 145/207 VDD_SOC 727/746 VDD_WIFI 0/180 VDD_DDR 1248/1375"
)
XAVIER_35 = (
    "RAM 2690/6854MB (lfb 6x1MB) SWAP 479/3427MB (cached 3MB) CPU [3%@1904,7%@1906,1%@1905,0%@1907,off,off] "
    "EMC_FREQ 0%@1600 GR3D_FREQ 0%@[510] VIC_FREQ 601 APE 150 AUX@39C CPU@39.5C AO@37.5C GPU@37.5C PMIC@50C "
    "VDD_IN 5079mW/5079mW VDD_CPU_GPU_CV 696mW/696mW VDD_SOC 1104mW/1104mW"
)
ORIN_36 = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,4%@2201,off,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 99%@[1300,1299] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C GPU@-256C "
    "tj@44.343C CV2@-256C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
THOR_38 = (
    "11-03-2025 09:12:40 RAM 5120/125771MB (lfb 12x4MB) SWAP 0/0MB (cached 0MB) CPU [4%@972,0%@2601,off,1%@972] "
    "EMC_FREQ @4266 GR3D_FREQ @[1386,1386,1575] NVENC0_FREQ @1692 VIC off cpu@41.5C tj@42.031C gpu@41.812C "
    "soc012@40.5C VDD_GPU 6330mW/6330mW VDD_CPU_SOC_MSS 5541mW/5541mW VIN_SYS_5V0 4654mW/4654mW VIN 28906mW/28906mW"
)
THOR_39 = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] EMC_FREQ 34%@4266 "
    "GR3D_FREQ 87%@[1574,1574,1574] cpu@58.25C/61.75C tj@66.625C/66.625C "
    "VDD_GPU 37939mW/8660mW/37939mW VIN 124486mW/36487mW/124486mW"
)


def test_tegrastats_of_jetpack_3() -> None:
    found = values(jetson.parse_tegrastats(TX1_28))
    assert found == {
        "jetson.frequency.cpu": 408.0, "jetson.load.cpu": 16.0, "jetson.load.emc": 1.0, "jetson.frequency.emc": 408.0,
        "jetson.load.gr3d": 3.0, "jetson.frequency.gr3d": 76.0, "jetson.memory": 3468.0,
    }  # fmt: skip


def test_tegrastats_of_jetpack_4() -> None:
    found = values(jetson.parse_tegrastats(TX2_32))
    assert found["jetson.frequency.cpu"] == 2036.0
    assert found["jetson.power.VDD_IN"] == 3.104
    assert found["jetson.power.VDD_WIFI"] == 0.0  # a rail that says 0 mW says so
    assert found["jetson.temperature.tdiode"] == 28.25
    assert "jetson.temperature.pmic" not in found
    assert "jetson.power.RAM" not in found


def test_tegrastats_of_jetpack_5() -> None:
    found = values(jetson.parse_tegrastats(XAVIER_35))
    assert found["jetson.frequency.gr3d"] == 510.0
    assert found["jetson.load.cpu"] == pytest.approx(11 / 4)  # cores that are off do not count
    assert [found[f"jetson.power.{rail}"] for rail in ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")] == [5.079, 0.696, 1.104]


def test_tegrastats_of_jetpack_6() -> None:
    readings = jetson.parse_tegrastats(ORIN_36)
    found = values(readings)
    assert (found["jetson.load.gr3d"], found["jetson.frequency.gr3d"]) == (99.0, 1300.0)
    assert found["jetson.temperature.gpu"] is None
    assert found["jetson.temperature.tj"] == 44.343
    assert "the block has no power" in next(one.why for one in readings if one.name == "jetson.temperature.gpu")
    assert found["jetson.power.VDDQ_VDD2_1V8AO"] == 0.301
    assert "jetson.power.NC" not in found


def test_tegrastats_of_jetpack_7() -> None:
    """Clocks without a load, three clusters of the GPU; and now, mean and highest of a temperature and a power."""
    found = values(jetson.parse_tegrastats(THOR_38))
    assert (found["jetson.frequency.gr3d"], found["jetson.frequency.emc"]) == (1575.0, 4266.0)
    assert "jetson.load.gr3d" not in found and "jetson.load.emc" not in found  # nobody said 0%
    assert (found["jetson.frequency.cpu"], found["jetson.temperature.gpu"]) == (2601.0, 41.812)
    assert [found[f"jetson.power.{rail}"] for rail in ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN")] == [6.33, 5.541, 28.906]
    loaded = values(jetson.parse_tegrastats(THOR_39))
    assert (loaded["jetson.load.gr3d"], loaded["jetson.frequency.gr3d"]) == (87.0, 1574.0)
    assert (loaded["jetson.temperature.tj"], loaded["jetson.power.VIN"]) == (66.625, 124.486)


def test_a_gpu_without_a_clock_has_no_frequency() -> None:
    found = values(jetson.parse_tegrastats(ORIN_36.replace("99%@[1300,1299]", "0%@[0,0]")))
    assert found["jetson.load.gr3d"] == 0.0
    assert "jetson.frequency.gr3d" not in found


@pytest.mark.parametrize("line", ["", "hello", "tegrastats: command failed", "\x00\x01"])
def test_lines_that_are_none(line: str) -> None:
    (found,) = jetson.parse_tegrastats(line)
    assert (found.name, found.value) == ("jetson", None)


@given(st.sampled_from([TX1_28, TX2_32, XAVIER_35, ORIN_36, THOR_38, THOR_39]), st.integers(0, 500))
def test_a_line_that_is_cut_off_never_gives_another_value(line: str, length: int) -> None:
    """Whatever of a line arrives: each reading of its whole fields is the same as in the whole line."""
    whole, part = (
        values(jetson.parse_tegrastats(line)),
        values(jetson.parse_tegrastats(line[:length].rpartition(" ")[0])),
    )
    part.pop("jetson", None)
    assert all(part[name] == whole[name] for name in part)


def test_tegrastats_as_a_process(tmp_path: Path) -> None:
    text = f"import time\nfor _ in range(3): print({XAVIER_35!r}, flush=True)\ntime.sleep(60)\n"
    with jetson.Tegrastats(100, [program(tmp_path, text)]) as stats:
        found: list[tuple[int, str]] = []
        end = time.monotonic() + 10
        while len(found) < 3 and time.monotonic() < end:
            found += stats.lines()
            time.sleep(0.02)
        assert [line for _, line in found] == [XAVIER_35] * 3
        assert stats.sample() == []  # nothing new
    assert stats.problem == ""


def test_tegrastats_that_is_not_there(tmp_path: Path) -> None:
    with jetson.Tegrastats(command=[str(tmp_path / "none")]) as stats:
        (found,) = stats.sample()
    assert (found.value, found.why) == (None, "tegrastats does not start: No such file or directory")


# --- jetson-stats ----------------------------------------------------------------------------------------------------


def test_jtop() -> None:
    client = SimpleNamespace(
        power={
            "rail": {"VDD_SOC": {"volt": 5056, "curr": 288, "power": 1456, "avg": 1456, "online": True}, "X": {}},
            "tot": {"volt": 5056, "curr": 1000, "power": 5056, "avg": 5000},
        },
        temperature={
            "cpu": {"temp": 46.5, "online": True},
            "gpu": {"temp": -256, "online": False},
            "tj": {"temp": -256},
        },
        fan={"pwmfan": {"speed": [33.0, None], "rpm": [2016], "profile": "quiet"}},
        nvpmodel=SimpleNamespace(name="MAXN", id=0),
        jetson_clocks=False,
    )
    with jetson.Jtop(client) as jtop:
        found = values(jtop.sample())
    assert found == {
        "jtop.power.VDD_SOC": 1.456,
        "jtop.power.total": 5.056,
        "jtop.temperature.cpu": 46.5,
        "jtop.temperature.gpu": None,
        "jtop.temperature.tj": None,
        "jtop.fan.pwmfan.0": 0.33,
        "jtop.fan.pwmfan.1": None,
    }
    with jetson.Jtop(client) as jtop:
        assert values(jtop.facts()) == {"jetson.power_mode": "MAXN (0)", "jetson.clocks_locked": False}
        assert {one.source for one in jtop.facts()} == {"jtop.nvpmodel", "jtop.jetson_clocks"}
    with jetson.Jtop(SimpleNamespace(power=None, temperature={})) as jtop:
        assert values(jtop.sample()) == {"jtop": None}
        assert {one.why for one in jtop.facts()} == {"jtop knows none on this board"}


def test_jtop_that_has_not_heard_of_its_service_yet() -> None:
    class Early:
        @property
        def name(self) -> str:
            raise KeyError("name")

    with jetson.Jtop(SimpleNamespace(nvpmodel=Early(), jetson_clocks=True)) as jtop:
        mode, clocks = jtop.facts()
    assert (mode.value, mode.why) == (None, "jtop did not tell: KeyError")
    assert clocks.value is True


def test_jtop_tells_what_programs_that_want_root_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = SimpleNamespace(
        power={"tot": {"power": 5056}}, nvpmodel=SimpleNamespace(name="15W", id=2), jetson_clocks=True,
        start=lambda: None, close=lambda: None,
    )  # fmt: skip
    package = SimpleNamespace(jtop=lambda: client, JtopException=RuntimeError)
    monkeypatch.setitem(sys.modules, "jtop", package)
    with Sampler(root=tmp_path) as sampler:
        pass
    found = sampler.conditions()
    mode, locked = found.fact("jetson.power_mode"), found.fact("jetson.clocks_locked")
    assert mode is not None and (mode.value, mode.source) == ("15W (2)", "jtop.nvpmodel")
    assert locked is not None and locked.value is True
    assert found.get("jtop.power.total") is not None


def test_jtop_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    with jetson.Jtop() as jtop:
        (found,) = jtop.sample()
    assert found.why == "the package jetson-stats is not installed"
