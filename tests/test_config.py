"""edgetl.toml: validation, where an error is, precedence, paths, the JSON Schema."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgetl import config
from edgetl.config import Config
from edgetl.errors import ConfigError

MINIMAL = """\
schema = 1
[project]
name = "digits"
[data]
manifest = "data/manifest.csv"
[[target]]
device = "x86-64-cpu"
"""


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("EDGETL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


def project(tmp_path: Path, text: str = MINIMAL) -> Path:
    path = tmp_path / "edgetl.toml"
    path.write_text(text, encoding="utf-8")
    return path


def user_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "xdg" / "edgetl" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def problem(path: Path, overrides: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path, overrides)
    return caught.value.message


# --- what is valid ---------------------------------------------------------------------------------------------------


def test_the_smallest_project_has_every_default(tmp_path: Path) -> None:
    found = config.load(project(tmp_path))
    assert found.project.name == "digits"
    assert [phase.train for phase in found.finetune.phases] == ["head", "all"]
    assert found.quantize.recipe == "int8-mse"
    assert found.target[0].precisions == ()


def test_the_folder_is_as_good_as_the_file(tmp_path: Path) -> None:
    assert config.load(project(tmp_path)) == config.load(tmp_path)


def test_nothing_can_be_changed_afterwards(tmp_path: Path) -> None:
    found = config.load(project(tmp_path))
    with pytest.raises(ValidationError):
        found.finetune.seed = 1  # type: ignore[misc]


# --- unknown keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (MINIMAL + "[finetune]\nsede = 1\n", 9, "unknown key 'finetune.sede'; did you mean 'seed'?"),
        (MINIMAL + "[finetune]\n# sede = 1\nsede = 1\n", 10, "unknown key 'finetune.sede'; did you mean 'seed'?"),
        (MINIMAL + "finetune.sede = 1\n", 8, "unknown key 'target.0.finetune'"),
        (
            MINIMAL.replace("[project]", "colour = 1\n[project]"),
            2,
            "unknown key 'colour'; known: schema, preset, project",
        ),
        (MINIMAL + "[finetun]\n", 8, "unknown key 'finetun'; did you mean 'finetune'?"),
        (MINIMAL + "[[target]]\ndevise = 1\ndevice = 'b'\n", 9, "unknown key 'target.1.devise'; did you mean 'device'"),
        (MINIMAL + "budget = { p99 = 8 }\n", 8, "unknown key 'target.0.budget.p99'; did you mean 'p99_ms'?"),
        (MINIMAL + "[target.budget]\np99 = 8\n", 9, "unknown key 'target.0.budget.p99'; did you mean 'p99_ms'?"),
        (
            MINIMAL + '[finetune]\nphases = [\n  { train = "all" },\n  { train = "all", epohs = 2 },\n]\n',
            11,
            "unknown key 'finetune.phases.1.epohs'; did you mean 'epochs'?",
        ),
        (
            MINIMAL + '[finetune]\nphases = [{ train = "all" }, { train = "all", epohs = 2 }]\n',
            9,
            "unknown key 'finetune.phases.1.epohs'; did you mean 'epochs'?",
        ),
        (MINIMAL + "[export]\nbatch = { min = 1, mx = 2 }\n", 9, "unknown key 'export.batch.mx'; did you mean 'max'?"),
        (
            MINIMAL + "[parity.tolerances.int8]\nsqnr = 20\n",
            9,
            "unknown key 'parity.tolerances.int8.sqnr'; did you mean 'sqnr_db'?",
        ),
    ],
)
def test_unknown_key_has_its_line_and_the_nearest_name(tmp_path: Path, text: str, line: int, said: str) -> None:
    message = problem(project(tmp_path, text))
    assert message.startswith(f"{tmp_path / 'edgetl.toml'}:{line}: {said}")
    assert "\n" not in message


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    message = problem(project(tmp_path, MINIMAL + "[finetune]\nsede = 1\nbatch_size = 0\n[bench]\nsamples = 1\n"))
    assert [line.split(":")[1] for line in message.splitlines()] == ["10", "9", "12"]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("table", "key"), [("parity.tolerances.int8", "sqnr_db"), ("parity.tolerances.fp16", "max_abs_error"),
                       ("parity", "max_drop"), ("finetune", "weight_decay")]
)  # fmt: skip
def test_a_limit_is_a_finite_number(tmp_path: Path, table: str, key: str, value: str) -> None:
    """An SQNR of at least nan was asked for of nothing, without a word."""
    message = problem(project(tmp_path, MINIMAL + f"[{table}]\n{key} = {value}\n"))
    assert message.startswith(f"{tmp_path / 'edgetl.toml'}:9: {table}.{key}: Input should be")


def test_a_precision_that_is_none_is_named(tmp_path: Path) -> None:
    message = problem(project(tmp_path, MINIMAL + "[parity.tolerances.int4]\nsqnr_db = 20\n"))
    assert "parity.tolerances.int4: Input should be 'fp32', 'fp16', 'bf16' or 'int8'" in message


# --- wrong values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", r":1: schema: .*\(it is 2\)"),
        ("schema = 1\n", "", r"edgetl.toml: schema: Field required"),
        ('name = "digits"', 'name = "../digits"', r":3: project\.name: "),
        ('name = "digits"', "name = 7", r":3: project\.name: .*valid string \(it is 7\)"),
        ('name = "digits"\n', "", r":2: project\.name: Field required"),
        ('manifest = "data/manifest.csv"', "image_size = 64", r":4: data: give either manifest, or train and test"),
        ('manifest = "data/manifest.csv"', 'train = "a"', r":4: data: test is missing"),
        ("[[target]]", 'test = "b"\n[[target]]', r":4: data: .*leave out val and test"),
        ('[[target]]\ndevice = "x86-64-cpu"', "target = []", r"target: "),
        ('[[target]]\ndevice = "x86-64-cpu"', "", r"target: Field required"),
        ('"x86-64-cpu"\n', '"a"\n[[target]]\ndevice = "a"\n', r"more than one \[\[target\]\] names a"),
        ('"x86-64-cpu"\n', '"a"\nprecisions = ["int4"]\n', r":8: target\.0\.precisions\.0: .*'int4'"),
        ('"x86-64-cpu"\n', '"a"\n[export]\nbatch = { min = 4, max = 2 }\n', r":9: export\.batch: min is 4, max is 2"),
        ('"x86-64-cpu"\n', '"a"\n[model]\nbackbone = "resnet18"\n', r":8: model: .*timm:<model name>"),
        (
            '"x86-64-cpu"\n',
            '"a"\n[model]\nbackbone = "tables:mlp"\n',
            r':8: model: .*"hub", which has none of tables:mlp; write weights = "none"',
        ),
        ('"x86-64-cpu"\n', '"a"\n[parity]\nmax_drop = nan\n', r":9: parity\.max_drop: "),
        ('"x86-64-cpu"\n', '"a"\n[finetune]\nphases = 3\n', r":9: finetune\.phases: .*\(it is 3\)"),
        ('"x86-64-cpu"\n', '"a"\n[data.mean]\n', r"data\.mean: "),
        ('"x86-64-cpu"\n', '"a"\n[finetune]\nfocal_gamma = 1.5\n', r'finetune: focal_gamma = 1\.5 .* loss = "focal"'),
        ('"x86-64-cpu"\n', '"a"\n[finetune]\nmomentum = 0.5\n', r'momentum = 0\.5 is of optimizer = "sgd"; adamw'),
        (
            '"x86-64-cpu"\n',
            '"a"\n[finetune]\nphases = [{ train = "all" }, { train = "all", focal_gamma = 2.0 }]\n',
            r"focal_gamma of phase 2 is of the focal loss",
        ),
        (
            '"x86-64-cpu"\n',
            '"a"\n[finetune]\nphases = [{ train = "all", views = 2 }]\n',
            r'finetune\.phases\.0: train = "all" caches no features: views',
        ),
    ],
)
def test_wrong_value_says_where_and_what(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in MINIMAL
    assert re.search(said, problem(project(tmp_path, MINIMAL.replace(old, new)))), said


# --- where a value comes from ----------------------------------------------------------------------------------------


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, path = MINIMAL, project(tmp_path)
    assert config.load(path).finetune.seed == 0
    user_file(tmp_path, "[finetune]\nseed = 1\nbatch_size = 17\n")
    assert config.load(path).finetune.seed == 1
    path = project(tmp_path, bare + "[finetune]\nseed = 2\n")
    assert config.load(path).finetune.seed == 2
    monkeypatch.setenv("EDGETL_FINETUNE_SEED", "3")
    assert config.load(path).finetune.seed == 3
    found = config.load(path, {"finetune.seed": "4"})
    assert (found.finetune.seed, found.finetune.batch_size) == (4, 17)  # tables are merged, not replaced


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(flag=st.none() | st.integers(0, 9), variable=st.none() | st.integers(0, 9), own=st.none() | st.integers(0, 9))
def test_the_strongest_source_that_speaks_is_heard(
    tmp_path: Path, flag: int | None, variable: int | None, own: int | None
) -> None:
    path = project(tmp_path, MINIMAL + (f"[quantize]\nseed = {own}\n" if own is not None else ""))
    with pytest.MonkeyPatch.context() as patch:
        if variable is not None:
            patch.setenv("EDGETL_QUANTIZE_SEED", str(variable))
        found = config.load(path, {} if flag is None else {"quantize.seed": str(flag)})
    assert found.quantize.seed == next(value for value in (flag, variable, own, 0) if value is not None)


def test_bare_words_need_no_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_MODEL_WEIGHTS", "none")
    found = config.load(project(tmp_path), {"model.backbone": "timm:resnet18"})
    assert (found.model.weights, found.model.backbone) == ("none", "timm:resnet18")


def test_a_list_of_tables_can_be_set(tmp_path: Path) -> None:
    found = config.load(
        project(tmp_path), {"finetune.phases": '[{ train = "head", epochs = 1 }]', "target": '[{device="a"}]'}
    )
    assert [phase.epochs for phase in found.finetune.phases] == [1]
    assert found.target[0].device == "a"


def test_variables_that_name_no_field_are_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_STORE", "/elsewhere")
    monkeypatch.setenv("EDGETL_FINETUNE_SEDE", "3")
    assert config.load(project(tmp_path)).finetune.seed == 0


FILE_WITH_SEED = MINIMAL + "[finetune]\nseed = 2\n"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"finetune.seed": "many"}, "--set finetune.seed: Input should be a valid integer"),
        ({"finetune.sede": "1"}, "--set finetune.sede: unknown key 'finetune.sede'; did you mean 'seed'?"),
        ({"colour": "1"}, "--set colour: unknown key 'colour'; known: schema"),
        ({"finetune.lr": "1e-4"}, "--set finetune.lr: unknown key 'finetune.lr'; 'lr' is a key of finetune.phases"),
        (
            {"finetune.phases": '[{ train = "all", epochs = 1, ema = 0.9 }]'},
            "--set finetune.phases: unknown key 'finetune.phases.0.ema'; 'ema' is a key of finetune",
        ),
        ({"task": "x"}, "--set task: unknown key 'task'; 'task' is a key of data"),
        ({"finetune.phases": "[{train='al'}]"}, "--set finetune.phases: finetune.phases.0.train: Input should be"),
        ({"finetune.seed.deeper": "1"}, "--set finetune.seed.deeper: 'seed' is not a table"),
        ({"target.0.device": "b"}, "--set target.0.device: 'target' is not a table"),
        ({"finetune": "3"}, "--set finetune: "),
        ({"": "3"}, "--set : "),
    ],
)
def test_an_error_in_a_flag_names_the_flag(tmp_path: Path, overrides: dict[str, str], said: str) -> None:
    message = problem(project(tmp_path, FILE_WITH_SEED), overrides)
    assert message.startswith(said)
    assert "edgetl.toml" not in message


def test_an_error_in_a_variable_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_FINETUNE_SEED", "many")
    message = problem(project(tmp_path, FILE_WITH_SEED))
    assert message.startswith("EDGETL_FINETUNE_SEED: finetune.seed: Input should be a valid integer")
    assert "edgetl.toml" not in message
    assert config.load(tmp_path, {"finetune.seed": "5"}).finetune.seed == 5  # a stronger value mends it


def test_a_variable_that_is_overruled_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_FINETUNE_SEED", "1")
    assert problem(project(tmp_path), {"finetune.seed": "many"}).startswith("--set finetune.seed: ")


def test_a_rule_between_keys_names_the_flag_that_broke_it(tmp_path: Path) -> None:
    message = problem(project(tmp_path), {"data.train": "images"})
    assert message.startswith(f"{tmp_path / 'edgetl.toml'}:4: data: give either manifest, or train and test")
    assert message.endswith("(with --set data.train)")


def test_an_error_in_the_users_file_names_that_file(tmp_path: Path) -> None:
    users = user_file(tmp_path, "\n[finetune]\nsede = 1\n")
    assert problem(project(tmp_path, FILE_WITH_SEED)).startswith(f"{users}:3: unknown key 'finetune.sede'")


def test_the_projects_file_is_blamed_where_both_have_the_key(tmp_path: Path) -> None:
    user_file(tmp_path, "[finetune]\nseed = 1\n")
    message = problem(project(tmp_path, MINIMAL + "[finetune]\nseed = 'many'\n"))
    assert message.startswith(f"{tmp_path / 'edgetl.toml'}:9: finetune.seed: ")


def test_a_broken_users_file_is_an_error(tmp_path: Path) -> None:
    users = user_file(tmp_path, "[finetune\n")
    assert problem(project(tmp_path)).startswith(f"{users}: not valid TOML")


# --- paths -----------------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINIMAL.replace('manifest = "data/manifest.csv"', 'train = "a"\nval = "../b"\ntest = "/c"')
    text = text.replace('"x86-64-cpu"', '"./mine.toml"') + (
        '[model]\nweights = "w/best.safetensors"\n[quantize]\nrecipe = "recipes/own.toml"\ndata = "more"\n'
        '[bundle]\noutput = "out"\nkey = "~/key.pem"\n'
    )
    (tmp_path / "project").mkdir()
    project(tmp_path / "project", text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/somebody")
    found, folder = config.load(Path("project")), tmp_path / "project"
    assert (found.data.train, found.data.val, found.data.test) == (folder / "a", folder / "../b", Path("/c"))
    assert found.model.weights == str(folder / "w/best.safetensors")
    assert (found.quantize.recipe, found.quantize.data) == (str(folder / "recipes/own.toml"), folder / "more")
    assert (found.bundle.output, found.bundle.key) == (folder / "out", Path("/home/of/somebody/key.pem"))
    assert found.target[0].device == str(folder / "mine.toml")


def test_a_target_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/somebody")
    found = config.load(project(tmp_path, MINIMAL.replace("x86-64-cpu", "~/boards/mine.toml")))
    assert found.target[0].device == "/home/of/somebody/boards/mine.toml"


def test_the_home_of_nobody(tmp_path: Path) -> None:
    assert "no such user" in problem(project(tmp_path), {"bundle.output": "~no-such-user-here/x"})


@pytest.mark.parametrize("name", ["x86-64-cpu", "int8-mse"])
def test_bare_names_stay(tmp_path: Path, name: str) -> None:
    found = config.load(project(tmp_path), {"quantize.recipe": name, "model.weights": "pypi:some-package"})
    assert (found.quantize.recipe, found.model.weights) == (name, "pypi:some-package")


# --- the schema ------------------------------------------------------------------------------------------------------


def _objects(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"Config": schema, **{name: found for name, found in schema["$defs"].items() if "properties" in found}}


def test_the_json_schema_describes_every_field() -> None:
    schema = config.json_schema()
    bare = []
    for name, found in _objects(schema).items():
        assert found["additionalProperties"] is False, name
        for key, facts in found["properties"].items():
            reference = facts.get("$ref", "").removeprefix("#/$defs/")
            described = facts.get("description") or schema["$defs"].get(reference, {}).get("description")
            if not described:
                bare.append(f"{name}.{key}")
    assert bare == []
    assert set(_objects(schema)) >= {"Config", "Project", "Data", "Phase", "Budget", "TargetEntry"}


def test_the_schema_uses_the_names_of_the_file() -> None:
    properties = config.json_schema()["properties"]
    assert "schema" in properties
    assert "schema_" not in properties


REST = """
[project]
name = "p"
[data]
train = "a"
test = "b"
[[target]]
device = "x86-64-cpu"
"""


class TestPresets:
    @pytest.mark.parametrize("name", config.presets())
    def test_each_is_a_configuration(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "edgetl.toml"
        path.write_text(f'schema = 1\npreset = "{name}"\n' + REST, encoding="utf-8")
        loaded = config.load(path)
        assert loaded.preset == name
        assert loaded.finetune.phases

    def test_those_that_can_be_named_are_those_that_are_there(self) -> None:
        field = Config.model_fields["preset"].annotation
        named = {name for part in get_args(field) for name in get_args(part)}
        assert named == set(config.presets())

    def test_what_the_project_says_is_stronger(self, tmp_path: Path) -> None:
        path = tmp_path / "edgetl.toml"
        text = f'schema = 1\npreset = "resnet50-mnist"\n{REST}\n[finetune]\nmomentum = 0.5\n'
        path.write_text(text, encoding="utf-8")
        loaded = config.load(path, {"model.backbone": '"timm:resnet18"'})
        assert (loaded.finetune.momentum, loaded.finetune.optimizer) == (0.5, "sgd")
        assert loaded.model.backbone == "timm:resnet18"
        assert loaded.finetune.phases[0].schedule == "step"

    def test_one_that_a_flag_names_is_stronger_than_the_project(self, tmp_path: Path) -> None:
        path = tmp_path / "edgetl.toml"
        own = '[model]\nweights = "hub"\n[finetune]\nphases = [{ train = "head" }]\nbatch_size = 7\n'
        path.write_text(f'schema = 1\npreset = "bias-only"\n{REST}\n{own}', encoding="utf-8")
        assert [phase.train for phase in config.load(path).finetune.phases] == ["head"]
        loaded = config.load(path, {"preset": "from-scratch", "finetune.ema": "0.9"})
        assert (loaded.preset, loaded.model.weights) == ("from-scratch", "none")
        assert [(phase.train, phase.epochs) for phase in loaded.finetune.phases] == [("all", 20)]
        assert (loaded.finetune.batch_size, loaded.finetune.ema) == (7, 0.9), "what the preset leaves open"
        assert config.load(path, {"preset": "from-scratch", "model.weights": "hub"}).model.weights == "hub"
        with pytest.raises(ConfigError, match=r"--set preset: Input should be .*\(it is 'scratch'\)"):
            config.load(path, {"preset": "scratch"})

    def test_the_default_is_probe_then_finetune(self, tmp_path: Path) -> None:
        for name, line in (("a", ""), ("b", 'preset = "probe-then-finetune"\n')):
            (tmp_path / f"{name}.toml").write_text(f"schema = 1\n{line}{REST}", encoding="utf-8")
        assert config.load(tmp_path / "a.toml").finetune == config.load(tmp_path / "b.toml").finetune

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "edgetl.toml"
        path.write_text(f'schema = 1\npreset = "bias"\n{REST}', encoding="utf-8")
        with pytest.raises(ConfigError, match=r"preset: Input should be 'probe-then-finetune'.*\(it is 'bias'\)"):
            config.load(path)


@pytest.mark.parametrize(
    ("phase", "problem"),
    [
        ('{ train = "last-stages" }', 'train = "last-stages" needs stages'),
        ('{ train = "all", stages = 2 }', 'train = "all" goes without stages'),
        ('{ train = "names" }', 'train = "names" needs names'),
        ('{ train = "head", names = ["x"] }', 'train = "head" goes without names'),
        ('{ train = "last-stages", stages = 0 }', "greater than or equal to 1"),
        ('{ train = "all", layer_decay = 1.5 }', "less than or equal to 1"),
        ('{ train = "all", warmup = 1.0 }', "less than 1"),
        ('{ train = "tail" }', "Input should be 'head'"),
        ('{ train = "all", lr = 0.0 }', "greater than 0"),
        ('{ train = "all", epochs = 0 }', "greater than or equal to 1"),
        ('{ train = "head", batchnorm = "train" }', 'train = "head" has no BatchNorm'),
        ('{ train = "head", layer_decay = 0.8 }', 'train = "head" trains one layer'),
        ('{ train = "head", epochs = 4, views = 5 }', "views = 5 are cached, and epochs = 4 take one each"),
        ('{ train = "all", gamma = 0.5 }', 'gamma = 0.5 is of schedule = "step"; one-cycle has none'),
        ('{ train = "all", schedule = "cosine", step_epochs = 2 }', 'step_epochs = 2.0 is of schedule = "step"'),
        ('{ train = "head" }]\ndropout = 0.3 #', "dropout = 0.3 is of phases that train more than the head"),
        ('{ train = "all" }]\naverage_last = 3 #', "average_last = 3 epochs are more than a phase has: 2 at most"),
    ],
)
def test_phases_that_make_no_sense(phase: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "edgetl.toml"
    path.write_text(f"schema = 1\n{REST}\n[finetune]\nphases = [{phase}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(problem)) as found:
        config.load(path)
    assert f"{path}:" in str(found.value)


def test_the_test_split_of_the_source_task(tmp_path: Path) -> None:
    text = MINIMAL + "[finetune]\nmax_forgetting = 0.02\n"
    assert "source_test is missing" in problem(project(tmp_path, text))
    found = config.load(project(tmp_path, text + 'source_test = "old/test.csv"\n')).finetune
    assert (found.source_test, found.max_forgetting) == (tmp_path / "old" / "test.csv", 0.02)
    for value in ("0.0", "1.5", "-0.1", "nan"):
        wrong = text.replace("0.02", value) + 'source_test = "old"\n'
        assert "max_forgetting" in problem(project(tmp_path, wrong))


# --- without a project -----------------------------------------------------------------------------------------------


def test_the_signing_key_of_what_has_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert config.signing_key() is None
    (tmp_path / "edgetl").mkdir()
    (tmp_path / "edgetl" / "config.toml").write_text('[bundle]\nkey = "mine.pem"\n', encoding="utf-8")
    assert config.signing_key() == tmp_path / "mine.pem"
    monkeypatch.setenv("EDGETL_BUNDLE_KEY", "/release.pem")
    assert config.signing_key() == Path("/release.pem")
    monkeypatch.setenv("EDGETL_BUNDLE_KEY", "3")
    with pytest.raises(ConfigError, match=r"^EDGETL_BUNDLE_KEY: bundle\.key: .*\(it is 3\)"):
        config.signing_key()


def test_a_signing_key_that_a_pipeline_leaves_empty_is_not_signed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a secret is not there, which no key of the machine's may stand in for."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("EDGETL_BUNDLE_KEY", "")
    said = "EDGETL_BUNDLE_KEY: bundle.key: no path of a key is given, it is empty; left out, a key of yours is made"
    assert problem(project(tmp_path)) == said
    with pytest.raises(ConfigError) as refused:
        config.signing_key()
    assert refused.value.message == said
