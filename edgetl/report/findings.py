"""What a build found wrong, one finding each: what SARIF, annotations and summaries list.

A rule's id never changes its meaning, and a finding's fingerprint depends on what it is about, not on the figures that
it happened to have: the same defect of the next build is the same finding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgetl.numbers import counted, fixed, integer, share_floor, significant
from edgetl.report.markup import clean
from edgetl.report.model import Engine, Gate, Regression, Report
from edgetl.report.quantized import Fusion
from edgetl.report.unstable import told_once

Level = Literal["error", "warning", "note"]
DEFAULT_FILE = "edgetl.toml"
_MACHINE = "the machine"
"""What a finding is about that no engine is to blame for."""
_MANY = 20
"""Findings of one rule and engine; more are counted in the last one."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A kind of finding."""

    id: str
    """Stable, as "edgetl/parity-failed"."""
    name: str
    """The same in one word, as tools show it."""
    level: Level
    """Of its findings, unless one says otherwise."""
    short: str
    """A phrase."""
    full: str
    """What it means, in sentences."""
    help: str
    """What to do about it."""
    key: str
    """The key of the configuration that decides about it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a build found."""

    rule: Rule
    level: Level
    about: str
    """What it is about: an engine's name, perhaps with a class or node; with the rule it is unique in a report."""
    message: str
    """In a sentence or two."""
    line: int | None
    """Of the key that decides about it, in :attr:`~edgetl.report.model.Report.config_file`; None where not known."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rule and of what the finding is about, in hexadecimal."""
        return hashlib.sha256(clean(f"{self.rule.id}\n{self.about}").encode("utf-8")).hexdigest()


def _rule(id_: str, level: Level, key: str, short: str, full: str, help_: str) -> Rule:
    name = "".join(word.capitalize() for word in id_.split("-"))
    return Rule(id=f"edgetl/{id_}", name=name, level=level, key=key, short=short, full=full, help=help_)


PARITY_FAILED = _rule(
    "parity-failed", "error", "parity.max_drop", "An engine is worse than PyTorch",
    "On the same raw test samples the engine's metric drops by more than parity.max_drop, or its numbers are beyond "
    "their tolerance.",
    "Calibrate with more samples (quantize.samples), take another recipe (edgetl recipes) or another precision. A "
    "larger parity.max_drop is a decision about the product.",
)  # fmt: skip
PARITY_UNDECIDED = _rule(
    "parity-undecided", "error", "parity.max_drop", "The test split cannot show parity",
    "The test samples show neither that the drop is below parity.max_drop nor that it is above.",
    "Add test samples: the message says how many would probably do. "
    'parity.undecided = "allow" lets such an engine pass.',
)  # fmt: skip
PARITY_WAIVED = _rule(
    "parity-waived", "note", "parity.require", "An engine that is not needed did not show parity",
    "The engine did not show parity, and the build does not depend on it: another precision of the target did, or "
    'parity.undecided = "allow".',
    'Leave the precision out of the target, or make it count with parity.require = "all".',
)  # fmt: skip
BUDGET_MISSED = _rule(
    "budget-missed", "error", "target.budget", "A latency budget was missed",
    "The engine that would be shipped takes longer than its target's budget allows, on the machine of the build.",
    "A smaller backbone or data.image_size, another precision, or a larger budget. Was the machine quiet?",
)  # fmt: skip
BUDGET_WAIVED = _rule(
    "budget-waived", "note", "target.budget", "An engine that is not shipped misses the budget",
    "The engine takes longer than its target's budget allows, and another precision is shipped.",
    "Nothing needs to be done.",
)  # fmt: skip
UNSTABLE = _rule(
    "unstable-measurement", "warning", "bench.unstable", "A latency was measured while something did not hold still",
    "The times of the engine's calls, or the machine's sensors meanwhile, say that its figures are not to be believed: "
    "other programs, throttling, a clock that changed, a stall, processes that differ. With a budget that it would "
    "otherwise meet it is an error.",
    "Do what the message asks for and measure again (edgetl build --force bench). "
    'bench.unstable = "allow" lets such a measurement pass a budget.',
)  # fmt: skip
CLASS_REGRESSED = _rule(
    "class-regressed", "warning", "target.precisions", "An engine is worse on one class",
    "The engine loses decisions of one class that PyTorch gets right, more than chance would take, with the number of "
    "classes taken into account (McNemar's exact test, Holm's correction).",
    "Look at the class in the report's confusion matrix. Calibration samples of that class, another recipe or another "
    "precision may keep it.",
)  # fmt: skip
SLICE_REGRESSED = _rule(
    "slice-regressed", "warning", "data.slices", "An engine is worse on one part of the data",
    "The engine loses decisions on samples with one value of a column of data.slices, more than chance would take, "
    "with the number of slices taken into account.",
    "Add such samples to the calibration data, or take another recipe or precision.",
)  # fmt: skip
UNFUSED_PAIR = _rule(
    "unfused-pair", "warning", "quantize.recipe", "A quantizer or dequantizer was not fused",
    "The engine left a node in its graph that should have vanished into an integer operation: it costs a pass over "
    "memory at each inference.",
    "Another recipe or library version may place the pair otherwise; the report says why it is there.",
)  # fmt: skip
NOT_INT8 = _rule(
    "not-in-int8", "warning", "quantize.recipe", "A layer that was to run in int8 does not",
    "The quantized graph wants the layer in int8, and the engine runs it in a wider type.",
    "Compare the library versions in the report with those that the target names; another recipe may avoid it.",
)  # fmt: skip
GRAPH_REFUSED = _rule(
    "graph-refused", "warning", "target.precisions", "A library refuses a quantized graph",
    "The library that compiles the engine on its device cannot read the graph.",
    "Leave the precision out of the target, or take another recipe.",
)  # fmt: skip
FALLBACK = _rule(
    "provider-fallback", "warning", "target.device", "Part of a graph runs elsewhere",
    "Not all nodes of the engine's graph run on the provider that was asked for. It is a note where the target lets "
    "the others run elsewhere (dla_fallback), and some do run where they were asked to.",
    "See the report's table of engines; install the provider's libraries, or choose the target that fits the machine.",
)  # fmt: skip
LEAK = _rule(
    "leak", "error", "data", "The same content stands in two splits",
    "Samples of one split are in another one too: figures on the test split do not mean what they say.",
    "Remove the copies from all splits but one.",
)  # fmt: skip
NOT_PUBLISHED = _rule(
    "not-published", "error", "project", "The build was not published",
    "A gate that belongs to no single engine was not passed.",
    "See the message; the report of the build is kept.",
)  # fmt: skip

