"""The store: keys, atomic publication, damage, kills, races, full and read-only disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.drafts import draft_name
from edgetl.errors import DataError, StorageError, UsageError
from edgetl.store import (
    Store,
    check_output,
    code_digest,
    digest_of,
    file_digest,
    storage_errors,
    versions_of,
    write_whole,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)


def writes(text: str = "content") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(text, encoding="utf-8")
        (folder / "sub" / "b.bin").write_bytes(b"\0" * 4096)

    return make


def never(folder: Path) -> None:
    raise AssertionError("this result should not be made again")


def leftovers(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").iterdir()]


# --- keys ------------------------------------------------------------------------------------------------------------


@given(JSON)
def test_a_digest_is_of_the_value_not_of_its_order(value: Any) -> None:
    def reversed_keys(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: reversed_keys(below) for key, below in reversed(part.items())}
        return [reversed_keys(below) for below in part] if isinstance(part, list) else part

    try:
        expected = digest_of(value)
    except UnicodeEncodeError:
        return
    assert digest_of(reversed_keys(value)) == expected
    assert digest_of(json.loads(json.dumps(value))) == expected
    assert re.fullmatch("[0-9a-f]{64}", expected)


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(), min_size=1), st.data())
def test_any_change_of_an_input_changes_the_key(inputs: dict[str, int], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(inputs)))
    assert digest_of(inputs) != digest_of({**inputs, name: inputs[name] + 1})
    assert digest_of(inputs) != digest_of({key: value for key, value in inputs.items() if key != name})
    assert digest_of({**inputs, name: str(inputs[name])}) != digest_of(inputs)


@pytest.mark.parametrize("value", [{"a": Path("x")}, {"a": {1, 2}}, b"bytes", {"a": object()}])
def test_what_is_not_json_has_no_digest(value: Any) -> None:
    with pytest.raises(TypeError):
        digest_of(value)


def test_nan_has_no_digest() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"a": float("nan")})


def test_code_and_versions() -> None:
    assert code_digest("store.py") != code_digest("errors.py")
    assert code_digest("bundle") == code_digest("bundle") != code_digest("bundle/sign.py")
    assert versions_of("numpy", "no-such-package-at-all")["no-such-package-at-all"] == ""
    assert versions_of("numpy")["numpy"]


# --- making and finding ----------------------------------------------------------------------------------------------


def test_a_result_is_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "store")
    first = store.get("stage", {"a": 1}, writes())
    second = Store(store.root).get("stage", {"a": 1}, never)
    assert (first.cached, second.cached) == (False, True)
    assert (first.key, first.digest, first.folder) == (second.key, second.digest, second.folder)
    assert (second / "a.txt").read_text(encoding="utf-8") == "content"
    assert leftovers(store) == []


def test_other_inputs_other_stage_other_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folders = {
        store.get(stage, inputs, writes()).folder
        for stage, inputs in (("a", {"x": 1}), ("a", {"x": 2}), ("b", {"x": 1}), ("a", {"y": 1}))
    }
    assert len(folders) == 4


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    store = Store(tmp_path)
    same = [store.get("s", {"x": index}, writes("same")).digest for index in range(2)]
    assert same[0] == same[1] != store.get("s", {"x": 3}, writes("other")).digest


def test_force_makes_it_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get("s", {}, writes("old"))
    new = store.get("s", {}, writes("new"), force=True)
    assert ((new / "a.txt").read_text(encoding="utf-8"), new.cached) == ("new", False)
    assert leftovers(store) == []


def test_a_failing_stage_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails(folder: Path) -> None:
        writes()(folder)
        raise DataError("bad")

    with pytest.raises(DataError, match="bad"):
        store.get("s", {}, fails)
    assert leftovers(store) == []
    assert store.find("s", digest_of({})) is None
    assert store.get("s", {}, writes()).cached is False


def test_an_interrupted_stage_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def stopped(folder: Path) -> None:
        writes()(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("s", {}, stopped)
    assert leftovers(store) == []


# --- damage ----------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed file": lambda folder: (folder / "a.txt").write_text("conTent", encoding="utf-8"),
    "truncated file": lambda folder: os.truncate(folder / "sub" / "b.bin", 7),
    "missing file": lambda folder: (folder / "a.txt").unlink(),
    "missing folder": lambda folder: shutil.rmtree(folder / "sub"),
    "missing listing": lambda folder: (folder / "artifact.json").unlink(),
    "empty listing": lambda folder: (folder / "artifact.json").write_text("", encoding="utf-8"),
    "zeroed listing": lambda folder: (folder / "artifact.json").write_bytes(b"\0" * 80),
    "listing of a list": lambda folder: (folder / "artifact.json").write_text("[]", encoding="utf-8"),
    "listing of null": lambda folder: (folder / "artifact.json").write_text("null", encoding="utf-8"),
    "files is a list": lambda folder: (folder / "artifact.json").write_text('{"files": [1]}', encoding="utf-8"),
    "no files": lambda folder: (folder / "artifact.json").write_text("{}", encoding="utf-8"),
    "file became a folder": lambda folder: ((folder / "a.txt").unlink(), (folder / "a.txt").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_result_is_made_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    store = Store(tmp_path)
    whole = store.get("s", {"a": 1}, writes())
    damage(whole.folder)
    again = store.get("s", {"a": 1}, writes())
    assert (again.cached, again.digest) == (False, whole.digest)
    assert store.find("s", whole.key) is not None
    assert leftovers(store) == []


@given(st.integers(0, 4095), st.integers(1, 255))
def test_every_changed_byte_is_seen(tmp_path_factory: pytest.TempPathFactory, offset: int, flip: int) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "flipped")
    made = store.get("s", {}, writes())
    content = bytearray((made / "sub/b.bin").read_bytes())
    content[offset] ^= flip
    (made / "sub/b.bin").write_bytes(content)
    assert store.find("s", made.key) is None


# --- kills and races -------------------------------------------------------------------------------------------------

SLOW = """
import os, sys, time
from pathlib import Path
from edgetl.store import Store

