"""edgetl report: a bundle's report in any of its formats; and what edgetl build does with reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.options import Json, Key
from edgetl.cli.terminal import print_document, print_json, print_text
from edgetl.errors import BundleError, StorageError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from edgetl.report.formats import Format

_NAMES = "html, json, junit, sarif, codequality, markdown, card"
_OTHERS = ("parity.json", "bench.json", "quantization.json")
"""Files of a folder of reports that are no rendering of report.json."""

GitHub = Annotated[
    bool | None,
    typer.Option(
        "--github/--no-github",
        help="Annotate edgetl.toml and write the step summary of GitHub Actions.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="report", help="A bundle's report: as a page, or for programs and pipelines.")(_report)


def _report(
    bundle: Annotated[
        Path, typer.Argument(help="A bundle's folder, or one that edgetl build --reports wrote.", show_default=False)
    ],
    form: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help=f"{_NAMES} [default: where the page is].")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write [default: stdout].")] = None,
    key: Key = None,
    github: GitHub = None,
    json: Json = False,
) -> None:
    chosen = _format(form or "html")
    folder = _reports_of(bundle, key)
    if github:
        tell_github(folder, asked=True)
    if form is None and output is None:
        path = folder / chosen.file
        if not path.is_file():
            raise _missing(path)
        print_json("report", {"path": str(path)}) if json else print_text(str(path))
        return
    text = _text(folder, chosen)
    if output is None:
        print_json("report", {"format": form, "text": text}) if json else print_document(text)
        return
    from edgetl.store import check_output, write_whole

    check_output("-o", output, chosen.file)
    write_whole(output, text)
    print_json("report", {"path": str(output)}) if json else print_text(str(output))


def handler(reports: Path | None, github: bool | None, *, dry_run: bool) -> Callable[[Path], None]:
    """What a build does with its folder of reports, published or refused.

    Args:
        reports: Folder that receives copies. Reports of an earlier build are removed from it at once: a build that
            fails before there are new ones must not leave them to be taken for its own.
        github: True: tell GitHub Actions; None: where it runs the build; False: do not.
        dry_run: There will be no reports; nothing is removed.

    Raises:
        UsageError: GitHub Actions is to be told, and is not there; or the folder belongs to a bundle.
        StorageError: The folder cannot be written.
    """
    if github and not os.environ.get("GITHUB_STEP_SUMMARY"):
        raise _no_summary()
    if reports is not None and not dry_run:
        _clear(reports)

    def handle(folder: Path) -> None:
        if reports is not None:
            from edgetl.store import check_folder, write_whole

            check_folder(reports)
            for path in folder.iterdir():
                if path.name in _files():
                    write_whole(reports / path.name, path.read_text(encoding="utf-8"))
        if github or (github is None and os.environ.get("GITHUB_ACTIONS") == "true"):
            tell_github(folder, asked=bool(github))

    return handle


def tell_github(folder: Path, *, asked: bool) -> None:
    """Annotations on stderr, which GitHub's runner reads as it does stdout, and the step summary.

    Args:
        folder: Of reports.
        asked: A missing step summary is an error, and not only the end of it.

    Raises:
        UsageError: It was asked for, and GITHUB_STEP_SUMMARY is not set.
        BundleError: The folder has no report that can be read.
        StorageError: The summary cannot be written.
    """
    from edgetl.report.document import read_json
    from edgetl.report.github import render_commands, render_summary
    from edgetl.store import storage_errors

    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if asked and not summary:
        raise _no_summary()
    report = read_json(_content(folder / "report.json"))
    sys.stderr.write(render_commands(report))
    if summary:
        if not Path(summary).parent.is_dir():
            raise StorageError(f"GITHUB_STEP_SUMMARY is {summary}, and there is no folder {Path(summary).parent}")
        with storage_errors(Path(summary), alone=True), Path(summary).open("a", encoding="utf-8") as file:
            file.write(render_summary(report))


def _no_summary() -> UsageError:
    return UsageError(
        "--github: GITHUB_STEP_SUMMARY is not set; it is where GitHub Actions runs a step",
        hint="edgetl report BUNDLE --format markdown -o summary.md",
    )


def _format(name: str) -> Format:
    from edgetl.report.formats import FORMATS

    if name not in FORMATS:
        from edgetl.tomlfile import did_you_mean

        raise UnknownNameError(f"there is no report format '{name}'; {did_you_mean(name, FORMATS)}", hint=_NAMES)
    return FORMATS[name]


def _reports_of(bundle: Path, key: Path | None) -> Path:
    """The folder with the reports: of a bundle that was checked, or itself."""
    if key is None and not (bundle / "manifest.json").exists() and (bundle / "report.json").is_file():
        return bundle
    from edgetl.runtime.bundle import open_bundle

    return open_bundle(bundle, key=key).folder / "reports"


def _text(folder: Path, form: Format) -> str:
    """As it was built, and signed with the bundle; what is not there is made from report.json."""
    path = folder / form.file
    if path.is_file():
        return _content(path)
    from edgetl.report.document import read_json

    return form.render(read_json(_content(folder / "report.json")))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {path}: {error}") from None


def _missing(path: Path) -> BundleError:
    return BundleError(f"there is no {path.name} in {path.parent}: an older edgetl built it", hint="edgetl build")


def _clear(reports: Path) -> None:
    from edgetl.store import check_folder, storage_errors

    if (reports / "manifest.json").exists() or (reports.parent / "manifest.json").exists():
        raise UsageError(f"--reports {reports} is in a bundle, which is sealed", hint="a folder of its own")
    check_folder(reports)  # before hours of training
    with storage_errors(reports, alone=True):
        for name in _files():
            (reports / name).unlink(missing_ok=True)


def _files() -> tuple[str, ...]:
    """Names of the files that a folder of reports may have."""
    from edgetl.report.formats import FORMATS

    return (*(form.file for form in FORMATS.values()), *_OTHERS)
