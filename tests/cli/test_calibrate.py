"""edgetl calibrate --show and --diff, on calibrations that are written here, and on a project that was built."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest

from edgetl.cli.terminal import times
from edgetl.quantize import statistics
from edgetl.quantize.sketch import Sketch

pytestmark = pytest.mark.slow
BLOCKS = set("▁▂▃▄▅▆▇█")
SOURCE = {"model": "a" * 64, "samples": "b" * 64, "preprocessing": "c" * 64}
NARROW = {"COLUMNS": "80"}


def save(folder: Path, samples: int = 16, source: dict | None = None, **values) -> Path:
    folder.mkdir()
    sketches = {
        name: Sketch.of(np.asarray(array, np.float32).reshape(1, -1), channel_axis=None)
        for name, array in values.items()
    }
    statistics.save(statistics.Statistics(sketches=sketches, samples=samples, source=source or {}), folder)
    return folder


def normal(scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(scale=scale, size=30_000)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """Fourteen activations: of one, the estimators read very different ranges."""
    values = {f"layer.{number}": normal(1 + number, number) for number in range(10)}
    return save(
        tmp_path_factory.mktemp("calibration") / "old",
        source=SOURCE,
        tail=np.append(normal(), 300.0),
        relu=np.maximum(normal(), 0),
        constant=np.full(50, 2.5),
        **{"very." * 30 + "long\x1b[31m": normal(3)},
        **values,
    )


@pytest.fixture(scope="module")
def moved(tmp_path_factory, calibration):
    """As that one, but for two scales, an activation that went, and one that came."""
    values = {f"layer.{number}": normal(1 + number, number) for number in range(1, 10)}
    return save(
        tmp_path_factory.mktemp("calibration") / "new",
        source={**SOURCE, "samples": "d" * 64},
        samples=20,
        tail=np.append(normal(), 300.0),
        relu=4 * np.maximum(normal(), 0),
        constant=np.full(50, 2.0),
        **{"very." * 30 + "long\x1b[31m": normal(3)},
        **values,
        came=normal(),
    )


# --- --show ----------------------------------------------------------------------------------------------------------


def test_show_draws_within_80_columns_and_without_colour(edgetl, calibration):
    done = edgetl("calibrate", "--show", calibration, env=NARROW)
    assert done.code == 0, done.err
    assert done.err == ""
    assert "\x1b" not in done.out
    lines = done.out.splitlines()
    long = [line for line in lines if len(line) > 80]
    assert [line for line in long if not line.startswith(("very.", "/"))] == []
    assert len(BLOCKS & set(done.out)) > 6
    assert "logarithmic scale" in done.out
    assert "14 activations, 16 samples; integers of onnxruntime-x86-vnni: uint8" in done.out
    assert sum(line.startswith("    estimator") for line in lines) == 10
    first = lines[lines.index("") + 1]
    assert first == "tail"  # where the estimators differ most
    assert re.search(
        r"^ . +minmax +\[-[\d.]+, 30[0-2][.\d]*\] +1\.[12]\d* +\d+ +0% +[\d.]+ dB$", done.out, re.MULTILINE
    )


def test_show_marks_both_ends_of_each_range(edgetl, calibration):
    done = edgetl("calibrate", "--show", calibration, "--tensor", "layer.3", env=NARROW)
    letters = dict(re.findall(r"^  ([A-Z])  (\w+)", done.out, re.MULTILINE))
    assert set(letters.values()) == {"minmax", "percentile", "entropy", "mse"}
    for letter in letters:
        assert re.search(rf"^ +{letter} +{letter}─+{letter}$", done.out, re.MULTILINE), done.out
        assert re.search(rf"^ {letter}  {letters[letter]}.* \d+\.\d dB$", done.out, re.MULTILINE), done.out


def test_show_tells_what_lies_beyond_what_was_seen(edgetl, calibration):
    done = edgetl("calibrate", "--show", calibration, "--tensor", "relu", "--scheme", "tensorrt", env=NARROW)
    assert "integers of tensorrt: int8, symmetric" in done.out
    assert re.search(r"^ +[A-Z] +<─+[A-Z]$", done.out, re.MULTILINE), done.out
    assert "all of them are the same" in edgetl("calibrate", "--show", calibration, "--tensor", "constant").out


def test_show_takes_names_patterns_and_a_number(edgetl, calibration):
    def shown(*arguments):
        done = edgetl("calibrate", "--show", calibration, *arguments, "--json")
        assert done.code == 0, done.err
        return [item["name"] for item in done.document["result"]["shown"]]

    assert shown("--tensor", "layer.*") == [f"layer.{number}" for number in range(10)]
    assert shown("--tensor", "relu", "--tensor", "layer.1") == ["relu", "layer.1"]
    assert len(shown("--tensor", "*")) == 14
    assert shown("--top", "1") == ["tail"]
    assert len(shown("--tensor", "layer.*", "--top", "3")) == 3


def test_show_as_json_is_complete_and_valid(edgetl, calibration):
    done = edgetl("calibrate", calibration, "--show", "--json", "--tensor", "*")
    document = json.loads(done.out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert (document["schema"], document["kind"]) == (1, "calibrate-show")
    result = document["result"]
    assert result["estimators"]["minmax"] == ["int8-minmax", "int8-search"]
    for item in result["shown"]:
        assert sum(item["histogram"]["counts"]) == pytest.approx(item["values"])
        assert {threshold["estimator"] for threshold in item["thresholds"]} == set(result["estimators"])


def test_show_adds_a_recipe_of_the_users(edgetl, calibration, tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text(
        'schema = 1\ndescription = "x"\n[activations]\nmethod = "percentile"\npercentile = 99\n'
        '[weights]\nmethod = "mse"\n',
        encoding="utf-8",
    )
    done = edgetl("calibrate", "--show", calibration, "--recipe", own, "--tensor", "relu")
    assert re.search(r"^  H  percentile 99 +mine$", done.out, re.MULTILINE), done.out


def test_names_from_a_model_cannot_command_the_terminal(edgetl, calibration, moved):
    for arguments in (["--show", calibration, "--tensor", "very*"], ["--diff", calibration, moved, "--top", "99"]):
        assert "\x1b" not in edgetl("calibrate", *arguments).out
    assert r"long\x1b[31m" in edgetl("calibrate", "--show", calibration, "--tensor", "very*").out


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["--show", "OLD", "--tensor", "realu"], ["'realu'", "did you mean 'relu'?"], "--tensor '*'"),
        (["--show", "OLD", "--tensor", "nothing*"], ["'nothing*'", "known: ", "(14 in all)"], "--tensor '*'"),
        (["--show", "OLD", "--scheme", "tensort"], ["'tensort'", "did you mean 'tensorrt'?"], ""),
        (["--show", "OLD", "--recipe", "int8-dynamic"], ["int8-dynamic", "dynamic", "no range"], "edgetl recipes"),
        (["--show", "OLD", "--recipe", "int8-msee"], ["did you mean 'int8-mse'?"], "edgetl recipes"),
        (["--show", "OLD", "--target", "intel-cpu"], ["--target", "for a project"], ""),
        (["--show", "OLD", "--top", "0"], ["--top"], ""),
        (["--show", "EMPTY"], ["calibration.json", "edgetl.toml"], "edgetl calibrate"),
        (["--show", "EMPTY/nothing"], ["nothing"], "edgetl init"),
        (["--show", "--diff", "OLD", "NEW"], ["--show", "--diff"], "one of them"),
        (["--diff", "OLD"], ["--diff", "2 arguments"], ""),
        (["--diff", "OLD", "EMPTY"], ["EMPTY", "holds no calibration"], "edgetl calibrate"),
        (["--diff", "OLD", "NEW", "--tensor", "relu"], ["--tensor", "--diff"], "--help"),
        (["--diff", "OLD", "NEW", "--recipe", "fp16"], ["fp16", "no range"], "edgetl recipes"),
        (["--diff", "OLD", "NEW", "EMPTY"], ["EMPTY"], "edgetl init"),
        (["--top", "3"], ["--top", "--show or --diff"], "--help"),
        (["--tensor", "relu"], ["--tensor", "--show or --diff"], "--help"),
    ],
)
def test_what_cannot_be_shown(edgetl, calibration, moved, tmp_path, arguments, words, hint):
    places = {"OLD": str(calibration), "NEW": str(moved), "EMPTY": str(tmp_path)}

    def filled(text):
        return re.sub("OLD|NEW|EMPTY", lambda found: places[found[0]], text)

    edgetl("calibrate", *map(filled, arguments)).failed(2, *map(filled, words), hint=hint)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "activations": [{"name": "x"}]}'])
def test_a_broken_calibration(edgetl, tmp_path, content):
    folder = save(tmp_path / "broken", x=normal())
    (folder / "calibration.json").write_text(content, encoding="utf-8")
    edgetl("calibrate", "--show", folder).failed(2, str(folder), hint="edgetl calibrate")


WITHOUT_SAFETENSORS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "safetensors":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_without_safetensors_the_extra_that_has_it_is_named(edgetl, calibration, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_SAFETENSORS, encoding="utf-8")
    bare = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    for arguments in (["--show", calibration], ["--diff", calibration, calibration]):
        edgetl("calibrate", *arguments, env=bare).failed(
            8, "safetensors", "not installed", hint="pip install 'edgetl[export]'"
        )


# --- --diff ----------------------------------------------------------------------------------------------------------


def test_diff_lists_what_moved_and_what_came_and_went(edgetl, calibration, moved):
    done = edgetl("calibrate", "--diff", calibration, moved, env=NARROW)
    assert done.code == 0, done.err
    assert "recipe int8-mse; integers of onnxruntime-x86-vnni" in done.out
    assert "number of samples: 16 → 20" in done.out
    assert "samples: bbbbbbbbbbbb… → dddddddddddd…" in done.out
    assert "model" not in done.out.partition("mse:")[0].partition("origin")[2]
    assert "mse: 2 moved, 11 did not" in done.out
    rows = re.findall(r"^ *([\d.]+)× .* (\S+)$", done.out, re.MULTILINE)
    assert [name for _, name in rows] == ["relu", "constant"] * 2  # by mse, outliers kept and dropped
    assert float(rows[0][0]) == pytest.approx(4, rel=0.01)
    assert "only in OLD: layer.0" in done.out
    assert "only in NEW: came" in done.out
    assert "… and 1 more: --top 2" in edgetl("calibrate", "--diff", calibration, moved, "--top", "1").out


def test_diff_as_json_and_with_other_recipes(edgetl, calibration, moved):
    done = edgetl("calibrate", "--diff", calibration, moved, "--recipe", "int8-minmax", "--recipe", "int8-entropy",
                  "--scheme", "tensorrt", "--json")  # fmt: skip
    result = done.document["result"]
    assert done.document["kind"] == "calibrate-diff"
    assert (result["recipes"], result["scheme"]) == (["int8-minmax", "int8-entropy"], "tensorrt")
    assert [item["estimator"] for item in result["ranges"]] == ["minmax", "entropy"]
    assert result["ranges"][0]["moved"][0]["ratio"] == pytest.approx(4, rel=0.01)
    assert (result["same"], result["only_old"], result["only_new"]) == (False, ["layer.0"], ["came"])
    assert [item["fact"] for item in result["source"]] == ["number of samples", "samples"]


def test_diff_of_equal_ones_says_that_nothing_moved(edgetl, calibration):
    done = edgetl("calibrate", "--diff", calibration, calibration)
    assert done.code == 0
    assert "mse: nothing moved; 14 activations are quantized as before" in done.out
    assert "model, samples and preprocessing are the same" in done.out
    assert edgetl("calibrate", "--diff", calibration, calibration, "--json").document["result"]["same"] is True


def test_statistics_of_another_model_are_shown_as_such(edgetl, calibration, tmp_path):
    other = save(tmp_path / "other", source={**SOURCE, "model": "e" * 64}, elsewhere=normal())
    done = edgetl("calibrate", "--diff", calibration, other)
    assert done.code == 0, done.err
    assert "model: aaaaaaaaaaaa… → eeeeeeeeeeee…" in done.out
    assert "mse: nothing moved; 0 activations are quantized as before" in done.out
    assert "only in NEW: elsewhere" in done.out


# --- of a project ----------------------------------------------------------------------------------------------------


def test_a_project_is_calibrated_shown_and_compared(edgetl, variant):
    first = edgetl("calibrate", variant.folder, "--json")
    assert first.code == 0, first.err
    folder = Path(first.document["result"]["artifacts"]["calibrate"])
    assert (folder / "calibration.safetensors").is_file()
    shown = edgetl("calibrate", "--show", variant.folder, "--json").document["result"]
    assert (shown["folder"], shown["samples"], shown["scheme"]) == (str(folder), 32, "onnxruntime-x86")
    assert len(shown["shown"]) == 10
    assert shown["shown"] == edgetl("calibrate", "--show", folder, "--json").document["result"]["shown"]
    again = edgetl("calibrate", variant.folder, "--set", "quantize.samples=8", "--json")
    other = Path(again.document["result"]["artifacts"]["calibrate"])
    assert other != folder
    found = edgetl("calibrate", "--diff", folder, other, variant.folder, "--json").document["result"]
    assert found["recipes"] == ["int8-mse"]
    assert {item["fact"] for item in found["source"]} == {"number of samples", "samples"}
    assert found["ranges"][0]["moved"]
    assert (found["only_old"], found["only_new"]) == ([], [])


# --- progress --------------------------------------------------------------------------------------------------------


def test_killed_while_calibrating_nothing_half_made_is_left_and_the_next_run_succeeds(edgetl, start, variant):
    variant.forget("calibrate")
    for stop in (signal.SIGKILL, signal.SIGINT):
        process = start("calibrate", variant.folder)
        said = []
        assert any(said.append(line) or line.startswith("calibrate") for line in process.stderr), said
        process.send_signal(stop)
        process.stderr.close()
        process.wait(timeout=60)
        made = variant.store / "calibrate"
        whole = {"calibration.json", "calibration.safetensors"}
        assert not made.exists() or all(whole <= {file.name for file in each.iterdir()} for each in made.iterdir())
    done = edgetl("calibrate", variant.folder, "--json")
    assert done.code == 0, done.err
    folder = Path(done.document["result"]["artifacts"]["calibrate"])
    assert statistics.load(folder).samples == 32
    variant.assert_clean()


@pytest.mark.parametrize(
    ("elapsed", "left", "text"),
    [
        (0.0, None, "0:00 gone"),
        (12.9, 65.0, "0:12 gone, 1:05 left"),
        (3661.0, 36000.0, "1:01:01 gone, 10:00:00 left"),
    ],
)
def test_times_in_words(elapsed, left, text):
    assert times(elapsed, left) == text


STEPS = """
import sys, time
from edgetl.cli.terminal import TerminalReporter
reporter = TerminalReporter()
for step in range(1, 13):
    reporter.progress("calibration samples", step, int(sys.argv[1]))
    time.sleep(0.1)
    if step == int(sys.argv[2]):
        raise SystemExit("stopped")
"""


def on_a_terminal(*arguments):
    """What STEPS writes to a terminal of 80 columns."""
    main, side = pty.openpty()
    ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    unset = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    command = [sys.executable, "-c", STEPS, *arguments]
    process = subprocess.Popen(command, stdout=side, stderr=side, env={**unset, "TERM": "xterm"})
    os.close(side)
    parts = []
    while True:
        try:
            part = os.read(main, 1 << 16)
        except OSError:  # how Linux tells that the other side is closed
            break
        if not part:
            break
        parts.append(part)
    process.wait()
    os.close(main)
    return b"".join(parts).decode()


def test_a_terminal_is_told_the_time_left():
    seen = on_a_terminal("12", "0")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"calibration samples \S+ +\d+/12 0:0\d gone, 0:0\d left", plain), plain
    assert max(map(len, re.split(r"[\r\n]", plain))) <= 80
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") == 1


def test_without_a_total_there_is_no_time_left_and_an_error_gives_the_cursor_back():
    seen = on_a_terminal("0", "5")
    assert "gone" in seen
    assert "left" not in seen
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") == 1


def test_nothing_is_drawn_where_nobody_looks():
    done = subprocess.run([sys.executable, "-c", STEPS, "12", "0"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
