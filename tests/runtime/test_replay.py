"""Golden inputs are replayed where an engine is opened: on a bundle that says which colour a picture has."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from edgetl.bundle import sign, write  # noqa: E402
from edgetl.errors import BundleError, DataError, ParityError, SetupError  # noqa: E402
from edgetl.pipeline.check import verify_bundle  # noqa: E402
from edgetl.runtime import bundle as runtime  # noqa: E402
from edgetl.runtime import replay  # noqa: E402
from edgetl.runtime.bundle import open_bundle  # noqa: E402
from edgetl.runtime.preprocessing import ImagePreprocessing  # noqa: E402
from edgetl.store import digest_of  # noqa: E402

CONTRACT = ImagePreprocessing(height=8, width=8)
LABELS = ["red", "green", "blue"]
Seal = Callable[..., Path]


def colours(path: Path) -> None:
    """Mean of each channel, (batch, 3)."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["means"]),
        helper.make_node("Flatten", ["means"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture
def seal(tmp_path: Path) -> Seal:
    """A function: agreement that was recorded, golden outputs that PyTorch would have given otherwise, sides of the
    golden pictures, changes to the manifest → a signed bundle."""

    def make(
        agreement: float | None = 1.0,
        others: int = 0,
        golden: bool = True,
        size: tuple[int, int] = (10, 12),
        **changes: Any,
    ) -> Path:
        folder = tmp_path / "bundle"
        engine = folder / "engines" / "cpu" / "fp32"
        engine.mkdir(parents=True)
        colours(engine / "model.onnx")
        record = {"schema": 1, "backend": "onnxruntime", "provider": "CPUExecutionProvider", "precision": "fp32",
                  "status": "ready", "files": ["model.onnx"]}  # fmt: skip
        (engine / "engine.json").write_text(json.dumps(record), encoding="utf-8")
        names = [f"{number}.png" for number in range(8)]
        if golden:
            (folder / "golden").mkdir()
            for number, name in enumerate(names):
                pixels = np.full((*size, 3), 40, np.uint8)
                pixels[..., number % 3] = 120 + 10 * number
                Image.fromarray(pixels).save(folder / "golden" / name)
            inputs = CONTRACT.together([CONTRACT(folder / "golden" / name) for name in names])
            outputs = inputs.mean((2, 3))
            outputs[:others] = np.roll(outputs[:others], 1, axis=1)
            np.savez(folder / "golden" / "golden.npz", names=np.array(names), inputs=inputs, outputs=outputs,
                     classes=np.array(LABELS))  # fmt: skip
        entry = {"target": "cpu", "precision": "fp32", "folder": "engines/cpu/fp32", "backend": "onnxruntime",
                 "provider": "CPUExecutionProvider", "status": "ready", "latency": {},
                 "parity": {} if agreement is None else {"agreement": agreement}}  # fmt: skip
        manifest = {
            "name": "colours", "version": "1.0.0", "task": "image-classification", "labels": LABELS,
            "inputs": [{"name": "x", "shape": ["batch", 3, 8, 8], "dtype": "float32", "batch": [1, 4]}],
            "outputs": [{"name": "y", "shape": ["batch", 3], "dtype": "float32"}],
            "decision": {"kind": "largest"}, "preprocessing": CONTRACT.to_json(), "engines": [entry],
        }  # fmt: skip
        if golden:
            replay.write_contract(folder, manifest)
        key = tmp_path / "key.pem"
        sign.make_key(key)
        write.seal(folder, {**manifest, **changes}, key)
        return folder

    return make


def reseal(folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Sign a bundle again after something in it was changed."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    change(kept)
    write.seal(folder, kept, tmp_path / "key.pem")


def rewrite_golden(folder: Path, **arrays: Any) -> None:
    """Arrays of the golden inputs, instead of those that are there."""
    path = folder / "golden" / "golden.npz"
    with np.load(path) as found:
        kept = dict(found)
    np.savez(path, **{**kept, **arrays})


def test_a_bundle_that_is_as_it_was_built_opens_and_answers(seal: Seal) -> None:
    folder = seal()
    with open_bundle(folder).open() as model:
        assert [each.label for each in model.predict([folder / "golden" / "1.png"])] == ["green"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"preprocessing": {**CONTRACT.to_json(), "mean": [0.1, 0.2, 0.3]}},
            r"preprocessing\.mean in manifest\.json is \[0\.1, 0\.2, 0\.3\], and was \[0\.5, 0\.5, 0\.5\]",
        ),
        (
            {"preprocessing": {**CONTRACT.to_json(), "height": 9}},
            r"preprocessing\.height in manifest\.json is 9, and was 8",
        ),
        ({"labels": ["green", "red", "blue"]}, "output 0 is 'green' there, and was 'red'"),
        ({"labels": ["red", "green"]}, "2 instead of 3"),
    ],
)
def test_another_preprocessing_or_other_labels_are_refused_though_it_is_signed(
    seal: Seal, changes: dict[str, Any], said: str
) -> None:
    folder = seal(**changes)
    with pytest.raises(BundleError, match=said) as caught:
        open_bundle(folder).open()
    assert caught.value.exit_code == 7
    with open_bundle(folder, replay=False).open() as model:  # asked not to look
        assert model.engine.target == "cpu"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"preprocessing": {**CONTRACT.to_json(), "resize": "stretch"}},
            'resize in manifest.json is "stretch", and was "',
        ),
        ({"preprocessing": {**CONTRACT.to_json(), "interpolation": "nearest"}}, 'is "nearest", and was "bicubic"'),
        ({"preprocessing": {**CONTRACT.to_json(), "max_pixels": 9}}, "max_pixels in manifest.json is 9, and was"),
        ({"decision": {"kind": "multi-label", "thresholds": [0.5] * 3}}, 'decision.kind in manifest.json is "multi-l'),
        (
            {"task": "multi-label-images"},
            'task in manifest.json is "multi-label-images", and was "image-classification"',
        ),
        (
            {"inputs": [{"name": "x", "shape": ["batch", 3, 8, 8], "dtype": "float32", "batch": [1, 64]}]},
            "inputs in man",
        ),
    ],
)
def test_what_golden_inputs_cannot_tell_apart_is_refused_all_the_same(
    seal: Seal, changes: dict[str, Any], said: str
) -> None:
    """Pictures of one colour that have the network's own size: no way to resize shows in their tensors."""
    folder = seal(size=(8, 8), **changes)
    with pytest.raises(BundleError, match=re.escape(said)) as caught:
        open_bundle(folder).open()
    assert caught.value.exit_code == 7
    with pytest.raises(BundleError, match=re.escape(said)):
        verify_bundle(folder)


