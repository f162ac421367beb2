"""A model card as the Hugging Face hub reads it: YAML metadata with a model-index, then Markdown.

The metadata follows the hub's model-card specification (hub-docs, modelcard.md). Nothing is claimed that was not
measured: a licence, a language, an intended use beyond the task are the publisher's to add.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from edgetl.numbers import (
    DASH,
    confidence_percent,
    counted,
    fixed,
    integer,
    is_number,
    megabytes,
    percent,
    share_floor,
    significant,
)
from edgetl.report import gates, markdown
from edgetl.report.findings import findings
from edgetl.report.markdown import code, escape
from edgetl.report.markup import clean
from edgetl.report.model import Engine, Report

_TASKS = {
    "image-classification": "image-classification",
    "multi-label-images": "image-classification",
    "text-classification": "text-classification",
    "table-classification": "tabular-classification",
    "face-verification": "image-feature-extraction",
}
"""edgetl's task → the hub's."""
_METRICS = {"top-1": "accuracy", "macro-F1": "f1", "AUC": "roc_auc", "mAP": "mean_average_precision"}
"""The metric's title → the hub's identifier; others keep their own."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LABELS = 100

Yaml = dict[str, Any]


def render_card(report: Report) -> str:
    """The model card of a bundle.

    Args:
        report: What is told; parts that are None or empty are left out.

    Returns:
        YAML between two lines of dashes, and Markdown; to be written as UTF-8, as README.md where it is published.
    """
    blocks = [
        f"# {escape(report.project)} {escape(report.version)}",
        _introduction(report),
        _details(report),
        _data(report),
        _training(report),
        _evaluation(report),
        markdown.engines_table(report),
        _placement(report),
        markdown.latency_table(report),
        markdown.conditions(report),
        _limits(report),
        _use(report),
    ]
    body = "\n\n".join(block for block in blocks if block)
    return f"---\n{yaml(metadata(report))}---\n\n{body}\n"


def metadata(report: Report) -> Yaml:
    """What stands between the dashes: plain values."""
    found: Yaml = {
        "library_name": "edgetl",
        "tags": ["edgetl", "onnx", "edge", *(["quantized"] if _has_int8(report) else [])],
    }
    task = _TASKS.get(report.task, "")
    if task:
        found["pipeline_tag"] = task
    base = report.backbone.removeprefix("hf:")
    if report.backbone.startswith("hf:") and _HUB_ID.fullmatch(base):
        found["base_model"] = base
    if report.dataset_id:
        found["datasets"] = [report.dataset_id]
    metrics = _measured(report)
    if metrics:
        found["metrics"] = [_metric(report)]
        dataset = {"name": report.dataset or report.project, "type": report.dataset_id or "custom", "split": "test"}
        result = {"task": {"type": task or report.task or "other"}, "dataset": dataset, "metrics": metrics}
        found["model-index"] = [{"name": report.bundle, "results": [result]}]
    return found


