"""Publishing: readers see the old bundle whole, or the new one whole; a failure leaves the old one."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from edgetl.bundle import write
from edgetl.errors import StorageError
from edgetl.runtime.bundle import open_bundle

MakeBundle = Callable[..., Path]
READER = """
import sys
from pathlib import Path
from edgetl.errors import BundleError
place, stop, seen, reads, failures = Path(sys.argv[1]), Path(sys.argv[2]), set(), 0, []
print("ready", flush=True)
while not stop.exists():
    reads += 1
    # A reader that opens the folder once sees one bundle, whatever is published meanwhile.
    import os
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        def read(name):
            with open(os.open(name, os.O_RDONLY, dir_fd=handle), "rb") as file:
                return file.read()
        seen.add((read("model.onnx"), hash(read("manifest.json"))))
    except FileNotFoundError as error:
        failures.append(str(error))
    finally:
        os.close(handle)
print(reads, len(seen), len({model for model, _ in seen}), len(failures))
"""


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_publish_makes_the_place_and_copies_everything(make_bundle: MakeBundle, tmp_path: Path) -> None:
    source, place = make_bundle(), tmp_path / "deep" / "dist" / "pets-1.0.0"
    (source / "artifact.json").write_text("the store's own", encoding="utf-8")
    write.publish(source, place)
    assert content(place) == {name: found for name, found in content(source).items() if name != "artifact.json"}
    assert open_bundle(place).verified.signed_by
    assert [path.name for path in place.parent.iterdir()] == ["pets-1.0.0"]
    assert write.same(source, place)


def test_publish_replaces_an_older_bundle(make_bundle: MakeBundle, tmp_path: Path) -> None:
    old, new, place = make_bundle("old", b"old"), make_bundle("new", b"new"), tmp_path / "dist" / "pets"
    write.publish(old, place)
    (place / "notes.txt").touch()  # what was put beside it goes with it: a bundle is exactly its manifest
    write.publish(new, place)
    assert content(place) == content(new)
    assert [path.name for path in place.parent.iterdir()] == ["pets"]


def test_without_the_systems_exchange(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_exchange", lambda one, other: False)
    old, new, place = make_bundle("old", b"old"), make_bundle("new", b"new"), tmp_path / "dist" / "pets"
    write.publish(old, place)
    write.publish(new, place)
    assert content(place) == content(new)
    assert [path.name for path in place.parent.iterdir()] == ["pets"]


def test_a_reader_in_a_loop_never_finds_the_name_empty(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundles = [make_bundle("one", b"one"), make_bundle("two", b"two")]
    place, stop = tmp_path / "dist" / "pets", tmp_path / "stop"
    write.publish(bundles[0], place)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(place), str(stop)], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for index in range(20):
            write.publish(bundles[(index + 1) % 2], place)
        stop.touch()
        out, _ = reader.communicate(timeout=60)
    # A crash of the reader would be a moment at which no bundle had the name.
    assert reader.returncode == 0
    reads, pairs, models, _ = map(int, out.split())
    assert reads > 10
    assert (pairs, models) == (2, 2)  # never one bundle's model with the other's manifest


def publish_and_hang(source: Path, place: Path, at: str, reached: Event) -> None:
    """Publish as far as a function of the module, and stay there."""

    def hang(*given: object) -> None:
        reached.set()
        time.sleep(60)

    setattr(write, at, hang)
    write._exchange = lambda one, other: False
    write.publish(source, place)


@pytest.mark.parametrize("at", ["sync_tree", "_replace", "sync_folder"])
@pytest.mark.parametrize("older", [False, True])
def test_killed_while_it_publishes(make_bundle: MakeBundle, tmp_path: Path, at: str, older: bool) -> None:
    """A half bundle stayed beside the place for good, under a hidden name."""
    old, new, place = make_bundle("old", b"old"), make_bundle("new", b"new"), tmp_path / "dist" / "pets-1.0.0"
    if older:
        write.publish(old, place)
    elsewhere = place.with_name(".pets-1.0.0.notes")
    place.parent.mkdir(exist_ok=True)
    elsewhere.touch()
    context = multiprocessing.get_context("fork")
    reached = context.Event()
    process = context.Process(target=publish_and_hang, args=(new, place, at, reached))
    process.start()
    assert reached.wait(30)
    process.kill()
    process.join()
    if at == "sync_folder":
        assert write.same(new, place), "it had taken its place"
    else:
        assert write.same(old, place) if older else not place.exists()
        assert len(list(place.parent.iterdir())) == 2 + older
    write.publish(new, place)
    assert write.same(new, place) and open_bundle(place).verified.signed_by
    assert {path.name for path in place.parent.iterdir()} == {"pets-1.0.0", elsewhere.name}


def test_what_a_living_process_publishes_is_left_to_it(make_bundle: MakeBundle, tmp_path: Path) -> None:
    source, place = make_bundle(), tmp_path / "dist" / "pets-1.0.0"
    draft = write._beside(place)
    draft.mkdir(parents=True)
    write.publish(source, place)
    assert draft.is_dir()


def test_what_was_put_into_a_published_bundle_goes_away(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """The next build said that all is done, and nothing opened the bundle."""
    source, place = make_bundle(), tmp_path / "dist" / "pets-1.0.0"
    write.publish(source, place)
    (place / "notes.txt").touch()
    write.publish(source, place)
    assert not (place / "notes.txt").exists() and open_bundle(place).verified.signed_by


def test_same_sees_every_difference(make_bundle: MakeBundle, tmp_path: Path) -> None:
    source, place = make_bundle(), tmp_path / "dist" / "pets"
    assert not write.same(source, place)
    write.publish(source, place)
    for name in content(source):
        before = (place / name).read_bytes()
        (place / name).write_bytes(before + b"x")
        assert not write.same(source, place), name
        (place / name).unlink()
        assert not write.same(source, place), name
        (place / name).write_bytes(before)
    assert write.same(source, place)


def test_a_place_below_a_file(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a file is in the way"):
        write.publish(make_bundle(), tmp_path / "file" / "dist" / "pets")


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_is_not_a_bundle_is_never_replaced(make_bundle: MakeBundle, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "dist" / "pets"
    place.parent.mkdir()
    if kind == "folder":
        place.mkdir()
        (place / "thesis.txt").write_text("years of work", encoding="utf-8")
    elif kind == "file":
        place.write_text("years of work", encoding="utf-8")
    else:
        place.symlink_to("nowhere")
    with pytest.raises(StorageError, match="is there and is not a bundle"):
        write.publish(make_bundle(), place)
    if kind == "dangling link":
        assert place.is_symlink()
    else:
        kept = place / "thesis.txt" if kind == "folder" else place
        assert kept.read_text(encoding="utf-8") == "years of work"
    assert [path.name for path in place.parent.iterdir()] == ["pets"]


def test_an_empty_folder_may_be_replaced(make_bundle: MakeBundle, tmp_path: Path) -> None:
    place = tmp_path / "dist" / "pets"
    place.mkdir(parents=True)
    write.publish(make_bundle(), place)
    assert open_bundle(place).verified.signed_by


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.decode().strip()}")


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize("kind", ["read-only", "full"])
def test_a_disk_that_cannot_be_written_keeps_the_old_bundle(make_bundle: MakeBundle, tmp_path: Path, kind: str) -> None:
    old, new = make_bundle("old", b"old"), make_bundle("new", b"n" * 2_000_000)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk))
    try:
        place = disk / "dist" / "pets"
        write.publish(old, place)
        if kind == "read-only":
            mount("-o", "remount,ro", str(disk))
        said = "the file system is read-only" if kind == "read-only" else "the disk is full"
        with pytest.raises(StorageError, match=said) as caught:
            write.publish(new, place)
        assert caught.value.exit_code == 8
        assert content(place) == content(old)
        assert [path.name for path in place.parent.iterdir()] == ["pets"]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