def test_the_order_of_keys_is_no_difference(seal: Seal) -> None:
    """A manifest that a tool sorted and that was signed again: the message said "is" and "was" of the same."""
    spec = {"batch": [1, 4], "dtype": "float32", "name": "x", "shape": ["batch", 3, 8, 8]}
    folder = seal(inputs=[spec], preprocessing=dict(sorted(CONTRACT.to_json().items())))
    with open_bundle(folder).open() as model:
        assert model.engine.target == "cpu"


def test_of_a_bundle_without_a_written_contract_the_tensors_are_compared(seal: Seal, tmp_path: Path) -> None:
    folder = seal(preprocessing={**CONTRACT.to_json(), "mean": [0.1, 0.2, 0.3]})
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / replay.CONTRACT).unlink()
    kept = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    write.seal(folder, kept, tmp_path / "key.pem")
    with pytest.raises(BundleError, match="preprocessing on this machine differs from the recorded one by up to"):
        open_bundle(folder).open()


@pytest.mark.parametrize("content", ["", "[]", '{"task": "image-classification"}', "[" * 100_000])
def test_a_written_contract_that_is_none(seal: Seal, tmp_path: Path, content: str) -> None:
    folder = seal()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / replay.CONTRACT).write_text(content, encoding="utf-8")
    kept = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    write.seal(folder, kept, tmp_path / "key.pem")
    with pytest.raises(BundleError, match=r"contract\.json cannot be read"):
        open_bundle(folder).open()


def test_a_golden_tensor_that_is_no_number_is_another_one(seal: Seal) -> None:
    bundle = open_bundle(seal())
    golden = bundle.golden()
    golden.inputs[0, 0, 0, 0] = np.nan
    assert replay.tensor_difference(bundle, golden) == float("inf")


