"""The findings of a build as SARIF 2.1.0, which code scanning shows beside edgetl.toml.

The format is OASIS's "Static Analysis Results Interchange Format (SARIF) Version 2.1.0"; what GitHub reads of it, and
which optional parts it wants, is in its "SARIF support for code scanning".
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from edgetl.report.findings import DEFAULT_FILE, RULES, Finding, Rule, findings
from edgetl.report.markup import clean
from edgetl.report.model import Report

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "%SRCROOT%"


def render_sarif(report: Report) -> str:
    """One result per finding; the rules of all findings that there can be.

    A result stands at the line of edgetl.toml that decides about it, or at the file's first where that is not known.
    Its fingerprint does not change with figures or lines, so that a code-scanning alert stays one from run to run.

    Args:
        report: Its findings are the results.

    Returns:
        A SARIF log with one run: JSON, to be written as UTF-8.
    """
    uri = quote(clean(report.config_file or DEFAULT_FILE), safe="/")
    run = {
        "tool": {
            "driver": {
                "name": "edgetl",
                "version": clean(report.edgetl_version),
                "rules": [_descriptor(rule) for rule in RULES],
            }
        },
        "automationDetails": {"id": f"edgetl/{quote(clean(report.project), safe='')}/"},
        "artifacts": [{"location": {"uri": uri, "uriBaseId": _ROOT}, "roles": ["analysisTarget"]}],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "project": clean(report.project),
            "version": clean(report.version),
            "created": clean(report.created),
            "published": report.verdict.published,
            "configSha256": clean(report.config_digest),
        },
        "results": [_result(each, uri) for each in findings(report)],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _descriptor(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.short},
        "fullDescription": {"text": rule.full},
        "help": {"text": rule.help, "markdown": f"{rule.full}\n\n**What to do.** {rule.help}\n"},
        "defaultConfiguration": {"level": rule.level},
        "properties": {"tags": ["edge", "quantization"], "precision": "high", "setting": rule.key},
    }


def _result(each: Finding, uri: str) -> dict[str, Any]:
    place = {
        "artifactLocation": {"uri": uri, "uriBaseId": _ROOT, "index": 0},
        "region": {"startLine": each.line or 1},
    }
    about = {"name": clean(each.about), "kind": "resource"}
    return {
        "ruleId": each.rule.id,
        "ruleIndex": RULES.index(each.rule),
        "level": each.level,
        "message": {"text": each.message or each.rule.short},
        "locations": [{"physicalLocation": place, "logicalLocations": [about]}],
        # GitHub compares primaryLocationLineHash alone, which has the form of hash:occurrence.
        "partialFingerprints": {
            "primaryLocationLineHash": f"{each.fingerprint[:16]}:1",
            "edgetlFinding/v1": each.fingerprint,
        },
    }
