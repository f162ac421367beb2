"""Real TensorRT-RTX, which builds without a GPU, is asked about the graphs that edgetl makes for TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgetl import catalog
from edgetl.backends import CompileRequest, backend
from edgetl.export.onnx import export
from edgetl.parity.numeric import sqnr_db
from edgetl.quantize import graph, recipes
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.specs import BatchRange

pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'edgetl[tensorrt-rtx]'")
pytestmark = pytest.mark.slow

SIZE = 32
NETWORKS: dict[str, dict[str, object]] = {
    "tf_efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "resnet18": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "vit_tiny_patch16_224": {"img_size": SIZE, "depth": 5},
}
"""Depthwise and residual; squeeze-and-excitation and HardSwish; residual with downsampling; Concat; attention. Of each,
a few blocks: all of a kind are alike to a parser."""


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights; its values are not in question here."""
    import timm
    import torch

    torch.manual_seed(0)
    module = timm.create_model(request.param, num_classes=100, **NETWORKS[request.param])
    if request.param in ("tf_efficientnet_lite0", "mobilenetv3_small_050"):
        for stage in module.blocks[2:]:
            del stage[1:]  # repetitions of its first block, and residual; those of the stage before stay
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    export(
        module.eval(),
        path,
        batch=BatchRange(min=1, max=8),
        opset=20,
        labels=tuple(map(str, range(100))),
        preprocessing=ImagePreprocessing(height=SIZE, width=SIZE),
    )
    return path


def computed(path: Path, images: np.ndarray) -> np.ndarray:
    """The first output, on ONNX Runtime without its pass over Q/DQ pairs, which computes float16 ones wrongly."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": images})[0], dtype=np.float64)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-dla"])
def test_the_parser_accepts_the_int8_graph_which_computes_what_the_float_graph_does(
    name: str, exported: Path, tmp_path: Path
) -> None:
    from edgetl.backends.tensorrt_rtx import accepts, parsed

    model = graph.prepare(graph.load(exported))
    images = np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    tools = Tools(samples=lambda: [{"input": images}], open_runner=OnnxRuntimeRunner)
    scheme = SCHEMES[name]
    found = recipes.calibrate(model, tools, [scheme])
    done = recipes.make(model, found, scheme, catalog.recipe("int8-minmax"), tools)
    ir.save(done.model, tmp_path / "int8.onnx")
    products = {name: count for name, count in done.quantized.items() if name in ("Conv", "MatMul", "Gemm")}
    assert sum(products.values()) >= 18
    assert accepts(tmp_path / "int8.onnx") == []
    # What the account of the quantizer says becomes int8, the parser takes for int8.
    multiplying = [node for node in parsed(tmp_path / "int8.onnx") if node.multiply_adds]
    assert sum(node.precision == "int8" for node in multiplying) == sum(products.values())
    assert sqnr_db(computed(exported, images), computed(tmp_path / "int8.onnx", images)) > 15.0


def test_the_dla_graph_without_quantizers_for_tensorrt_10(exported: Path, tmp_path: Path) -> None:
    """TensorRT 10 wants ranges of tensors for a DLA: each is of a tensor that its parser makes of that graph."""
    import tensorrt_rtx_bindings as trt

    from edgetl.backends import _trt_dla
    from edgetl.backends._trt_build import parse

    model = graph.prepare(graph.load(exported))
    images = np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    tools = Tools(samples=lambda: [{"input": images}], open_runner=OnnxRuntimeRunner)
    scheme = SCHEMES["tensorrt-dla"]
    done = recipes.make(model, recipes.calibrate(model, tools, [scheme]), scheme, catalog.recipe("int8-minmax"), tools)
    ir.save(done.model, tmp_path / "int8.onnx")
    content, ranges, meant = _trt_dla.implicit(tmp_path / "int8.onnx")
    (tmp_path / "floats.onnx").write_bytes(content)
    kinds = {node.op_type for node in ir.load(tmp_path / "floats.onnx").graph}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "Cast"}
    floats = computed(tmp_path / "floats.onnx", images)
    assert sqnr_db(computed(exported, images), floats) > 20.0  # the weights' steps alone are left of quantization
    builder, network, parser, errors = parse(trt, content)
    assert errors == []
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    tensors = {layer.get_output(index).name for layer in layers for index in range(layer.num_outputs)}
    assert set(ranges) <= tensors | {"input"} and all(0 < size < 1e4 for size in ranges.values())
    assert set(meant) & {layer.name for layer in layers} == set(meant)
    products = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    read = [layer.get_input(0).name for layer in products]
    assert all(name in ranges for name in read), "a convolution whose input has no range is no int8"
    largest = np.abs(images).max()
    assert ranges["input"] == pytest.approx(largest, rel=0.02)
    del parser, builder


def test_an_engine_is_built_from_the_fp16_graph(exported: Path, tmp_path: Path) -> None:
    done = recipes.make_half(graph.prepare(graph.load(exported)), catalog.recipe("fp16"), None)
    ir.save(done.model, tmp_path / "half.onnx")
    folder = tmp_path / "engine"
    folder.mkdir()
    request = CompileRequest(
        model=tmp_path / "half.onnx",
        folder=folder,
        target=catalog.target("rtx-pc"),
        precision="fp16",
        batch=BatchRange(min=1, max=8),
    )
    record = backend("tensorrt_rtx").compile(request)
    assert record.status in ("built", "ready")
    assert (folder / record.files[0]).stat().st_size > 1_000_000


LONGEST = 24
"""Tokens."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from edgetl.backends.encoders import build
    from edgetl.runtime.preprocessing.text import TextPreprocessing

    words = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *(f"w{n}" for n in range(98))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = {"model_type": "bert", **sizes, "vocab_size": 100, "max_position_embeddings": 32, "pad_token_id": 0}
    torch.manual_seed(0)
    module = build("hf:tiny", 2, config=config, vocabulary=100, pad=0, pooling="mean", dropout=None, width=1, depth=1)
    path = tmp_path_factory.mktemp("encoder") / "model.onnx"
    contract = TextPreprocessing.from_tokenizer(str(tokenizer.to_str()), max_length=LONGEST, pad=0)
    batch = BatchRange(min=1, max=8)
    export(
        module.eval(),
        path,
        batch=batch,
        opset=20,
        labels=("no", "yes"),
        preprocessing=contract,
        longest=LONGEST,
    )
    return path


