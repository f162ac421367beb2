"""docs/pipelines.md: its workflows are valid, and every command in them exists with those options."""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import typer

from edgetl.cli.app import app
from edgetl.report.formats import FORMATS

yaml = pytest.importorskip("yaml", reason="extra train brings PyYAML")
PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"
TEXT = PAGE.read_text(encoding="utf-8")
GITHUB, GITLAB = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))


def commands() -> list[str]:
    """Every command line of edgetl on the page: in workflows, consoles and between backticks."""
    steps = [step.get("run", "") for step in GITHUB["jobs"]["build"]["steps"]]
    lines = [line for text in [*steps, *GITLAB["model"]["script"]] for line in text.splitlines()]
    lines += re.findall(r"^\$ (.*)$", TEXT, re.MULTILINE)
    lines += re.findall(r"`(edgetl [a-z][^`]*)`", TEXT)
    return [line.strip() for line in lines if line.strip().startswith("edgetl ")]


def parse(line: str) -> str:
    """Parse a command line as edgetl does, without running it; the name of the verb."""
    group: Any = typer.main.get_command(app)
    verb, *arguments = shlex.split(line)[1:]
    command = group.commands[verb]
    arguments = ["html" if argument == "NAME" else argument for argument in arguments]
    needs_bundle = verb in ("report", "verify") and all(each.startswith("-") for each in arguments[:1])
    with command.make_context(verb, ["BUNDLE", *arguments] if needs_bundle else arguments) as context:
        form = context.params.get("form")
        assert form is None or form in FORMATS, form
    return verb


def test_every_command_on_the_page_exists_with_its_options() -> None:
    found = commands()
    assert {parse(line) for line in found} == {"build", "compile", "verify", "report", "bench", "schema"}
    assert len(found) >= 9
    with pytest.raises(Exception, match="No such option"):
        parse("edgetl build --repotrs DIR")


@pytest.mark.parametrize(("name", "document"), [("github-workflows", GITHUB), ("gitlab-ci", GITLAB)])
def test_workflows_are_what_the_public_schema_says(name: str, document: dict[Any, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="extra dev")
    pytest.importorskip("check_jsonschema", reason="extra dev: carries the schemas of GitHub and GitLab")
    file = resources.files("check_jsonschema").joinpath("builtin_schemas", "vendor", f"{name}.json")
    schema = json.loads(file.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    # YAML 1.1 reads the key "on" as true; GitHub does not.
    validator.validate({"on" if key is True else key: value for key, value in document.items()})
    assert not validator.is_valid({**document, "jobs" if name == "github-workflows" else "model": 3})


def steps(action: str) -> list[dict[str, Any]]:
    """Of the workflow, those that use an action."""
    found: list[dict[str, Any]] = GITHUB["jobs"]["build"]["steps"]
    return [step for step in found if step.get("uses", "").partition("@")[0] == action]


def test_pips_cache_is_named_after_a_file_that_a_project_has() -> None:
    """setup-python fails where it finds neither a requirements.txt nor a pyproject.toml: a project has none."""
    (step,) = steps("actions/setup-python")
    assert step["with"]["cache"] == "pip"
    assert step["with"]["cache-dependency-path"] == "edgetl.toml"


def test_the_store_outlives_a_failed_gate_and_its_measurement_does_not() -> None:
    """Caches are saved by successful jobs alone unless one says otherwise: the next run would train again."""
    assert not steps("actions/cache")
    (restored,), (saved,) = steps("actions/cache/restore"), steps("actions/cache/save")
    assert saved["if"] == "always()"
    assert saved["with"] == {key: restored["with"][key] for key in ("path", "key")}
    assert "github.run_attempt" in saved["with"]["key"]  # a cache cannot be written over
    assert GITLAB["model"]["cache"]["when"] == "always"
    builds = [line for line in commands() if line.startswith("edgetl build edgetl.toml")]
    assert len(builds) == 2
    assert all("--force bench" in line for line in builds)  # else a retry takes the figures that failed


def test_what_a_fork_may_not_do_does_not_fail_its_job() -> None:
    (step,) = steps("github/codeql-action/upload-sarif")
    assert step["if"].startswith("always()")
    assert "!github.event.pull_request.head.repo.fork" in step["if"]
    assert GITHUB["permissions"] == {"actions": "read", "contents": "read", "security-events": "write"}


def test_files_that_workflows_take_are_files_that_a_build_writes() -> None:
    taken = set(re.findall(r"\breports/([\w.-]+)", "".join(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))))
    assert taken == {"report.sarif", "junit.xml", "codequality.json"}
    assert taken <= {form.file for form in FORMATS.values()}
    for name, form in FORMATS.items():
        assert f"| `{form.file}` | `{name}` |" in TEXT


def test_exit_codes_are_those_of_the_errors() -> None:
    from edgetl import errors

    told = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", TEXT, re.MULTILINE) for code in row.split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EdgetlError)]
    assert told == {0, 129, 130, 143} | {kind.exit_code for kind in kinds}