def make(folder):
    (folder / "part.bin").write_bytes(b"x" * 100_000)
    Path(sys.argv[2]).touch()
    while not Path(sys.argv[3]).exists():
        time.sleep(0.005)
    (folder / "pid.txt").write_text(str(os.getpid()))

found = Store(Path(sys.argv[1])).get("s", {"a": 1}, make)
print(found.digest, (found / "pid.txt").read_text())
"""


def start(store: Path, ready: Path, go: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(store), str(ready), str(go)], stdout=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("waited for 20 s")


def test_killed_while_making(tmp_path: Path) -> None:
    root, ready, go = tmp_path / "store", tmp_path / "ready", tmp_path / "go"
    with start(root, ready, go) as process:
        wait_for(ready.exists)
        process.send_signal(signal.SIGKILL)
    assert len(list((root / "tmp").iterdir())) == 1  # what a kill leaves: a draft, and no result
    assert not (root / "s").exists()
    go.touch()
    with start(root, ready, go) as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, len(out.split())) == (0, 2)
    assert list((root / "tmp").iterdir()) == []
    assert Store(root).get("s", {"a": 1}, never).digest == out.split()[0]


def test_two_processes_make_the_same_result(tmp_path: Path) -> None:
    root, go = tmp_path / "store", tmp_path / "go"
    ready = [tmp_path / f"ready{index}" for index in range(3)]
    processes = [start(root, path, go) for path in ready]
    wait_for(lambda: all(path.exists() for path in ready))  # all of them are inside make()
    go.touch()
    results = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(results) == 1  # one result won, and every process reads that one
    assert len(list((root / "s").iterdir())) == 1
    assert list((root / "tmp").iterdir()) == []


def test_a_result_that_appears_between_two_looks_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Store(tmp_path).get("s", {}, writes("theirs"))
    aside = tmp_path / "aside"
    made.folder.rename(aside)
    read, looked = Path.read_text, []

    def late(path: Path, **named: str) -> str:
        if path.parent == made.folder and not looked:
            looked.append(path)
            try:
                return read(path, **named)
            finally:
                aside.rename(made.folder)  # the other process publishes just now
        return read(path, **named)

    store = Store(tmp_path)
    monkeypatch.setattr(Path, "read_text", late)
    store.find("s", made.key)
    found = store.find("s", made.key)
    assert looked and found is not None and found.digest == made.digest


def test_a_result_that_somebody_reads_is_not_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def overtaken(folder: Path) -> None:
        writes("ours")(folder)
        Store(tmp_path).get("s", {}, writes("theirs"))

    made = store.get("s", {}, overtaken)
    assert (made / "a.txt").read_text(encoding="utf-8") == "theirs"
    assert made.digest == store.get("s", {}, never).digest


def test_drafts_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path: Path) -> None:
    Store(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    with subprocess.Popen(["sleep", "60"]) as alive:
        rest = draft_name().split("-", 1)[1]
        dead = tmp_path / "tmp" / f"{gone.pid}-{rest}"
        dead.mkdir()
        (dead / "big").write_bytes(b"x")
        (tmp_path / "tmp" / f"{gone.pid}-{rest[:-1]}0").touch()
        for owner in (alive.pid, os.getpid(), 1):
            (tmp_path / "tmp" / f"{owner}-{rest}").mkdir()
        (tmp_path / "tmp" / "notes").touch()
        store = Store(tmp_path)
        alive.kill()
    assert sorted(leftovers(store)) == sorted([f"{pid}-{rest}" for pid in (alive.pid, os.getpid(), 1)] + ["notes"])


# --- disks that are full or read-only --------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A file system of its own at ``folder``, where this user may mount one."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fills(folder: Path) -> None:
    for index in range(64):
        (folder / f"{index}.bin").write_bytes(b"x" * 65536)


def fills_by_copying(folder: Path) -> None:
    source = folder.parents[3] / "source"  # copytree collects what went wrong as text
    source.mkdir(exist_ok=True)
    for index in range(64):
        (source / f"{index}.bin").write_bytes(b"x" * 65536)
    shutil.copytree(source, folder / "copy")


def fills_with_safetensors(folder: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"x": __import__("numpy").zeros(1 << 20, "float32")}, folder / "x.safetensors")


@pytest.mark.skipif(os.name != "posix" or shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize("make", [fills, fills_by_copying, fills_with_safetensors])
def test_a_full_disk(tmp_path: Path, make: Callable[[Path], None]) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as place:
        store = Store(place / "store")
        kept = store.get("s", {"kept": 1}, writes())
        with pytest.raises(StorageError, match="the disk is full") as caught:
            store.get("s", {"big": 1}, make)
        assert caught.value.exit_code == 8
        assert str(store.root) in caught.value.message
        assert leftovers(store) == []
        assert [path.name for path in (store.root / "s").iterdir()] == [kept.key]
        assert store.get("s", {"kept": 1}, never).digest == kept.digest
        assert store.get("s", {"small": 1}, writes()).cached is False  # there is room again


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_read_only_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "place", "-t", "tmpfs", "tmpfs") as place:
        Store(place / "store").get("s", {}, writes())
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        for root in (place / "store", place / "other"):
            with pytest.raises(StorageError, match="the file system is read-only"):
                Store(root)


def test_a_file_limit(tmp_path: Path) -> None:
    """Needs no privilege: the system refuses to let a file grow."""
    store = Store(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(StorageError, match="larger than the system allows"):
            store.get("s", {}, fills)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert leftovers(store) == []


def test_a_place_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a file is in the way"):
        Store(tmp_path / "file" / "store")
    with pytest.raises(StorageError, match="a file is in the way"):
        Store(tmp_path / "file")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that takes no files")
@pytest.mark.parametrize("place", ["/proc", "/proc/x", "/proc/x/y"])
def test_a_place_that_takes_no_files(place: str) -> None:
    with pytest.raises(StorageError, match="no file or folder can be made there") as caught:
        Store(Path(place))
    assert (
        caught.value.message.startswith(f"cannot write to {place}: ") and caught.value.hint == "choose another folder"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        Store(tmp_path / "store")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR])
def test_refusals_name_the_place_and_the_file(number: int) -> None:
    with (
        pytest.raises(StorageError, match=r"cannot write to a/store: .* \(a/store/f\)"),
        storage_errors(Path("a/store")),
    ):
        raise OSError(number, os.strerror(number), "a/store/f")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no"), ValueError("No space"), DataError("x"), OSError("no number")]
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, storage_errors(Path("x")):
        raise error
    assert caught.value is error


def test_a_file_is_hashed_whole(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    import hashlib

    assert file_digest(tmp_path / "f") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ENOENT])
def test_where_nothing_but_writing_is_done_any_error_is_a_refusal(number: int) -> None:
    with pytest.raises(StorageError, match="cannot write to a: "), storage_errors(Path("a"), alone=True):
        raise OSError(number, os.strerror(number), "a/b")


# --- files of the user's ---------------------------------------------------------------------------------------------


def test_a_file_that_is_written_again_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("of yesterday", encoding="utf-8")
    path.chmod(0o600)
    write_whole(path, "of today")
    assert path.read_text(encoding="utf-8") == "of today" and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_device_that_is_full_is_the_place_that_cannot_be_written() -> None:
    with pytest.raises(StorageError, match=r"^cannot write to /dev/full: the disk is full$") as caught:
        write_whole(Path("/dev/full"), "of today")
    assert caught.value.hint == "choose another place"


def test_an_output_is_tried_before_anything_is_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output("-o", tmp_path / "new" / "report.html", "report.html")
    check_output("-o", tmp_path / "file", "report.html")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "new"]
    with pytest.raises(UsageError, match=r"-o .* is a folder") as caught:
        check_output("-o", tmp_path, "report.html")
    assert caught.value.hint == f"-o {tmp_path / 'report.html'}"
    with pytest.raises(StorageError, match="a file is in the way"):
        check_output("-o", tmp_path / "file" / "report.html", "report.html")


@pytest.mark.parametrize("leads", ["nowhere/calls.json", "link"])
def test_an_output_that_is_a_link_to_no_place_is_refused(tmp_path: Path, leads: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(leads)
    with pytest.raises(UsageError, match=rf"^-o .*link is a link to {leads}, where no file can be$") as refused:
        check_output("-o", link, "calls.json")
    assert refused.value.hint == f"-o {tmp_path / 'calls.json'}"


def test_an_output_that_is_a_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("calls.json")
    check_output("-o", link, "calls.json")
    write_whole(link, "a")
    assert link.is_symlink() and (tmp_path / "calls.json").read_text(encoding="utf-8") == "a"


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="a name of stdout")
def test_what_is_written_to_stdout_by_its_name_stands_in_its_turn(capfd: pytest.CaptureFixture[str]) -> None:
    """Pytest's is a file, as with ``> FILE``."""
    sys.stdout.write("before\n")
    write_whole(Path("/dev/stdout"), "document\n")
    sys.stdout.write("after\n")
    assert capfd.readouterr().out == "before\ndocument\nafter\n"


def test_a_file_that_is_a_mount_is_written_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``docker run -v $PWD/report.html:/report.html``: nothing can take its place."""

    def busy(_: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))

    monkeypatch.setattr(Path, "replace", busy)
    (tmp_path / "report.html").write_text("of yesterday", encoding="utf-8")
    write_whole(tmp_path / "report.html", "of today")
    assert [(each.name, each.read_text(encoding="utf-8")) for each in tmp_path.iterdir()] == [
        ("report.html", "of today")
    ]