class TestTexts:
    """An encoder for texts of any length: the optimization profile has two dynamic dimensions."""

    def test_an_engine_takes_every_length(self, encoder: Path, tmp_path: Path) -> None:
        done = recipes.make_half(graph.prepare(graph.load(encoder)), catalog.recipe("fp16"), None)
        ir.save(done.model, tmp_path / "half.onnx")
        request = CompileRequest(
            model=tmp_path / "half.onnx",
            folder=tmp_path,
            target=catalog.target("rtx-pc"),
            precision="fp16",
            batch=BatchRange(min=1, max=8),
            longest=LONGEST,
        )
        record = backend("tensorrt_rtx").compile(request)
        assert record.status in ("built", "ready")
        profile = record.options["profiles"]["input"]
        assert profile == {"min": [1, 2], "opt": [1, LONGEST], "max": [8, LONGEST]}

    @pytest.mark.parametrize("name", ["tensorrt", "tensorrt-dla"])
    def test_the_parser_accepts_the_int8_graph(self, name: str, encoder: Path, tmp_path: Path) -> None:
        from edgetl.backends.tensorrt_rtx import accepts

        random = np.random.default_rng(0)
        texts = [{"input": random.integers(1, 100, (1, length))} for length in (2, 5, 9, LONGEST)]
        tools = Tools(samples=lambda: texts, open_runner=OnnxRuntimeRunner)
        model, scheme = graph.prepare(graph.load(encoder)), SCHEMES[name]
        done = recipes.make(
            model, recipes.calibrate(model, tools, [scheme]), scheme, catalog.recipe("int8-minmax"), tools
        )
        ir.save(done.model, tmp_path / "int8.onnx")
        assert done.quantized["MatMul"] >= 8
        assert accepts(tmp_path / "int8.onnx") == []