RULES = (
    PARITY_FAILED, PARITY_UNDECIDED, PARITY_WAIVED, BUDGET_MISSED, BUDGET_WAIVED, UNSTABLE, CLASS_REGRESSED,
    SLICE_REGRESSED, UNFUSED_PAIR, NOT_INT8, GRAPH_REFUSED, FALLBACK, LEAK, NOT_PUBLISHED,
)  # fmt: skip
"""All of them, in a fixed order."""
_ORDER: dict[Level, int] = {"error": 0, "warning": 1, "note": 2}


def findings(report: Report) -> tuple[Finding, ...]:
    """All findings of a report: errors first, then warnings, then notes."""
    found = [each for engine in report.engines for each in _of_engine(report, engine)]
    found += _of_latencies(report)
    found += [each for fusion in report.fusions for each in _of_fusion(report, fusion)]
    leak = report.data.leak_check if report.data else None
    if leak is not None and leak.pairs > 0:
        found.append(_finding(report, LEAK, "splits", f"{counted(leak.pairs, 'pair')} of samples ({leak.method})"))
    if not report.verdict.published and not any(each.level == "error" for each in found):
        found.append(_finding(report, NOT_PUBLISHED, report.project, report.verdict.reason))
    return tuple(sorted(found, key=lambda each: _ORDER[each.level]))


def line_of(report: Report, key: str, target: str = "") -> int | None:
    """The line of a key, or of the table around it; None where neither is known."""
    places = {(each.key, each.target): each.line for each in report.settings}
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        line = places.get((".".join(parts[:length]), target))
        if line is not None:
            return line
    return None


def _of_engine(report: Report, engine: Engine) -> Iterator[Finding]:
    yield from _of_gates(report, engine)
    if engine.placement_share is not None and engine.placement_share < 1.0:
        said = f"{engine.name}: {share_floor(engine.placement_share)} % of the nodes run on {engine.placed_on}"
        level: Level = FALLBACK.level
        if engine.fallback_allowed and engine.placement_share > 0.0:
            said, level = f"{said}; the target lets the others run elsewhere", "note"
        yield replace(_finding(report, FALLBACK, engine.name, said, target=engine.target), level=level)
    regressions = engine.parity.regressions if engine.parity else ()
    for rule in (CLASS_REGRESSED, SLICE_REGRESSED):
        mine = [each for each in regressions if (each.column == "class") == (rule is CLASS_REGRESSED)]
        for each in mine[:_MANY]:
            about = f"{engine.name}: {each.column} {each.value}"
            target = engine.target if rule is CLASS_REGRESSED else ""
            yield _finding(report, rule, about, f"{about} {_lost(each)}{_and_more(mine, each)}", target=target)