@pytest.mark.parametrize(
    ("agreement", "others", "refused"),
    [(1.0, 1, True), (0.99, 2, False), (0.99, 3, True), (None, 1, False), (None, 2, True), (0.8, 4, False)],
)
def test_an_engine_may_miss_what_was_recorded_of_it(
    seal: Seal, agreement: float | None, others: int, refused: bool
) -> None:
    bundle = open_bundle(seal(agreement, others))
    if not refused:
        with bundle.open() as model:
            assert model.engine.precision == "fp32"
        return
    with pytest.raises(ParityError, match=f"cpu fp32 answers {8 - others} of 8 golden inputs as PyTorch did") as caught:
        bundle.open()
    assert caught.value.exit_code == 4 and "--no-replay" in (caught.value.hint or "")


def test_decisions_on_several_labels_count_one_by_one() -> None:
    """98.5% of 20 labels each: two of eight inputs with a label that differs are what is to be expected."""
    agreed = np.ones((8, 20), bool)
    agreed[[0, 3, 5], [4, 4, 7]] = False
    recorded = {"agreement": 0.985, "samples": 500}
    assert replay.refusal("cpu int8", recorded, agreed) is None
    agreed[:, 4] = False
    agreed[:, 5] = False
    said = replay.refusal("cpu int8", recorded, agreed)
    assert said is not None and "answers 0 of 8 golden inputs" in said


def test_what_was_never_seen_to_differ_may_once_among_few_samples() -> None:
    one_off = np.array([[False]] + [[True]] * 7)
    assert replay.refusal("cpu int8", {"agreement": 1.0, "samples": 300}, one_off) is None
    assert replay.refusal("cpu int8", {"agreement": 1.0, "samples": 100_000}, one_off) is not None


@pytest.mark.parametrize("share", [0.0, 0.001, 0.04, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 8, 160])
def test_what_chance_alone_does_is_binomial(share: float, count: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="pip install 'edgetl[dev]'")
    most = replay._most_by_chance(count, share)
    assert stats.binom.sf(most, count, share) < 1e-3 or most == count
    assert most == 0 or stats.binom.sf(most - 1, count, share) >= 1e-3 * (1 - 1e-6)