def wilson(share: float, samples: int, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a share of independent decisions (Wilson, 1927).

    Args:
        share: Of right decisions.
        samples: Decisions.
        confidence: Of the interval, as a share.
    """
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    middle = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1.0 - share) / samples + (z / (2 * samples)) ** 2)
    scale = 1.0 + z * z / samples
    return (max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def yaml(value: Any, indent: str = "") -> str:
    """Mappings and lists as YAML in blocks; texts in double quotes, which YAML shares with JSON.

    Args:
        value: A mapping or a list of such, texts, finite numbers.
        indent: Of its lines.
    """
    lines = []
    pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in pairs:
        head = f"{indent}-" if key is None else f"{indent}{key}:"
        if not isinstance(item, (dict, list)):
            lines.append(f"{head} {_scalar(item)}\n")
        elif key is None:  # the first line of an item stands beside its dash
            lines.append(f"{head} {yaml(item, indent + '  ').lstrip()}")
        else:
            lines.append(f"{head}\n{yaml(item, indent + '  ')}")
    return "".join(lines)


def _scalar(value: str | float) -> str:
    if not isinstance(value, str):
        text = json.dumps(value)
        # YAML 1.1 takes 1e-05 for a text.
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    # These two end a line in YAML 1.1, and JSON lets them stand.
    return json.dumps(clean(value), ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _measured(report: Report) -> list[Yaml]:
    """The metric of PyTorch and of every shipped engine that ran."""
    scores = [("PyTorch", report.reference.score)]
    scores += [(each.name, each.parity.score) for each in report.engines if each.shipped and each.parity]
    return [
        {"type": _metric(report), "name": f"Test {report.metric}, {name}", "value": round(score, 6)}
        for name, score in scores
        if score is not None and is_number(score)
    ]


def _metric(report: Report) -> str:
    return _METRICS.get(report.metric, report.metric)


def _has_int8(report: Report) -> bool:
    return any(engine.shipped and engine.precision == "int8" for engine in report.engines)


def _introduction(report: Report) -> str:
    what = f"A model for {escape(report.task)}" if report.task else "A model"
    shipped = sum(engine.shipped for engine in report.engines)
    ran = sum(engine.shipped and engine.status == "ready" for engine in report.engines)
    return (
        f"{what}, with {counted(shipped, 'engine')} for edge devices, "
        f"{integer(ran)} of which ran and {'was' if ran == 1 else 'were'} compared with PyTorch where "
        f"{'it was' if shipped == 1 else 'they were'} built. "
        f"{'Published' if report.verdict.published else '**Not published**'}: {escape(report.verdict.reason)}."
    ).replace("..", ".")


def _details(report: Report) -> str:
    facts = [
        ("backbone", report.backbone),
        ("weights that training began with", report.weights),
        ("built", f"{report.created} by edgetl {report.edgetl_version}"),
        ("configuration", f"sha256 {report.config_digest}"),
        ("signed by", report.signed_by or "nobody"),
        *((each.name, each.value) for each in report.preprocessing),
    ]
    lines = [f"- {escape(name)}: {escape(value)}" for name, value in facts if value]
    if report.labels:
        shown = ", ".join(escape(name) for name in report.labels[:_LABELS])
        more = f" … ({integer(len(report.labels))} in all)" if len(report.labels) > _LABELS else ""
        lines.append(f"- labels, in the order of the outputs: {shown}{more}")
    return "## Model details\n\n" + "\n".join(lines)


def _data(report: Report) -> str:
    if report.data is None:
        return ""
    name = f"Data set: {escape(report.dataset)}." if report.dataset else "The data set has no name."
    rows = [(escape(each.name), integer(each.samples), _spread(each.per_class)) for each in report.data.splits]
    check = report.data.leak_check
    leak = "Whether a sample stands in two splits was not checked."
    if check is not None:
        found = "none was found" if check.pairs == 0 else f"{counted(check.pairs, 'pair was', 'pairs were')} found"
        leak = f"Samples that stand in two splits: {found} ({escape(check.method)})."
    splits = markdown.table(("split", "samples", "per class"), rows, right=(1,)) if rows else ""
    return "\n\n".join(["## Data", *([splits] if splits else []), f"{name} {leak}"])


def _spread(per_class: Sequence[int]) -> str:
    if not per_class:
        return DASH
    low, high = min(per_class), max(per_class)
    return integer(low) if low == high else f"{integer(low)} to {integer(high)}"


def _training(report: Report) -> str:
    phases = [phase for phase in report.training if phase.epochs]
    rows = []
    for phase in phases:
        best = next((epoch for epoch in phase.epochs if epoch.number == phase.best_epoch), None)
        score = percent(best.val_score if best else None, report.test_samples)
        seconds = significant(phase.seconds) if phase.seconds is not None else DASH
        kept = integer(best.number) if best else "none"
        rows.append((escape(phase.name), integer(len(phase.epochs)), kept, score, seconds))
    heads = ("phase", "epochs", "epoch kept", f"validation {escape(report.metric)}, %", "seconds")
    parts = [f"Pretrained weights: {escape(report.start.statement)}."] if report.start is not None else []
    parts += [markdown.table(heads, rows, right=(1, 2, 3, 4))] if rows else []
    if report.transfer is not None:
        said = [*report.transfer.statements, *(report.transfer.source.statements if report.transfer.source else ())]
        parts.append("Did transfer help?\n\n" + "\n".join(f"- {escape(text)}" for text in said))
    return "\n\n".join(["## Training", *parts]) if parts else ""


def _evaluation(report: Report) -> str:
    said = [
        f"On {counted(report.test_samples, 'test sample that was', 'test samples that were')} neither trained nor "
        "calibrated on, PyTorch has "
        f"{escape(report.metric)} {percent(report.reference.score, report.test_samples)} %{_interval_of(report)}."
    ]
    note = markdown.parity_note(report)
    least = gates.detectable(report)
    if least is not None:
        note += f" Of every engine a drop of {fixed(100.0 * least, 2)} points would probably have shown."
    said += [note] if note else []
    if report.figures:
        said.append(f"Beside it, asked for by no gate:\n\n{markdown.figures_list(report)}")
    regressed = [
        f"- {escape(each.message)}" for each in findings(report) if each.rule.id.endswith(("class-regressed",
                                                                                          "slice-regressed"))
    ]  # fmt: skip
    tested = any(each.parity and each.parity.slices for each in report.engines)
    if regressed:
        said.append("Where an engine is worse than PyTorch:\n\n" + "\n".join(regressed))
    elif tested:
        said.append("On no class, and on no slice that was asked for, is an engine that ran worse by more than chance.")
    return "\n\n".join(["## Evaluation", *said])


def _interval_of(report: Report) -> str:
    """Only a share of independent decisions has this interval."""
    score = report.reference.score
    if report.metric != "top-1" or score is None or not 0.0 <= score <= 1.0 or report.test_samples < 1:
        return ""
    if not 0.5 < report.confidence < 0.999999:
        return ""
    compared = [each.parity for each in report.engines if each.parity]
    if not compared or any(figures.groups for figures in compared):  # samples that belong together err together
        return ""
    low, high = wilson(score, report.test_samples, report.confidence)
    return f" ({confidence_percent(report.confidence)} % interval {fixed(100 * low, 2)} to {fixed(100 * high, 2)})"


def _placement(report: Report) -> str:
    shares = {each.engine: each.int8_share for each in report.fusions if each.view == "engine"}
    rows = [
        (escape(each.name), escape(each.backend), escape(each.placed_on), share_floor(each.placement_share),
         share_floor(shares.get(each.name)), megabytes(each.size_bytes))
        for each in report.engines if each.shipped
    ]  # fmt: skip
    if not rows:
        return ""
    heads = ("in the bundle", "backend", "provider", "nodes placed there, %", "multiply-adds in int8, %", "size, MB")
    return "### What runs where\n\n" + markdown.table(heads, rows, right=(3, 4, 5))


def _limits(report: Report) -> str:
    said = [
        "The figures hold for data like the test split. Inputs of another kind, corrupted or attacked inputs, and "
        "groups of people or things that are no class or slice above were not looked at.",
    ]
    if report.task in ("image-classification", "text-classification", "table-classification"):
        said.append("The model answers with one of its labels, also where none is right.")
    if any(engine.latency for engine in report.engines):
        said.append("Latency was measured on the machine above and says nothing about another one.")
    said += [_unproven(engine) for engine in report.engines if engine.shipped and engine.parity is None]
    said += [escape(each.message) for each in findings(report) if each.level != "note" and not each.rule.id.endswith(
        ("class-regressed", "slice-regressed"))]  # fmt: skip
    said.append("No licence is stated here: that of the weights and of the data must be looked up by who publishes it.")
    return "## Limits\n\n" + "\n".join(f"- {text}" for text in said)


def _unproven(engine: Engine) -> str:
    why = f": {escape(engine.reason)}" if engine.reason else ""
    return f"{escape(engine.name)} did not run where it was built{why}. Its accuracy and latency are not known."


def _use(report: Report) -> str:
    folder = code(report.bundle)
    return (
        "## Use\n\n"
        f"`edgetl verify {folder}` checks files and signature and replays golden inputs on this machine; "
        f"`edgetl run {folder} INPUT` predicts; `edgetl inspect {folder}` tells inputs, labels and provenance."
    )