def _of_latencies(report: Report) -> Iterator[Finding]:
    """What the machine did is one finding, as bad as it is for the engine that it is worst for.

    It is about no engine, since whom it hits changes from build to build. What an engine's own times say is about it.
    """
    known = {each.name: each.latency for each in report.engines if each.latency and each.latency.unstable}
    undecided = {each.name for each in report.engines if each.budget_gate.outcome == "undecided"}
    found = [(_MACHINE, told_once({name: latency.unstable_by_machine for name, latency in known.items()}))]
    for name, latency in known.items():
        own = tuple(reason for reason in latency.unstable if reason not in latency.unstable_by_machine)
        found.append((name, [((name,), own)] if own else []))
    for about, told in found:
        hit = {name for names, _ in told for name in names}
        level: Level = "error" if undecided & hit else UNSTABLE.level
        said = ". ".join(f"{', '.join(names)}: {'; '.join(reasons)}" for names, reasons in told)
        if told:
            yield replace(_finding(report, UNSTABLE, about, said), level=level)


def _of_gates(report: Report, engine: Engine) -> Iterator[Finding]:
    parity = {"failed": PARITY_FAILED, "undecided": PARITY_UNDECIDED, "waived": PARITY_WAIVED}
    budget = {"failed": BUDGET_MISSED, "waived": BUDGET_WAIVED}  # undecided: UNSTABLE says why
    for rules, gate in ((parity, engine.parity_gate), (budget, engine.budget_gate)):
        rule = rules.get(gate.outcome)
        if rule is not None:
            target = engine.target if rule.key.startswith("target.") else ""
            found = _finding(report, rule, engine.name, f"{engine.name}: {_said(gate)}", target=target)
            limits = [each.line for each in report.settings if each.key == f"parity.tolerances.{engine.precision}"]
            if rule is PARITY_FAILED and limits and _by_numbers(report, engine):
                found = replace(found, line=limits[0])
            yield found


def _by_numbers(report: Report, engine: Engine) -> bool:
    """Whether an engine failed though its drop is shown to be small enough: its numbers are beyond their limits."""
    return not report.sequential and engine.parity is not None and engine.parity.drop_upper <= report.max_drop


def _of_fusion(report: Report, fusion: Fusion) -> Iterator[Finding]:
    if fusion.refused:
        said = f"{fusion.engine}: {fusion.library} refuses the graph: {fusion.refused}"
        yield _finding(report, GRAPH_REFUSED, fusion.engine, said, target=_target_of(report, fusion.engine))
    defects = [pair for pair in fusion.unfused if pair.defect]
    for pair in defects[:_MANY]:
        about = f"{fusion.engine}: {pair.kind} {pair.name}"
        yield _finding(report, UNFUSED_PAIR, about, f"{about} was not fused: {pair.reason}{_and_more(defects, pair)}")
    for node in fusion.fallen_back[:_MANY]:
        about = f"{fusion.engine}: {node.node}"
        said = f"{about} was to run in int8 and runs in {node.precision}{_and_more(fusion.fallen_back, node)}"
        yield _finding(report, NOT_INT8, about, said)


def _finding(report: Report, rule: Rule, about: str, message: str, *, target: str = "") -> Finding:
    line = line_of(report, rule.key, target)
    return Finding(rule=rule, level=rule.level, about=about, message=clean(message), line=line)


def _target_of(report: Report, engine: str) -> str:
    return next((each.target for each in report.engines if each.name == engine), "")


def _said(gate: Gate) -> str:
    return gate.message or gate.outcome


def _lost(each: Regression) -> str:
    return (
        f"is worse than PyTorch: {integer(each.worse)} of {counted(each.decisions, 'decision')} lost, "
        f"{integer(each.better)} won, a drop of {fixed(100.0 * each.drop, 1)} points "
        f"(adjusted p {significant(each.p_adjusted, 2)})"
    )


def _and_more(all_: Sequence[object], each: object) -> str:
    """In the last one that is told, how many are not."""
    left = len(all_) - _MANY
    return f"; and {integer(left)} more like it" if left > 0 and each is all_[_MANY - 1] else ""
