from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.report import model
from edgetl.report.card import metadata, render_card, wilson, yaml
from edgetl.report.html import render
from edgetl.report.markdown import render_markdown
from edgetl.report.markup import clean

yaml_reader = pytest.importorskip("yaml", reason="extra train brings PyYAML")


def front(text: str) -> dict:
    """What stands between the dashes."""
    assert text.startswith("---\n")
    head, separator, _ = text[4:].partition("\n---\n")
    assert separator
    return yaml_reader.safe_load(head)


def test_the_hub_reads_the_metadata_and_its_results(good):
    hub = pytest.importorskip("huggingface_hub", reason="extra train")
    card = hub.ModelCard(render_card(good))
    results = card.data.eval_results
    assert [(each.metric_type, each.metric_value) for each in results] == [
        ("accuracy", 0.978), ("accuracy", 0.975), ("accuracy", 0.976),
    ]  # fmt: skip
    assert {(each.task_type, each.dataset_type, each.dataset_name, each.dataset_split) for each in results} == {
        ("image-classification", "custom", "data/train", "test")
    }
    assert results[1].metric_name == "Test top-1, x86-64-cpu int8"
    assert card.data.model_name == "digits-1.0.0"
    assert card.data.pipeline_tag == "image-classification" and "quantized" in card.data.tags
    assert hub.repocard_data.model_index_to_eval_results(card.data.to_dict()["model-index"])[1] == results


def test_metadata_claims_nothing_that_is_not_known(good):
    found = metadata(good)
    assert not {"license", "language", "base_model", "datasets"} & set(found)
    known = dataclasses.replace(
        good, backbone="hf:org/encoder", dataset_id="org/digits", dataset="org/digits:small@main"
    )
    found = metadata(known)
    assert found["base_model"] == "org/encoder" and found["datasets"] == ["org/digits"]
    assert found["model-index"][0]["results"][0]["dataset"]["type"] == "org/digits"
    unmeasured = dataclasses.replace(good, engines=(), reference=model.Baseline(name="PyTorch"))
    assert "model-index" not in metadata(unmeasured) and "metrics" not in metadata(unmeasured)


def test_the_card_tells_what_a_user_must_know(good):
    text = render_card(good)
    for wanted in (
        "with 4 engines for edge devices, 2 of which ran",
        "| train | 3,600 | 356 to 364 |",
        "none was found (SHA-256 of the decoded pixels)",
        "| head | 20 | 18 |",
        "helped: with 95% confidence",
        "PyTorch has top-1 97.8 % (95 % interval 96.69 to 98.54)",
        "Of every engine a drop of 0.60 points would probably have shown.",
        "class three is worse than PyTorch: 12 of 100",
        "rtx-pc fp16 did not run where it was built: built for compute capability 8.9",
        "| x86-64-cpu int8 | onnxruntime | CPUExecutionProvider | 100.0 | 99.9 | 3.7 |",
        "Intel Xeon Platinum 8488C",
        "No licence is stated",
        "`edgetl verify digits-1.0.0`",
    ):
        assert wanted in text, wanted
    assert "was to run in int8 and runs in fp32" in text


def test_what_would_have_shown_is_what_would_have_of_every_engine(good):
    """One engine that differs on more samples needs a larger drop to be told from none."""
    engines = list(good.engines)
    place = next(place for place, each in enumerate(engines) if each.parity)
    engines[place] = dataclasses.replace(
        engines[place], parity=dataclasses.replace(engines[place].parity, detectable_drop=0.0237)
    )
    changed = dataclasses.replace(good, engines=tuple(engines))
    assert "Of every engine a drop of 2.37 points would probably have shown." in render_card(changed)
    assert "A drop of 2.37 points or more would probably have shown on these samples, of every engine." in render(
        changed
    )


def test_a_sequential_gate_is_told_as_one_in_every_text(good):
    """Of 360 samples engines had seen 74, and the report said that they passed on the same 360, by a bound."""
    engines = tuple(
        dataclasses.replace(each, parity=dataclasses.replace(each.parity, samples=74)) if each.parity else each
        for each in good.engines
    )
    changed = dataclasses.replace(good, engines=engines, sequential=True)
    for text in (render_card(changed), render_markdown(changed), render(changed)):
        said = " ".join(text.split())
        assert "in random order until its parity was decided: 74 of 1,000." in said
        assert "they describe, and decide nothing" in said
        assert "confidence bound of its drop" not in said and "would probably have shown" not in said
    assert "interval of the change" in render(good) and "interval of the change" not in render(changed)


def test_samples_that_belong_together_have_no_interval_of_independent_ones(good):
    """Frames of one video are right or wrong together: 1,000 of them are worth fewer."""
    grouped = tuple(
        dataclasses.replace(each, parity=dataclasses.replace(each.parity, groups=50)) if each.parity else each
        for each in good.engines
    )
    assert "PyTorch has top-1 97.8 % (95 % interval 96.69 to 98.54)." in render_card(good)
    for engines in (grouped, tuple(dataclasses.replace(each, parity=None) for each in good.engines)):
        assert "PyTorch has top-1 97.8 %." in render_card(dataclasses.replace(good, engines=engines))


def test_a_confidence_is_told_as_it_was_asked_for(good):
    """Nothing is sure to 100 %: 99.996 % was told as that."""
    sure = dataclasses.replace(good, confidence=0.99996)
    for text in (render_card(sure), render_markdown(sure), render(sure)):
        assert "99.996 % " in text and " 100 % confidence" not in text and "| 100 % interval" not in text


def test_wilson_against_known_values():
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29, at 95%."""
    for right, samples, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                      (1, 29, 0.0061, 0.1718)):  # fmt: skip
        found = wilson(right / samples, samples, 0.95)
        assert found == pytest.approx((low, high), abs=6e-5)


TEXT = st.text(alphabet=st.characters(), max_size=30)
VALUES = st.recursive(
    TEXT | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.from_regex("[a-z][a-z_-]{0,8}x", fullmatch=True), inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


def cleaned(value):
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    return {key: cleaned(each) for key, each in value.items()} if isinstance(value, dict) else value


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.from_regex("[a-z]{1,8}x", fullmatch=True), VALUES, min_size=1, max_size=3))
def test_yaml_reads_back(document):
    assert yaml_reader.safe_load(yaml(document)) == cleaned(document)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXT)
def test_any_text_leaves_the_metadata_readable(sample, good, text):
    card = render_card(sample.replaced(good, text))
    card.encode("utf-8")
    found = front(card)
    result = found["model-index"][0]["results"][0]
    assert result["dataset"]["type"] == clean(text) or not text
    assert all(isinstance(each["value"], float) for each in result["metrics"])


def test_floats_that_are_none_are_no_metrics(sample, good):
    card = render_card(sample.renumbered(good, lambda: float("nan")))
    assert "model-index" not in front(card)
    assert not re.search(r"\b(nan|inf)\b", card)
