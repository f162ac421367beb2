"""What calls take in energy: in the page and in report.json, and never a zero that nobody measured."""

from __future__ import annotations

import dataclasses
import json

from edgetl.report import document, html
from edgetl.report.machine import Energy


def with_energy(report, *found):
    engines = [
        dataclasses.replace(engine, latency=dataclasses.replace(engine.latency, energy=found))
        if engine.latency
        else engine
        for engine in report.engines
    ]
    return dataclasses.replace(report, engines=tuple(engines))


def test_every_sensor_that_knows_is_in_the_table(good):
    known = Energy(sensor="energy.rapl.package-0", per_call_mj=12.345, above_rest_mj=7.5)
    silent = Energy(sensor="gpu0.energy", per_call_mj=None, above_rest_mj=None, why="Not Supported")
    report = with_energy(good, known, silent)
    page = html.render(report)
    assert page.count("energy.rapl.package-0") == sum(engine.latency is not None for engine in report.engines)
    assert ">Energy</h3>" in page and "12.3" in page and "gpu0.energy" not in page
    engine = next(each for each in json.loads(document.render_json(report))["report"]["engines"] if each["latency"])
    assert engine["latency"]["energy"][1]["per_call_mj"] is None


def test_without_a_sensor_it_is_unknown_and_why(good):
    silent = Energy(
        sensor="energy.rapl", per_call_mj=None, above_rest_mj=None, why="this machine shows no RAPL counter"
    )
    page = html.render(with_energy(good, silent))
    assert page.count("Energy of one call: unknown (this machine shows no RAPL counter).") == 1
    assert ">Energy</h3>" not in page
    assert "Energy" not in html.render(good)
