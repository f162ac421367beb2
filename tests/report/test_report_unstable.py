"""A reason of several measurements is told once."""

from __future__ import annotations

import dataclasses

from edgetl.report.findings import findings
from edgetl.report.formats import FORMATS
from edgetl.report.unstable import joined, told_once

OTHERS, CLOCK, STALL = "others used 80%", "the clock went up", "a call took 900 ms"


def test_reasons_of_several_come_first_and_once():
    found = {"a": [OTHERS, STALL, CLOCK], "b": [OTHERS, CLOCK], "c": [], "d": [OTHERS]}
    assert told_once(found) == [(("a", "b", "d"), (OTHERS,)), (("a", "b"), (CLOCK,)), (("a",), (STALL,))]
    assert told_once({"a": [OTHERS, OTHERS]}) == [(("a",), (OTHERS,))]
    assert told_once({"a": []}) == []


def test_all_are_not_named():
    assert joined(("a", "b"), 2) == "everything that was timed"
    assert joined(("a", "b"), 3) == "a, b"
    assert joined(("a",), 1) == "a"


def test_the_report_tells_what_the_machine_did_once(bad):
    timed = [each for each in bad.engines if each.latency is not None]
    assert len(timed) > 1
    engines = tuple(
        dataclasses.replace(
            each, latency=dataclasses.replace(each.latency, unstable=(OTHERS,), unstable_by_machine=(OTHERS,))
        )
        if each.latency
        else each
        for each in bad.engines
    )
    shaken = dataclasses.replace(bad, engines=engines)
    (found,) = [each for each in findings(shaken) if each.rule.id == "edgetl/unstable-measurement"]
    assert found.message == f"{', '.join(each.name for each in timed)}: {OTHERS}"
    for form in ("html", "markdown", "sarif"):
        text = FORMATS[form].render(shaken)
        assert 1 <= text.count(OTHERS) <= 2, form  # among the findings, and beside the table
    (engine, *_) = engines
    shaken_more = dataclasses.replace(timed[0].latency, unstable=(OTHERS, STALL), unstable_by_machine=(OTHERS,))
    mixed = dataclasses.replace(shaken, engines=(dataclasses.replace(engine, latency=shaken_more), *engines[1:]))
    said = [each.message for each in findings(mixed) if each.rule.id == "edgetl/unstable-measurement"]
    assert len(said) == 2 and sum(OTHERS in each for each in said) == 1 and f"{engine.name}: {STALL}" in said


def test_a_finding_stays_the_same_one_whichever_engines_it_hits(bad):
    first, second = [each.name for each in bad.engines if each.latency is not None][:2]

    def told(found: dict[str, tuple[str, ...]]) -> dict[str, str]:
        """About → fingerprint."""
        engines = tuple(
            dataclasses.replace(
                each,
                latency=each.latency and dataclasses.replace(
                    each.latency,
                    unstable=found.get(each.name, ()),
                    unstable_by_machine=tuple(why for why in found.get(each.name, ()) if why != STALL),
                ),
            )
            for each in bad.engines
        )  # fmt: skip
        shaken = [each for each in findings(dataclasses.replace(bad, engines=engines)) if "unstable" in each.rule.id]
        assert len({each.fingerprint for each in shaken}) == len(shaken)
        return {each.about: each.fingerprint for each in shaken}

    both = told({first: (OTHERS, CLOCK), second: (OTHERS,)})
    assert set(both) == {"the machine"}
    assert told({first: (OTHERS,)}) == told({second: (CLOCK,)}) == both
    own = told({first: (OTHERS, STALL), second: (STALL,)})
    assert set(own) == {"the machine", first, second} and told({first: (STALL,)}) == {first: own[first]}
