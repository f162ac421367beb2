"""edgetl report in every format, and what edgetl build gives to a pipeline, published or refused."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow
FILES = {
    "html": "report.html", "json": "report.json", "junit": "junit.xml", "sarif": "report.sarif",
    "codequality": "codequality.json", "markdown": "report.md", "card": "model-card.md",
}  # fmt: skip


def parsed(form, text):
    if form in ("json", "sarif", "codequality"):
        return json.loads(text)
    if form == "junit":
        return ElementTree.fromstring(text.encode("utf-8"))
    assert {"html": "<!DOCTYPE html>", "markdown": "## edgetl", "card": "---\n"}[form] in text[:20]
    return text


@pytest.mark.parametrize("form", FILES)
def test_a_bundle_has_its_report_in_every_format(edgetl, built, tmp_path, form):
    there = built.bundle / "reports" / FILES[form]
    shown = edgetl("report", built.bundle, "--format", form)
    assert shown.code == 0, shown.err
    assert shown.out == there.read_text(encoding="utf-8")
    assert parsed(form, shown.out) is not None
    written = tmp_path / "new" / "file"
    assert edgetl("report", built.bundle, "--format", form, "-o", written).out.strip() == str(written)
    assert written.read_text(encoding="utf-8") == shown.out
    assert edgetl("report", built.bundle, "--format", form, "--json").document["result"]["text"] == shown.out


def test_what_a_folder_lacks_is_made_from_its_json(edgetl, built, tmp_path):
    only = tmp_path / "reports"
    only.mkdir()
    shutil.copy(built.bundle / "reports" / "report.json", only)
    for form, name in FILES.items():
        done = edgetl("report", only, "--format", form)
        assert done.out == (built.bundle / "reports" / name).read_text(encoding="utf-8"), done.err


def test_reports_point_at_lines_of_the_configuration(built):
    report = json.loads((built.bundle / "reports" / "report.json").read_text(encoding="utf-8"))["report"]
    assert report["config_file"] == "edgetl.toml"
    lines = built.config.read_text(encoding="utf-8").splitlines()
    places = {(each["key"], each["target"]): lines[each["line"] - 1] for each in report["settings"]}
    assert places["parity.max_drop", ""] == "max_drop = 0.05"
    assert places["target.precisions", "intel-cpu"] == 'precisions = ["int8", "fp32"]'
    assert places["target.budget", "rtx-pc"] == "[[target]]"
    for engine in report["engines"]:
        if engine["parity"]:
            assert {each["value"] for each in engine["parity"]["slices"]} == {"box", "cross", "disc"}


def test_json_files_of_a_bundle_are_what_their_schemas_say(edgetl, built):
    jsonschema = pytest.importorskip("jsonschema", reason="extra dev")
    for name in ("report", "parity", "bench", "quantization"):
        schema = json.loads(edgetl("schema", "--of", name).out)
        document = json.loads((built.bundle / "reports" / f"{name}.json").read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator(schema).validate(document)
    edgetl("schema", "--of", "reprot").failed(2, "'report'")


def test_words_for_what_cannot_be(edgetl, built, tmp_path):
    edgetl("report", built.bundle, "--format", "pdf").failed(2, "pdf", hint="sarif")
    edgetl("report", built.bundle, "--format", "sraif").failed(2, "did you mean 'sarif'?")
    edgetl("report", built.bundle, "-o", tmp_path).failed(2, "is a folder")
    edgetl("report", built.bundle, "--github", env={"GITHUB_STEP_SUMMARY": ""}).failed(2, "GITHUB_STEP_SUMMARY")
    older = shutil.copytree(built.bundle / "reports", tmp_path / "older")
    (older / "report.json").write_text('{"schema": 0}', encoding="utf-8")
    (older / "report.sarif").unlink()
    edgetl("report", older, "--format", "sarif").failed(7, "schema 0")
    inside = built.bundle / "reports"
    edgetl("build", built.folder, "--reports", inside).failed(2, "sealed")
    assert (inside / "report.json").is_file()


def test_a_build_on_github_tells_by_itself(edgetl, built, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = edgetl("build", built.folder, "--json", env=env)
    assert done.code == 0, done.err
    assert done.document["kind"] == "build"
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("before\n## edgetl: shapes 1.0.0\n") and "✅ published" in text
    assert edgetl("build", built.folder, "--no-github", env=env).code == 0
    assert summary.read_text(encoding="utf-8") == text
    assert edgetl("report", built.bundle, env=env).code == 0
    assert summary.read_text(encoding="utf-8") == text, "only a build tells without being asked"
    assert edgetl("report", built.bundle, "--github", env=env).code == 0
    assert summary.read_text(encoding="utf-8") == text + text.removeprefix("before\n")


def test_a_refused_build_delivers_its_reports_and_keeps_its_exit_code(edgetl, variant, tmp_path):
    variant.edit(('precisions = ["int8", "fp32"]', 'precisions = ["int8", "fp32"]\nbudget = { p50_ms = 0.0001 }'))
    reports, summary = tmp_path / "deep" / "reports", tmp_path / "summary.md"
    reports.mkdir(parents=True)
    (reports / "model-card.md").write_text("of an earlier build", encoding="utf-8")
    (reports / "mine.txt").write_text("not a report", encoding="utf-8")
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = edgetl("build", variant.folder, "--reports", reports, env=env)
    done.failed(5, "x86-64-cpu", "nothing was published")
    names = {path.name for path in reports.iterdir()}
    assert names == {*FILES.values(), "parity.json", "bench.json", "quantization.json", "mine.txt"} - {"model-card.md"}
    line = 1 + variant.config.read_text(encoding="utf-8").splitlines().index("budget = { p50_ms = 0.0001 }")
    sarif = json.loads((reports / "report.sarif").read_text(encoding="utf-8"))
    missed = [each for each in sarif["runs"][0]["results"] if each["ruleId"] == "edgetl/budget-missed"]
    assert missed[0]["locations"][0]["physicalLocation"]["region"]["startLine"] == line
    assert f"::error file=edgetl.toml,line={line},title=A latency budget was missed::" in done.err
    assert "❌ not published" in summary.read_text(encoding="utf-8")
    suite = ElementTree.parse(reports / "junit.xml").getroot()
    assert int(suite.get("failures")) >= 1
    card = edgetl("report", reports, "--format", "card")
    assert "**Not published**" in card.out, card.err

    blocked = edgetl("build", variant.folder, "--reports", tmp_path / "summary.md" / "below", env=env)
    assert blocked.code in (5, 8), blocked.err

    variant.edit(("schema = 1", "schema = 7"))
    edgetl("build", variant.folder, "--reports", reports).failed(2, "schema")
    assert {path.name for path in reports.iterdir()} == {"mine.txt"}, "stale reports would be taken for this build's"
