"""The gates as JUnit XML, which continuous-integration servers show."""

from __future__ import annotations

from xml.etree import ElementTree

from edgetl.report.markup import clean
from edgetl.report.model import Engine, Gate, Report
from edgetl.report.tables import budget_text


def render_junit(report: Report) -> str:
    """One test case per engine and gate, and one for the build.

    That of the build fails where it is not published, as no engine may be to blame: for a verdict on transfer, a
    measurement that cannot be true, or a finished bundle that is not what was proven. A failed gate is a failure; a
    gate that did not run, or that the build does not depend on, is skipped with its message. The class name of an
    engine's case is ``edgetl.<target>.<precision>``, its name ``parity`` or ``budget``; of the build's they are
    ``edgetl.build`` and ``published``.

    Args:
        report: Its engines' gates are the cases.

    Returns:
        An XML document with its declaration, to be written as UTF-8.
    """
    gates = [(engine, name, gate) for engine in report.engines for name, gate in _gates(engine)]
    refused = not report.verdict.published
    counts = {
        "tests": str(len(gates) + 1),
        "failures": str(sum(gate.refuses for _, _, gate in gates) + refused),
        "errors": "0",
        "skipped": str(sum(gate.outcome in ("waived", "not-run") for _, _, gate in gates)),
    }
    # The schema that Jenkins publishes has no "skipped" there.
    totals = {name: count for name, count in counts.items() if name != "skipped"}
    root = ElementTree.Element("testsuites", {"name": "edgetl", **totals})
    name = clean(f"{report.project} {report.version}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "timestamp": clean(report.created), **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in (
        ("edgetl", report.edgetl_version),
        ("config", report.config_digest),
        ("published", "yes" if report.verdict.published else "no"),
        ("verdict", report.verdict.reason),
    ):
        ElementTree.SubElement(properties, "property", {"name": key, "value": clean(value)})
    build = ElementTree.SubElement(suite, "testcase", {"classname": "edgetl.build", "name": "published", "time": "0"})
    if refused:
        reason = clean(report.verdict.reason)
        ElementTree.SubElement(build, "failure", {"type": "published", "message": reason}).text = reason
    for engine, gate_name, gate in gates:
        _case(suite, engine, gate_name, gate)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _gates(engine: Engine) -> tuple[tuple[str, Gate], ...]:
    return ("parity", engine.parity_gate), ("budget", engine.budget_gate)


def _case(suite: ElementTree.Element, engine: Engine, name: str, gate: Gate) -> None:
    class_name = clean(f"edgetl.{engine.target}.{engine.precision}")
    seconds = "0"
    case = ElementTree.SubElement(suite, "testcase", {"classname": class_name, "name": name, "time": seconds})
    limits = budget_text(engine.budget) if name == "budget" else ""
    message = clean(gate.message or (f"budget: {limits}" if limits else f"{name}: {gate.outcome}"))
    if gate.refuses:
        failure = ElementTree.SubElement(case, "failure", {"type": name, "message": message})
        failure.text = clean(f"{engine.name} ({engine.backend}, {engine.provider}): {message}")
    elif gate.outcome in ("waived", "not-run"):
        prefix = "waived: " if gate.outcome == "waived" else ""
        ElementTree.SubElement(case, "skipped", {"message": f"{prefix}{message}"})
