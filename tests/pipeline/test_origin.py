"""Where a build says that it comes from: no path of the machine, and the lines of its own file."""

from __future__ import annotations

import pytest

from edgetl import config as configuration
from edgetl.pipeline import origin
from edgetl.pipeline.session import Session
from edgetl.store import Store

TEXT = """\
schema = 1
project = { name = "p", version = "1" }

[data]
train = "images/train"
test = "images/test"

[model]
backbone = "timm:test_efficientnet"
weights = "none"

[parity]
# a comment
max_drop = 0.02

[[target]]
device = "x86-64-cpu"
precisions = ["fp32"]

[[target]]
device = "./devices/mine.toml"
budget = { p50_ms = 3 }
"""


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "repository" / "models" / "edgetl.toml"
    path.parent.mkdir(parents=True)
    path.write_text(TEXT, encoding="utf-8")
    return Session(config=configuration.load(path), store=Store(tmp_path / "store"), config_file=path)


def test_the_file_is_named_as_in_its_repository(session):
    assert origin.config_name(session.config_file) == "edgetl.toml"
    (session.config_file.parents[1] / ".git").mkdir()
    assert origin.config_name(session.config_file) == "models/edgetl.toml"
    assert origin.config_name(None) == ""


def test_keys_stand_on_their_lines_or_on_their_tables(session):
    lines = {(each.key, each.target): TEXT.splitlines()[each.line - 1] for each in origin.settings(session)}
    assert lines["parity.max_drop", ""] == "max_drop = 0.02"
    assert lines["parity.require", ""] == "[parity]"
    assert lines["parity.tolerances.int8", ""] == "[parity]"
    assert lines["project", ""].startswith("project = ")
    assert lines["data.slices", ""] == "[data]"
    assert ("quantize.recipe", "") not in lines
    assert lines["target.precisions", "x86-64-cpu"] == 'precisions = ["fp32"]'
    assert lines["target.budget", "x86-64-cpu"] == "[[target]]"
    assert lines["target.budget", "mine"] == "budget = { p50_ms = 3 }"
    assert lines["target.precisions", "mine"] == "[[target]]"


def test_data_is_named_without_the_machine(session, tmp_path):
    assert origin.dataset_name(session) == "images/train"
    elsewhere = Session(config=session.config, store=session.store, config_file=tmp_path / "other" / "edgetl.toml")
    assert origin.dataset_name(elsewhere) == "train"
    data = session.config.data.model_copy(update={"hub": "org/name:small@v1", "train": None})
    hub = Session(config=session.config.model_copy(update={"data": data}), store=session.store)
    assert origin.dataset_name(hub) == "org/name:small@v1"
    assert origin.hub_id(hub.config) == "org/name"
    assert origin.hub_id(session.config) == ""
    assert origin.settings(hub) == ()
