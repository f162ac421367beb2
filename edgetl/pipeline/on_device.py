"""On the device: the engines that a bundle could only describe are made there."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import backends, catalog
from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.bundle import sign
from edgetl.bundle import write as bundles
from edgetl.errors import TargetError, UnknownNameError, UsageError
from edgetl.pipeline.check import Checked, verify_bundle
from edgetl.pipeline.engines import longest
from edgetl.pipeline.session import Reporter, Silent
from edgetl.runtime import replay
from edgetl.runtime.bundle import Bundle, EngineEntry, open_bundle
from edgetl.runtime.seal import MANIFEST, SIGNATURE
from edgetl.specs import BatchRange, Target
from edgetl.store import file_digest, storage_errors


@dataclass(frozen=True, kw_only=True)
class CompiledBundle:
    """What ``edgetl compile BUNDLE`` came to."""

    bundle: Path
    """The new bundle; the old one is not changed."""
    engines: tuple[str, ...]
    """Target and precision of the engines that were made."""
    checked: Checked
    """The golden inputs, replayed on every engine of the new bundle that runs here."""


def compile_bundle(
    folder: Path,
    *,
    targets: tuple[str, ...] = (),
    output: Path | None = None,
    key: Path | None = None,
    signer: Path | None = None,
    reporter: Reporter | None = None,
) -> CompiledBundle:
    """Make the engines of a bundle that wait for this device, in a new bundle, and replay its golden inputs on them.

    Args:
        folder: A bundle.
        targets: Targets to build, by name or file; all that wait where empty.
        output: Folder of the new bundle; beside the old one, with the target's name, where None.
        key: Public key that must have signed the old bundle.
        signer: Private key that signs the new one; the user's own, where None.
        reporter: Is told how it goes.

    Raises:
        BundleError: The bundle, or what an engine would be made of, is not what its manifest says.
        ConfigError: ``signer`` cannot sign.
        UsageError: Nothing in it waits for a device, or the output is the bundle itself.
        UnknownNameError: No engine for one of the targets waits.
        TargetError: This machine is not the device, or the library refuses the graph.
        ParityError: An engine answers the golden inputs in another way than PyTorch did.
        StorageError: The output cannot be written.
    """
    reporter = reporter or Silent()
    sign.check_key(signer)
    bundle = open_bundle(folder, key=key)
    replay.refuse_digests(bundle)  # afterwards the new engines' stand in the place of what they are made of
    waiting = _waiting(bundle, targets)
    place = output or folder.with_name(f"{folder.name}-{'-'.join(sorted({target.name for target, _ in waiting}))}")
    if place.resolve() == folder.resolve():
        raise UsageError(f"{place} is the bundle itself", hint="edgetl compile BUNDLE -o ANOTHER_FOLDER")
    bundles.check_place(place)
    private = sign.signing_key(signer, reporter.note)
    with storage_errors(place.parent), tempfile.TemporaryDirectory(prefix="edgetl-") as name:
        draft = Path(name) / "bundle"
        shutil.copytree(folder, draft, ignore=shutil.ignore_patterns(SIGNATURE))
        entries = {(entry["target"], entry["precision"]): dict(entry) for entry in bundle.manifest["engines"]}
        for target, engine in waiting:
            reporter.started("compile", f"{engine.target} {engine.precision}")
            record = _compile(bundle, target, engine, draft)
            size = sum((draft / engine.folder / file).stat().st_size for file in record.files)
            entries[engine.target, engine.precision].update(
                status=record.status,
                versions=record.versions,
                note=record.note,
                size_bytes=size,
                files_sha256=bundles.engine_digest(draft / engine.folder),
            )
        bundles.seal(draft, _manifest(bundle, list(entries.values()), folder), private)
        checked = verify_bundle(draft, told=reporter.note)
        bundles.publish(draft, place)
    return CompiledBundle(
        bundle=place, engines=tuple(f"{engine.target} {engine.precision}" for _, engine in waiting), checked=checked
    )


def _waiting(bundle: Bundle, targets: tuple[str, ...]) -> list[tuple[Target, EngineEntry]]:
    pending = [engine for engine in bundle.engines if engine.status == "build-on-device"]
    if not pending:
        raise UsageError(f"no engine of {bundle.folder} waits for its device", hint=f"edgetl inspect {bundle.folder}")
    names = targets or tuple(dict.fromkeys(engine.target for engine in pending))
    found = []
    for name in names:
        target = catalog.target(name)
        engines = [engine for engine in pending if engine.target == target.name]
        if not engines:
            there = ", ".join(sorted({engine.target for engine in pending}))
            raise UnknownNameError(f"no engine for {target.name} waits in {bundle.folder}; it waits for {there}")
        found += [(target, engine) for engine in engines]
    return found


def _compile(bundle: Bundle, target: Target, engine: EngineEntry, draft: Path) -> EngineRecord:
    """Replace the sources of an engine in a draft of the bundle by the engine."""
    sources = bundle.folder / engine.folder
    batch = bundle.manifest["inputs"][0]["batch"]
    shutil.rmtree(draft / engine.folder)
    (draft / engine.folder).mkdir()
    request = CompileRequest(
        model=sources / EngineRecord.read(sources).files[0],
        folder=draft / engine.folder,
        target=target,
        precision=engine.precision,  # type: ignore[arg-type]  # the manifest was checked
        batch=BatchRange(min=batch[0], max=batch[1]),
        longest=longest(bundle.preprocessing),
    )
    record = backends.backend(engine.backend).compile(request)
    if record.status == "build-on-device":
        raise TargetError(f"{engine.target} {engine.precision} cannot be built here: {record.note}")
    return record


def _manifest(bundle: Bundle, entries: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The old manifest with the new engines, and where it comes from; files are listed anew when it is sealed."""
    kept = {name: value for name, value in bundle.manifest.items() if name not in ("schema", "files")}
    origin = {"built_from_sha256": file_digest(folder / MANIFEST), "built_from_signer": bundle.verified.signed_by}
    return {**kept, "engines": entries, "provenance": {**bundle.manifest.get("provenance", {}), **origin}}