def test_an_engine_that_is_refused_is_closed(seal: Seal, monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    leave = runtime.Predictor.__exit__

    def noted(self: runtime.Predictor, *error: Any) -> None:
        left.append(self)
        leave(self, *error)

    monkeypatch.setattr(runtime.Predictor, "__exit__", noted)
    with pytest.raises(ParityError):
        open_bundle(seal(others=8)).open()
    assert len(left) == 1


def test_preprocessing_is_replayed_once_and_every_engine_that_is_opened(
    seal: Seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    for name in ("replay_contract", "replay_engine"):
        real = getattr(runtime, name)
        monkeypatch.setattr(runtime, name, lambda *given, name=name, real=real: done.append(name) or real(*given))
    bundle = open_bundle(seal())
    assert done == []  # reading a manifest opens no engine
    for _ in range(2):
        with bundle.open():
            pass
    assert done == ["replay_contract", "replay_engine", "replay_engine"]


def test_a_bundle_without_golden_inputs_says_so(seal: Seal) -> None:
    with pytest.raises(BundleError, match="has no golden inputs to replay") as caught:
        open_bundle(seal(golden=False)).open()
    assert "replay=False" in (caught.value.hint or "")


@pytest.mark.parametrize("few", [1, 3])
def test_nan_for_one_golden_input_is_refused_though_so_many_may_be_missed(seal: Seal, few: int) -> None:
    got = np.zeros((8, 3), np.float32)
    assert replay.not_finite("cpu fp32", got) is None
    got[:few, 1] = np.nan
    said = replay.not_finite("cpu fp32", got)
    assert said == f"cpu fp32 returned NaN or infinite values for {few} of 8 golden inputs"


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_an_engine_that_no_library_opens_is_a_defect_of_the_bundle(seal: Seal, tmp_path: Path, content: bytes) -> None:
    folder = seal()
    (folder / "engines" / "cpu" / "fp32" / "model.onnx").write_bytes(content)
    reseal(folder, tmp_path)
    with pytest.raises(BundleError, match="the engine for cpu fp32 cannot be opened") as caught:
        open_bundle(folder).open()
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ((3, 9, 9), 3, r"does not run the golden inputs: input 'x' is float32\['batch', 3, 9, 9\]; given was"),
        ((3, 8, 8), 6, r"answers with arrays of \[6\], and PyTorch did with \[3\]"),
    ],
)
def test_an_engine_of_another_model_is_named(
    seal: Seal, tmp_path: Path, inputs: tuple[int, ...], outputs: int, said: str
) -> None:
    """It takes other inputs, or answers with other outputs: as when files of two bundles were exchanged."""
    folder = seal()
    path = folder / "engines" / "cpu" / "fp32" / "model.onnx"
    model = onnx.load(path)
    nodes = [*model.graph.node]
    nodes[-1].output[:] = ["z"]
    nodes.append(helper.make_node("Concat", ["z"] * (outputs // 3), ["y"], axis=1))
    graph = helper.make_graph(
        nodes, "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=model.opset_import, ir_version=10), path)
    reseal(folder, tmp_path)
    for look in (verify_bundle, lambda place: open_bundle(place).open()):
        with pytest.raises(BundleError, match=f"the engine for cpu fp32 {said}") as caught:
            look(folder)
        assert caught.value.exit_code == 7


def test_nothing_is_verified_where_no_engine_runs(seal: Seal, tmp_path: Path) -> None:
    """Its library or device is missing here: that is not the same as answers that were seen to be right."""
    folder = seal()
    path = folder / "engines" / "cpu" / "fp32" / "engine.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, "provider": "NoSuchProvider"}), encoding="utf-8")
    reseal(folder, tmp_path)
    with pytest.raises(SetupError, match=r"no engine runs here, so that nothing is known .*\n  cpu fp32: ") as caught:
        verify_bundle(folder)
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("asked", [{}, {"layers": True}, {"data": "golden"}])
def test_engines_that_wait_for_their_device_need_not_run_where_nothing_is_asked_of_them(
    seal: Seal, tmp_path: Path, asked: dict[str, Any]
) -> None:
    folder = seal()
    reseal(folder, tmp_path, lambda manifest: manifest["engines"][0].update(status="build-on-device"))
    if asked.get("data"):
        asked = {"data": tmp_path / "data"}
        (tmp_path / "data" / "red").mkdir(parents=True)
        shutil.copy(folder / "golden" / "0.png", tmp_path / "data" / "red")
    if asked:
        with pytest.raises(SetupError, match="no engine runs here"):
            verify_bundle(folder, **asked)
        return
    (engine,) = verify_bundle(folder).engines
    assert engine.skipped == "it is built on its device", "a note is not always there"


@pytest.mark.parametrize("content", ["[", "{}", '{"graphs": [{"targets": ["cpu"], "params": {"x": []}}]}'])
def test_a_record_of_quantization_that_is_none(seal: Seal, tmp_path: Path, content: str) -> None:
    folder = seal()
    (folder / "reports").mkdir()
    (folder / "reports" / "quantization.json").write_text(content, encoding="utf-8")
    shutil.copy(folder / "engines" / "cpu" / "fp32" / "model.onnx", folder / "model.onnx")
    reseal(folder, tmp_path, lambda manifest: manifest["engines"][0].update(precision="int8"))
    with pytest.raises(BundleError, match=r"quantization\.json cannot be read"):
        verify_bundle(folder)


@pytest.mark.parametrize(("rows", "said"), [(["0.png,red", "1.png,"], "1 of 2"), (["0.png", "1.png"], "2 of 2")])
def test_a_manifest_without_labels_is_told_as_one(seal: Seal, tmp_path: Path, rows: list[str], said: str) -> None:
    folder = seal()
    table = tmp_path / "samples.csv"
    for name in ("0.png", "1.png"):
        shutil.copy(folder / "golden" / name, tmp_path)
    table.write_text("\n".join(["path,label" if "," in rows[0] else "path", *rows]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"samples.csv: {said} samples have no label") as caught:
        verify_bundle(folder, data=table)
    assert caught.value.hint == "a column label, with one of red, green, blue in every row"


@pytest.mark.parametrize(("name", "value"), [("backend", "openvino"), ("precision", "int8")])
def test_the_folder_of_another_engine(seal: Seal, tmp_path: Path, name: str, value: str) -> None:
    """As where the folders of two targets were exchanged: the other library's engine answered, under the wrong name."""
    folder = seal()
    reseal(folder, tmp_path, lambda manifest: manifest["engines"][0].update({name: value}))
    for look in (verify_bundle, lambda place: open_bundle(place).open()):
        with pytest.raises(BundleError, match="cpu/fp32 holds an engine of onnxruntime in fp32; by the manifest it is"):
            look(folder)


@pytest.mark.parametrize("name", ["labels", "decision", "preprocessing"])
def test_what_changed_beside_its_digest(seal: Seal, tmp_path: Path, name: str) -> None:
    """A tool that changes a part of the manifest wherever it stands, and knows nothing of its SHA-256."""
    folder = seal(task="multi-label-images", decision={"kind": "multi-label", "thresholds": [0.5] * 3})
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    replay.write_contract(folder, manifest)
    digest = CONTRACT.digest() if name == "preprocessing" else digest_of(manifest[name])
    reseal(folder, tmp_path, lambda manifest: manifest.update({f"{name}_sha256": digest}))
    with open_bundle(folder).open():
        assert verify_bundle(folder).signed_by
    other: Any = {
        "labels": LABELS[::-1],
        "decision": {"kind": "multi-label", "thresholds": [0.4, 0.5, 0.5]},
        "preprocessing": {**CONTRACT.to_json(), "max_pixels": 9_000_000},
    }[name]
    reseal(folder, tmp_path, lambda manifest: manifest.update({name: other}))
    if name == "labels":
        rewrite_golden(folder, classes=np.array(other))
    replay.write_contract(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    reseal(folder, tmp_path)
    for look in (verify_bundle, lambda place: open_bundle(place).open()):
        with pytest.raises(BundleError, match=f"{name} in manifest.json changed after the bundle was built"):
            look(folder)


def test_a_decision_of_another_task(seal: Seal, tmp_path: Path) -> None:
    folder = seal(decision={"kind": "multi-label", "thresholds": [0.5] * 3})
    replay.write_contract(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    reseal(folder, tmp_path)
    said = "decision.kind in manifest.json is multi-label; a bundle of image-classification has largest or threshold"
    with pytest.raises(BundleError, match=said):
        verify_bundle(folder)


@pytest.mark.parametrize(
    ("task", "decision", "said"),
    [
        ("image-classification", {"kind": "threshold", "threshold": 0.5}, "two classes, and the model has 3 outputs"),
        ("multi-label-images", {"kind": "multi-label", "thresholds": [0.5] * 2}, "2 thresholds for 3 outputs"),
    ],
)
def test_a_decision_on_other_outputs(seal: Seal, tmp_path: Path, task: str, decision: Any, said: str) -> None:
    """It was exit code 2: as if the command line had been wrong."""
    folder = seal(task=task, decision=decision)
    replay.write_contract(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    reseal(folder, tmp_path)
    for look in (verify_bundle, lambda place: open_bundle(place).open()):
        with pytest.raises(BundleError, match=f"decision in manifest.json is not of this network: .*{said}") as caught:
            look(folder)
        assert caught.value.exit_code == 7


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_golden_picture_that_cannot_be_read(seal: Seal, tmp_path: Path, content: bytes) -> None:
    """It was exit code 3, with a hint about the user's own pictures."""
    folder = seal()
    (folder / "golden" / "3.png").write_bytes(content)
    reseal(folder, tmp_path)
    for look in (verify_bundle, lambda place: open_bundle(place).open()):
        with pytest.raises(BundleError, match=r"a golden input cannot be read: .*3\.png") as caught:
            look(folder)
        assert caught.value.hint == "build the bundle again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"inputs": lambda found: found.astype(np.float64)},
            "the golden inputs are recorded as float64, and the preprocessing makes float32",
        ),
        (
            {"outputs": lambda found: np.tile(found, 2)},
            "PyTorch's golden outputs are 6 for each input, and manifest.json has 3 labels",
        ),
        ({"outputs": lambda found: found[:, :0]}, "golden outputs are 0 for each input"),
    ],
)
def test_golden_arrays_of_another_form_are_not_blamed_on_the_engine(
    seal: Seal, tmp_path: Path, change: dict[str, Callable[[np.ndarray], np.ndarray]], said: str
) -> None:
    folder = seal()
    shutil.copy(folder / "engines" / "cpu" / "fp32" / "model.onnx", folder / "model.onnx")
    with np.load(folder / "golden" / "golden.npz") as arrays:
        changed = {name: how(arrays[name]) for name, how in change.items()}
    rewrite_golden(folder, **changed)
    reseal(folder, tmp_path)
    for look in (verify_bundle, lambda place: open_bundle(place).open()):
        with pytest.raises(BundleError, match=said):
            look(folder)
