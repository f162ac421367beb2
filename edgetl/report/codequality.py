"""The findings of a build as GitLab's Code Quality report, which merge requests show beside edgetl.toml.

The format is the part of the Code Climate specification that GitLab reads: "Code Quality report format" in its manual.
"""

from __future__ import annotations

import json

from edgetl.report.findings import DEFAULT_FILE, Level, findings
from edgetl.report.markup import clean
from edgetl.report.model import Report

_SEVERITIES: dict[Level, str] = {"error": "critical", "warning": "minor", "note": "info"}


def render_codequality(report: Report) -> str:
    """One violation per finding.

    Args:
        report: Its findings are the violations.

    Returns:
        A JSON array, to be written as UTF-8.
    """
    path = clean(report.config_file or DEFAULT_FILE)
    found = [
        {
            "description": each.message or each.rule.short,
            "check_name": each.rule.id,
            "fingerprint": each.fingerprint,
            "severity": _SEVERITIES[each.level],
            "location": {"path": path, "lines": {"begin": each.line or 1}},
        }
        for each in findings(report)
    ]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
