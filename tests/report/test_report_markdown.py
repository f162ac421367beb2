from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from edgetl.report import model
from edgetl.report.markdown import escape, render_markdown, table
from edgetl.report.markup import clean

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def rows_of(text: str) -> list[list[str]]:
    """The cells of all tables, as a reader sees them."""
    rows: list[list[str]] = []
    for token in PARSER.parse(text):
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and rows and token.children is not None and token.level >= 4:
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def kinds(text: str) -> set[str]:
    """Types of all tokens in a document."""
    return {child.type for token in PARSER.parse(text) for child in [token, *(token.children or [])]}


def test_the_summary_tells_verdict_findings_and_every_engine(bad, good):
    text = render_markdown(bad)
    assert "**❌ not published** – parity was not shown" in text
    assert "- ❌ `edgetl/parity-failed` x86-64-cpu int8: top-1 drops by 2.40 points" in text
    rows = {row[0]: row for row in reversed(rows_of(text)) if row}
    for engine in bad.engines:
        assert engine.name in rows
    assert rows["x86-64-cpu int8"][5] == "failed" and rows["intel-cpu int8"][5] == "undecided"
    assert rows["intel-cpu int8"][8] == "would be shipped" and "**shipped**" not in text
    good_rows = [row for row in rows_of(render_markdown(good)) if row and row[0] == "x86-64-cpu int8"]
    assert good_rows[0][1:5] == ["97.5", "+0.3", "-0.20 to 0.91".replace("-", "\u2212"), "0.81"]
    percentiles = ["2.38 (2.31 to 2.45)", "2.46 (2.36 to 2.56)", "2.87 (2.59 to 3.16)"]
    assert good_rows[1][1:] == [*percentiles, "700", "131", "7.27×", "p99 ≤ 8 ms: passed"]
    assert "✅ published" in render_markdown(good)
    assert "Intel Xeon Platinum 8488C; 2 threads per engine; batch 1" in render_markdown(good)


def test_absent_parts_vanish():
    bare = model.Report(
        project="p", version="1", edgetl_version="0", created="now", config_digest="", signed_by=None,
        verdict=model.Verdict(published=False, reason="nothing ran"), reference=model.Baseline(name="PyTorch"),
        test_samples=0, max_drop=0.01, confidence=0.95, engines=(),
    )  # fmt: skip
    text = render_markdown(bare)
    assert "|" not in text and "nothing ran" in text and "unsigned" in text


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=40))
def test_a_cell_reads_as_its_text(text):
    rows = rows_of(table(["name", "value"], [(f"x{escape(text)}", "1")]))
    assert rows == [["name", "value"], [("x" + " ".join(clean(text).split())), "1"]] or text[:1].isspace()


@pytest.mark.parametrize(
    "text",
    ["a|b", "`code`", "**bold**", "<script>alert(1)</script>", "[link](http://x)", "![i](x)", "~~gone~~", "a\n\n# head",
     "@someone", "$x$", "\\", "\\|", "&amp;", ":smile:", "<!-- c", "x\u2028y", "😀 | 'quoted' \"twice\""],
)  # fmt: skip
def test_names_that_are_markup_stay_names(text):
    rows = rows_of(table(["name", "value"], [(escape(text), "1")]))
    assert rows[1] == [" ".join(text.split()), "1"]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet=st.characters(), max_size=30))
def test_no_text_makes_markup_of_its_own(sample, bad, text):
    plain = kinds(render_markdown(sample.replaced(bad, "name")))
    hostile = render_markdown(sample.replaced(bad, f"<b>|`{text}`|**x**\n\n| a |\n<img src=x>[l](u)"))
    hostile.encode("utf-8")
    assert kinds(hostile) - {"text_special", "softbreak"} <= plain
    widths = {len(row) for row in rows_of(hostile)}
    assert widths <= {len(row) for row in rows_of(render_markdown(bad))}


def test_floats_that_are_none_print_as_dashes(sample, good):
    text = render_markdown(sample.renumbered(good, lambda: float("nan")))
    assert not re.search(r"\b(nan|inf)\b", text)
    assert rows_of(text)
    assert dataclasses.is_dataclass(good)
