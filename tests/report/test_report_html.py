from __future__ import annotations

import ast
import dataclasses
import html
import importlib.util
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl import numbers
from edgetl.numbers import significant
from edgetl.report import machine, model, quantized
from edgetl.report.formats import FORMATS
from edgetl.report.html import render
from edgetl.report.pareto import front
from edgetl.report.svg import Box, place_labels
from edgetl.report.tables import cosine_text

_spec = importlib.util.spec_from_file_location("edgetl_sample_report", Path(__file__).with_name("sample.py"))
assert _spec is not None and _spec.loader is not None
_sample = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _sample
_spec.loader.exec_module(_sample)

SAMPLE: model.Report = _sample.sample_report()
VOID = {"meta", "br", "col"}
HOSTILE = "<script>alert(\"x\")</script>' onload='y' &amp; <b>é漢字\u202e\x00\ud800"


class Page(HTMLParser):
    """Elements, attributes and text of a page; remembers what does not balance."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def check(report: model.Report) -> Page:
    """Balanced, without script, handler or resource, encodable, without a number that is none."""
    text = render(report)
    text.encode("utf-8")
    page = Page(text)
    assert not page.open and not page.faults
    assert not {"script", "iframe", "object", "embed", "img", "link", "image", "use", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in {"src", "srcset", "xlink:href", "action", "data"}
        if name == "href":
            assert value is not None and re.fullmatch(r"#[a-z]+", value)
        if tag not in {"meta", "code"} and name in NUMERIC:
            assert re.fullmatch(r"-?\d+(\.\d+)?", value or ""), (tag, name, value)
    return page


NUMERIC = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "fill-opacity"}


def test_the_sample_page_is_complete_and_self_contained() -> None:
    page = check(SAMPLE)
    text = render(SAMPLE)
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    ids = [value for _, name, value in page.attributes if name == "id"]
    links = [value for _, name, value in page.attributes if name == "href"]
    assert [f"#{each}" for each in ids] == links and len(ids) == 19
    for wanted in ("digits 1.0.0", "✓ Published", "7.27", "2.23", "13.5 → 3.7", "5 of 8", "CPUExecutionProvider",
                   "build on device", "upper 95 % confidence bound", "edgetl verify digits-1.0.0",
                   "25 of 1,000"):  # fmt: skip
        assert wanted in page.words, wanted


def test_every_engine_stands_in_the_table_with_its_figures() -> None:
    rows = re.findall(r"<tr>.*?</tr>", render(SAMPLE))
    for engine in SAMPLE.engines:
        mine = [Page(row).words for row in rows if engine.target in row and f'"precision">{engine.precision}<' in row]
        assert mine, engine.name
        if engine.parity and engine.latency:
            assert f"{engine.parity.score * 100:.1f}" in mine[0]
            assert f"{engine.latency.p50_ms:.2f}" in mine[0]
            assert len(mine) == 4 + len(engine.parity.regressions)
        else:
            assert numbers.DASH in mine[0]


def test_parity_tells_four_figures_of_the_numbers_and_the_whole_statement_outside_the_table(good: model.Report) -> None:
    """In the last of eleven columns the statement was one word wide, and cut off where the window was 1100 pixels."""
    gate = model.Gate(outcome="passed", message="with 95% confidence it drops by less than <1> point")
    engines = [dataclasses.replace(each, parity_gate=gate) if each.parity else each for each in good.engines]
    engine = next(each for each in engines if each.parity)
    good = dataclasses.replace(good, engines=tuple(engines))
    section = re.search(r'<h2 id="parity.*?</section>', render(good), re.S)
    assert section is not None and engine.parity is not None
    rows, said = section[0].partition("</table>")[::2]
    assert all(f">{name}" in said for name in ("largest error", "mean error", "cosine", "SQNR"))
    assert cosine_text(engine.parity.cosine) in said
    assert html.escape(gate.message) not in rows and html.escape(gate.message) in said


@pytest.mark.parametrize(
    ("cosine", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (1.0, "1.0000"),
        (0.98765, "0.9877"),
        (1 - 2.5e-6, "1 − 2.5 × 10⁻⁶"),
        (-1.0, "−1.0000"),
    ],
)
def test_a_cosine_near_one_is_not_rounded_to_it(cosine: float | None, text: str) -> None:
    assert cosine_text(cosine) == text


def test_what_learned_stands_below_the_curves() -> None:
    page = check(SAMPLE)
    for wanted in ("peak learning rate", "3,380,000", "12,800", "Phase “head”: AdamW, cross-entropy.",
                   "Phase “all”: AdamW, focal, label smoothing 0.1, L1 2 × 10⁻⁶, dropout 0.2."):  # fmt: skip
        assert wanted in page.words, wanted
    old = dataclasses.replace(
        SAMPLE, training=tuple(dataclasses.replace(phase, groups=()) for phase in SAMPLE.training)
    )
    assert "peak learning rate" not in check(old).words


def test_a_build_that_is_not_published_ships_nothing() -> None:
    refused = dataclasses.replace(SAMPLE, verdict=model.Verdict(published=False, reason="no"))
    assert "✓ shipped" not in render(refused) and "would be shipped" in render(refused)


def test_text_from_users_is_escaped_everywhere() -> None:
    page = check(_sample.replaced(SAMPLE, HOSTILE))
    assert "alert" in page.words
    assert not any("alert" in (name or "") for _, name, _ in page.attributes)
    assert "\x00" not in render(_sample.replaced(SAMPLE, HOSTILE))


def test_absent_parts_vanish() -> None:
    bare = dataclasses.replace(
        SAMPLE, fp32=None, engines=(), confusions=(), training=(), calibration=None, quantizations=(), fusions=(),
        layers=(), data=None, transfer=None, figures=(), start=None, conditions=(), ceilings=(), rooflines=(),
        preprocessing=(), labels=(), environment=None, signed_by=None, backbone="",
        reference=model.Baseline(name="PyTorch eager"), verdict=model.Verdict(published=False, reason="no engine"),
    )  # fmt: skip
    page = check(bare)
    assert [value for _, name, value in page.attributes if name == "id"] == ["use"]
    assert "✕ Not published no engine" in page.words and "unsigned" in page.words
    assert "svg" not in page.tags and "table" not in page.tags


@pytest.mark.parametrize(
    ("field", "slug"),
    [("confusions", "confusion"), ("training", "training"),
     ("quantizations", "quantization"), ("calibration", "calibration"), ("fusions", "fusion"), ("layers", "layers"),
     ("transfer", "transfer"), ("rooflines", "roofline"), ("ceilings", "roofline"), ("figures", "figures"),
     ("start", "weights"), ("conditions", "conditions")],
)  # fmt: skip
def test_one_absent_part_takes_only_its_section(field: str, slug: str) -> None:
    without: dict[str, Any] = {field: None if field in ("calibration", "transfer", "start") else ()}
    ids = {value for _, name, value in check(dataclasses.replace(SAMPLE, **without)).attributes if name == "id"}
    assert slug not in ids and len(ids) == 18


def test_percentiles_without_the_calls_that_back_them_are_left_out() -> None:
    def few(latency: model.Latency | None) -> model.Latency | None:
        return latency and dataclasses.replace(latency, p90_ms=None, p99_ms=None, interval_ms=None, cold_ms=None)

    bare = dataclasses.replace(
        SAMPLE,
        engines=tuple(dataclasses.replace(engine, latency=few(engine.latency)) for engine in SAMPLE.engines),
        reference=dataclasses.replace(SAMPLE.reference, latency=few(SAMPLE.reference.latency)),
    )
    assert "81.2 + 44.1 + 6.03" in check(SAMPLE).words and "2.31 to 2.45" in check(SAMPLE).words
    words = check(bare).words
    assert "2.31 to 2.45" not in words and "2.38" in words and "2.46" not in words


def test_without_a_benchmark_no_latency_and_no_speed_up() -> None:
    untimed = dataclasses.replace(
        SAMPLE,
        reference=dataclasses.replace(SAMPLE.reference, latency=None),
        fp32=None,
        engines=tuple(dataclasses.replace(engine, latency=None) for engine in SAMPLE.engines),
    )
    page = check(untimed)
    assert "Speed-up" not in page.words
    assert not {"latency", "accuracy"} & {value for _, name, value in page.attributes if name == "id"}


def test_the_share_in_int8_and_every_pair_that_is_left_with_its_reason() -> None:
    text = render(SAMPLE)
    rows = [Page(row).words for row in re.findall(r"<tr>.*?</tr>", text)]
    # Each figure stands beside the label of its column.
    assert [row for row in rows if row.startswith("x86-64-cpu int8ONNX Runtime") and "99.9" in row and "100" not in row]
    assert [row for row in rows if row.startswith("intel-cpu int8OpenVINO") and "100.0" in row]
    parsed = [row for row in rows if row.startswith("jetson-orin-nano int8TensorRT's parser")]
    assert parsed and "98.2" in parsed[0] and parsed[0].count(numbers.DASH) == 3  # pairs fuse later, on the device
    words = Page(text).words
    for found in SAMPLE.fusions:
        for pair in found.unfused:
            assert pair.name in words and pair.reason in words
    assert "✕ not in int8 node_gemm of x86-64-cpu int8 was to run in int8 and runs in fp32." in words
    assert words.index("it only rounds") < words.index("HardSwish has no") < words.index("it is quantized once")


def test_a_graph_that_a_parser_refuses_is_named_with_its_reason() -> None:
    refused = quantized.Fusion(engine="jetson int8", library="TensorRT's parser", view="parser", int8_share=None,
                               refused="node 'x' of Foo is not known")  # fmt: skip
    page = check(dataclasses.replace(SAMPLE, fusions=(refused,)))
    assert "refused: node 'x' of Foo is not known" in page.words


def test_the_worst_layers_stand_in_a_table_and_all_in_the_plot() -> None:
    text = render(SAMPLE)
    found = SAMPLE.layers[0]
    section = text[text.index('id="layers"') :]
    section = section[: section.index("</section>")]
    table = section[section.index("The 20 layers that lose most") :]
    for rank, loss in enumerate(found.layers):
        assert (f'title="{loss.node}"' in table) == (rank < 20), loss.node
        assert section.count(f"<title>{loss.node} (Conv)") == 2  # for a wide and a narrow window
    worst = found.layers[0]
    row = next(row for row in re.findall(r"<tr>.*?</tr>", table) if worst.node in row)
    words = Page(row).words
    assert f"{worst.isolated_db:.1f}" in words and f"{worst.accumulated_db:.1f}" in words
    assert f"{100 * 10 ** (-worst.isolated_db / 20):.2g} %" in words
    assert "before corrections" in section and all(note in Page(section).words for note in found.notes)
    without = tuple(dataclasses.replace(loss, before_db=None) for loss in found.layers)
    bare = dataclasses.replace(found, layers=without, notes=())
    assert "before corrections" not in render(dataclasses.replace(SAMPLE, layers=(bare,)))


def test_a_graph_in_float16_and_what_overflows_there() -> None:
    """A node that overflowed had an error of 0 % of the signal."""
    nothing = float("nan")
    kept = tuple(dataclasses.replace(loss, before_db=None) for loss in SAMPLE.layers[0].layers[:4])
    first = dataclasses.replace(kept[0], node="beyond", isolated_db=nothing, accumulated_db=nothing)
    report = dataclasses.replace(
        SAMPLE.layers[0], scheme="float16", recipe="fp16", half=True, layers=(first, *kept[1:]), tensors=(), notes=()
    )
    made = dataclasses.replace(SAMPLE, layers=(report,))
    assert "4 nodes whose inputs, constants and outputs are rounded to float16" in check(made).words
    section = render(made)
    section = section[section.index('id="layers"') :]
    row = next(row for row in re.findall(r"<tr>.*?</tr>", section) if "beyond" in row)
    assert row.count("overflow") == 2 and "%" not in Page(row).words
    assert "nan" not in Page(section[: section.index("</section>")]).words


def test_layers_that_lose_nothing_and_very_few_of_them() -> None:
    loss = quantized.LayerLoss(
        node="only", operator="Gemm", place=0, isolated_db=float("inf"), accumulated_db=float("inf")
    )
    report = dataclasses.replace(SAMPLE.layers[0], layers=(loss,), tensors=())
    page = check(dataclasses.replace(SAMPLE, layers=(report,)))
    assert "All layers, worst first" in page.words and page.words.count("no loss") == 2
    assert "layers" not in {
        value
        for _, name, value in check(
            dataclasses.replace(SAMPLE, layers=(dataclasses.replace(report, layers=()),))
        ).attributes
        if name == "id"
    }


def test_more_than_thirty_classes_become_a_table_of_pairs() -> None:
    labels = tuple(f"class {index}" for index in range(31))
    counts = [[0] * 31 for _ in range(31)]
    for index in range(31):
        counts[index][index] = 9
        counts[index][(index + 1) % 31] = index
    matrix = model.Confusion(name="PyTorch eager", labels=labels, counts=tuple(map(tuple, counts)))
    page = check(dataclasses.replace(SAMPLE, confusions=(matrix,), labels=labels))
    assert "the 20 most confused pairs of 31 classes" in page.words
    assert "class 30class 03039" in page.words.replace(" ", "").replace("class", "class ")
    assert "smallest class" in page.words


def test_thirty_classes_are_drawn() -> None:
    labels = tuple(f"a rather long class name {index}" for index in range(30))
    counts = tuple(tuple(12_345 if i == j else 1 for j in range(30)) for i in range(30))
    text = render(dataclasses.replace(SAMPLE, confusions=(model.Confusion(name="m", labels=labels, counts=counts),)))
    assert 'class="matrix large"' in text and text.count('class="wrong"') == 870 and ">12k<" in text


def test_a_baseline_that_speed_ups_are_over_is_among_the_latencies() -> None:
    """Also where an engine has the same graph: 2.08 times as fast as what stood nowhere on the page."""
    from edgetl.report import markdown, tables

    report = SAMPLE
    assert report.fp32 is not None and report.fp32.same_as in {engine.name for engine in report.engines}
    page = str(tables.latency_table(report))
    assert f'<span class="target">{report.fp32.name}</span>' in page
    assert f"over {report.fp32.name}" in page
    assert f"\n| {report.fp32.name} |" in markdown.latency_table(report)


def test_a_heading_or_legend_is_not_left_alone_at_the_end_of_a_printed_page() -> None:
    style = render(SAMPLE).partition("@media print {\n  @page")[2]
    rule = next(line for line in style.splitlines() if "break-after: avoid" in line).partition("{")[0]
    assert {name.strip() for name in rule.split(",")} >= {"h2", "h3", "figcaption", "caption", ".legend", "thead"}
    # One below its figure would hold the next heading on a full page, without what that is about.
    assert "figcaption.below { break-before: avoid; break-after: auto; }" in style


def test_numbers_that_are_none_print_as_a_dash() -> None:
    for value in (float("nan"), float("inf"), float("-inf"), None):
        for text in (
            numbers.fixed(value, 2),
            numbers.significant(value),
            numbers.percent(value, 10),
            numbers.share_floor(value),
        ):
            assert text == numbers.DASH


def test_honest_precision() -> None:
    assert [numbers.significant(value) for value in (0.5123, 2.3821, 17.31, 104.4, 9.996)] == [
        "0.512",
        "2.38",
        "17.3",
        "104",
        "10.0",
    ]
    assert numbers.significant(1.94e-6, 2) == "1.9 \u00d7 10⁻⁶"
    assert numbers.percent(0.978, 1000) == "97.8" and numbers.percent(0.9782, 5000) == "97.82"
    assert (
        numbers.share_floor(0.9996) == "99.9"
        and numbers.share_floor(1.0) == "100.0"
        and numbers.share_floor(0.983) == "98.3"
    )
    assert numbers.signed_points(-0.001, 1000) == "\u22120.1" and numbers.signed_points(-0.0, 1000) == "0.0"
    assert numbers.fixed(1234567.0, 0) == "1,234,567" and numbers.megabytes(3_652_000) == "3.7"
    assert [numbers.plain(value) for value in (95.0, 99.9, 100.0, 2e-6)] == ["95", "99.9", "100", "2 × 10⁻⁶"]
    assert len(set(map(len, numbers.aligned(["2.38", "17.3", "104"])))) > 1
    assert numbers.aligned(["2.38", "17.3", "104"]) == ["2.38", "17.3\u2007", "104\u2008\u2007\u2007"]


def test_labels_of_the_scatter_plot_do_not_overlap() -> None:
    for step, least in ((60.0, 12), (9.0, 8), (0.0, 1)):
        points = [(100.0 + step * index, 100.0 + 5 * (index % 3)) for index in range(12)]
        places = place_labels(points, [f"engine number {index}" for index in range(12)], Box(0, 0, 900, 400), 11.5)
        boxes = [place.box for place in places if place is not None]
        assert len(boxes) >= least
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert not any(box.distance(point) < 5 for box in boxes for point in points)


def test_the_modules_are_small() -> None:
    folder = Path(render.__code__.co_filename).parent
    for path in folder.iterdir():
        if path.suffix in {".py", ".css"}:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name


def test_every_field_of_the_model_is_a_plain_documented_frozen_value() -> None:
    kinds = [kind for kind in (*vars(model).values(), *vars(quantized).values()) if dataclasses.is_dataclass(kind)]
    assert len(kinds) >= 20
    for kind in kinds:
        assert kind.__dataclass_params__.frozen and kind.__doc__  # type: ignore[union-attr]
    assert ast.get_docstring(ast.parse(Path(model.__file__).read_text(encoding="utf-8")))


SMALL = dataclasses.replace(
    SAMPLE,
    calibration=dataclasses.replace(
        SAMPLE.calibration,
        tensors=(model.TensorHistogram(
            name="t", edges=(0.0, 1.0, 2.0, 3.0), counts=(5, 0, 10**12), low=0.0, high=2.5, scale=0.01, zero_point=0,
            clipped_share=0.1,
        ),),
    ),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet=st.characters(), max_size=40))
def test_any_text_is_carried_safely(text: str) -> None:
    check(_sample.replaced(SMALL, text))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_float_prints_as_a_number_or_a_dash(data: st.DataObject) -> None:
    odd = st.sampled_from(
        [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 5e-324, 1e-300, 1.7e308, -1.7e308, 1.0, 0.5]
    )
    pool = data.draw(st.lists(st.floats() | odd | st.floats(0, 1), min_size=1, max_size=12))
    position = iter(range(10**9))
    report = _sample.renumbered(SMALL, lambda: pool[next(position) % len(pool)])
    page = check(report)
    assert not re.search(r"\b(nan|inf)\b", page.words, re.IGNORECASE)
    values = " ".join(
        value or "" for _, name, value in page.attributes if name in {"d", "points", "transform"} | NUMERIC
    )
    assert not re.search(r"nan|inf|e[+-]", values)


def test_the_source_task_has_its_place_where_it_was_measured() -> None:
    words = " ".join(check(SAMPLE).words.split())
    assert "The change on the source task" in words and "its own head was put back" in words
    assert "before fine-tuning91.2" in words and "fine-tuned87.487.388.086.9" in words
    assert SAMPLE.transfer is not None
    without = dataclasses.replace(SAMPLE, transfer=dataclasses.replace(SAMPLE.transfer, source=None))
    assert "source task" not in check(without).words


def test_what_was_copied_and_what_was_not_is_told() -> None:
    words = " ".join(check(SAMPLE).words.split())
    assert "310 of the network's 314 tensors copied" in words
    assert "stem.weight ([8, 3, 3, 3], not [8, 1, 3, 3])" in words and "in the weights and not used: fc.weight" in words
    assert SAMPLE.start is not None
    many = dataclasses.replace(SAMPLE.start, skipped=tuple(f"layer{number}" for number in range(25)))
    words = check(dataclasses.replace(SAMPLE, start=many)).words
    assert "layer19 … and 5 more" in words and "layer20" not in words


def test_figures_beside_the_metric_have_their_note() -> None:
    words = " ".join(check(SAMPLE).words.split())
    assert "expected calibration error" in words and "15 bins of the larger probability over 1,000 samples" in words


def test_every_percentile_stands_with_its_interval(good: model.Report) -> None:
    def latency_section(report: model.Report) -> str:
        return re.sub(r"<[^>]+>", " ", render(report).split('id="latency"')[1].split("<section")[0])

    timed = good.engines[0].latency
    assert timed is not None
    text = latency_section(good)
    for value in (timed.interval_ms, timed.p90_interval_ms, timed.p99_interval_ms):
        assert value is not None and f"{significant(value[0])} to {significant(value[1])}" in text
    assert "of p99, ms" in text and "p99.9" not in text, "700 calls say nothing about p99.9"
    many = dataclasses.replace(timed, samples=7000, p999_ms=9.875, p999_interval_ms=(9.125, 10.75))
    engines = (dataclasses.replace(good.engines[0], latency=many), *good.engines[1:])
    rare = dataclasses.replace(good, engines=engines)
    assert "of p99.9, ms" in latency_section(rare) and "9.12 to 10.8" in latency_section(rare)
    assert "p99.9 (95 % interval), ms" in FORMATS["markdown"].render(rare)
    assert "9.88 (9.12 to 10.8)" in FORMATS["markdown"].render(rare)


def test_conditions_stand_with_their_source_or_with_why_they_are_unknown(good: model.Report) -> None:
    section = render(good).split('id="conditions"')[1].split("<section")[0]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", section))
    assert "cpu.governor unknown: there is no such file cpu0/cpufreq/scaling_governor once" in text
    assert "temperature.x86_pkg_temp 46 to 52 °C /sys/class/thermal 2.0" in text
    assert 'id="conditions"' not in render(dataclasses.replace(good, conditions=()))


def test_the_scatter_plot_has_intervals_and_the_front() -> None:
    text = render(SAMPLE)
    section = text[text.index('id="accuracy"') : text.index('id="parity"')]
    assert section.count('class="front"') == 3, "the legend, a wide and a narrow drawing"
    assert "95 % interval of the change against PyTorch eager" in section
    untested = tuple(dataclasses.replace(engine, parity=None) for engine in SAMPLE.engines)
    assert "Pareto" not in render(dataclasses.replace(SAMPLE, engines=untested, fp32=None))


def test_changes_by_class_are_drawn_and_named() -> None:
    text = render(SAMPLE)
    section = text[text.index("Change by class") : text.index("Where an engine is worse")]
    words = Page(section).words
    assert "6 of 12 classes and slices changed" in words
    assert "No decision of any class changed: x86-64-cpu fp32, intel-cpu bf16, intel-cpu fp32." in words
    assert section.count("<title>three: 12 / 1 of 100, p 0.020</title>") == 2
    assert section.count('class="change regressed"') == 1 + 2 * 2, "the legend; two regressions, wide and narrow"
    assert "camera rear" in words
    without = tuple(
        dataclasses.replace(each, parity=dataclasses.replace(each.parity, slices=()) if each.parity else None)
        for each in SAMPLE.engines
    )
    assert "Change by class" not in render(dataclasses.replace(SAMPLE, engines=without))


def test_the_roofline_has_roofs_marks_and_the_layers_that_lose_most() -> None:
    text = render(SAMPLE)
    section = text[text.index('id="roofline"') : text.index('id="confusion"')]
    words = Page(section).words
    assert "fp32 81.2" in words and "int8 360" in words and "memory 17.9 GB/s" in words and "cache 118 GB/s" in words
    assert "there is no ceiling of bf16" in words
    assert "Layers of x86-64-cpu int8 that lose most" in words
    drawn = section[section.index('class="wide"') : section.index('class="narrow"')]
    assert drawn.count('class="roof ') == 4
    assert drawn.count("<title>x86-64-cpu int8: ") == 1 and drawn.count("<title>blocks.0.1: ") == 2  # engines shipped
    assert section.count("<tr>") == 1 + 5 + 1 + 8

    def bare(**changes: Any) -> str:
        made = dataclasses.replace(SAMPLE, **changes)
        return Page(render(made)).words

    slow = (dataclasses.replace(SAMPLE.ceilings[0], products=()),)
    assert "Roofline" not in bare(ceilings=slow)  # nothing to draw, but the reasons stand in the table
    assert "there is no ceiling of bf16" in bare(ceilings=slow)
    unknown = (machine.Roofline(name="PyTorch eager", least_ms=None, share=None, reason="it does not tell"),)
    assert "it does not tell" in bare(rooflines=unknown)
    assert "Layers of x86-64-cpu int8 that lose most" not in bare(rooflines=unknown)


def test_each_device_has_a_roofline_of_its_own() -> None:
    (cpu,) = SAMPLE.ceilings
    cuda = machine.Ceilings(device="cuda", products=(("fp16", 700e12, "PyTorch"),), bandwidth=((1 << 28, 4e12),))
    first, *others = (each for each in SAMPLE.rooflines if each.layers)
    both = (dataclasses.replace(first, device="cuda"), *others)
    made = dataclasses.replace(SAMPLE, ceilings=(cpu, cuda), rooflines=both)
    check(made)
    text = render(made)
    section = text[text.index('id="roofline"') : text.index('id="confusion"')]
    on_cpu, on_gpu = section.split("On the processor")[1].split("On the GPU")
    assert f"<title>{first.name}: " not in on_cpu and f"<title>{first.name}: " in on_gpu
    assert all(f"<title>{each.name}: " in on_cpu and f"<title>{each.name}: " not in on_gpu for each in others)
    assert 'class="roof fp16"' in on_gpu and 'class="roof fp16"' not in on_cpu
    one = dataclasses.replace(made, rooflines=tuple(others))
    assert "On the GPU" not in Page(render(one)).words, "no engine ran there"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, 1e-300, 1e300])
def test_a_roofline_of_odd_numbers_is_drawn_without_them(value: float) -> None:
    found = SAMPLE.rooflines[1]
    layers = (dataclasses.replace(found.layers[1], time_ms=value, least_ms=value), *found.layers[2:])
    odd = dataclasses.replace(found, layers=layers, least_ms=value, share=value)
    check(dataclasses.replace(SAMPLE, rooflines=(odd,)))
    ceilings = dataclasses.replace(SAMPLE.ceilings[0], products=(("fp32", value, "x"),), bandwidth=((1, value),))
    check(dataclasses.replace(SAMPLE, ceilings=(ceilings,)))


def test_a_percentile_is_marked_where_calls_back_it() -> None:
    def marks(samples: int) -> int:
        times = tuple(1.0 + index / samples for index in range(samples))
        kept = model.Distribution(name="PyTorch eager", times_ms=times, samples=samples)
        text = render(dataclasses.replace(SAMPLE, distributions=(kept,)))
        return text[text.index("The time of single calls") :].count('class="percentile')

    assert [marks(samples) for samples in (20, 63, 64, 661, 662)] == [2, 2, 4, 4, 6]
    text = render(dataclasses.replace(SAMPLE, distributions=()))
    assert "The time of single calls" not in text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_nothing_beats_the_front_and_it_beats_the_rest(points: list[tuple[int, int]]) -> None:
    kept = front(points)

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    for index, point in enumerate(points):
        assert (index in kept) == (not any(beats(other, point) for other in points))
    assert [points[index][0] for index in kept] == sorted(points[index][0] for index in kept)


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.7154, "7.72"), (0.513, "0.51"), (0.0998, "0.0998"), (0.0127, "0.0127"), (0.00875, "0.00875"), (None, "–")],
)
def test_milliseconds_of_small_networks_are_told_apart(value: float | None, text: str) -> None:
    """One engine was called faster than another with 0.01 against 0.01 ms."""
    assert numbers.milliseconds(value) == text
