from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgetl.backends import tabular
from edgetl.backends.backbones import embedding_size, head_of, stages
from edgetl.errors import MissingExtraError, ModelError

KINDS = pytest.mark.parametrize("name", tabular.NAMES)


def network(
    name: str, features: int = 12, outputs: int = 3, depth: int = 2, dropout: float | None = None
) -> torch.nn.Module:
    torch.manual_seed(0)
    module = tabular.build(name, features, outputs, width=16, depth=depth, dropout=dropout)
    # Away from the start, where BatchNorm does nothing.
    module.train()(torch.randn(64, features) * 3 + 1)
    return module.eval()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The networks as edgetl.export.onnx writes them: dynamo, a dynamic batch, folded."""
    onnxslim = pytest.importorskip("onnxslim")
    folder = tmp_path_factory.mktemp("graphs")
    for name in tabular.NAMES:
        program = torch.onnx.export(
            network(name), (torch.zeros(2, 12),), dynamo=True, input_names=["input"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=32)},), opset_version=20, verbose=False,
        )  # fmt: skip
        assert program is not None
        onnx.save(onnxslim.slim(program.model_proto), str(folder / f"{name}.onnx"))
    return {name: folder / f"{name}.onnx" for name in tabular.NAMES}


@KINDS
class TestNetworks:
    def test_it_maps_rows_to_logits(self, name: str) -> None:
        assert network(name)(torch.randn(5, 12)).shape == (5, 3)

    def test_the_head_is_the_last_linear_layer(self, name: str) -> None:
        module = network(name)
        found, head = head_of(module)
        assert found == "head" and (head.in_features, head.out_features) == (16, 3)
        assert embedding_size(module) == 16
        inputs = torch.randn(4, 12)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        head.register_forward_hook(lambda _, given, output: seen.append((given[0], output)))
        logits = module(inputs)
        assert torch.equal(seen[0][1], logits) and seen[0][0].shape == (4, 16)

    def test_stages_hold_every_parameter_once(self, name: str) -> None:
        module = network(name, depth=3)
        found = stages(module)
        hidden = ["blocks.0", "blocks.1"] if name == "mlp" else ["blocks.0", "blocks.1", "blocks.2"]
        assert [stage.name for stage in found] == ["stem", *hidden, "head"]
        assert sorted(part for stage in found for part in stage.parameters) == sorted(
            part for part, _ in module.named_parameters()
        )
        assert found[0].parameters[0].endswith("weight")

    def test_depth_of_one(self, name: str) -> None:
        module = network(name, depth=1)
        assert module(torch.randn(2, 12)).shape == (2, 3)
        assert stages(module)[-1].name == "head"

    def test_dropout_is_what_was_asked_for(self, name: str) -> None:
        def rates(dropout: float | None) -> set[float]:
            module = network(name, dropout=dropout)
            return {part.p for part in module.modules() if isinstance(part, torch.nn.Dropout)}

        assert rates(None) == {tabular.DROPOUT} and rates(0.0) == {0.0} and rates(0.7) == {0.7}

    def test_the_seed_decides_the_weights(self, name: str) -> None:
        first, second = network(name).state_dict(), network(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_hidden_layers_of_other_tables_fit_by_name_and_shape(self, name: str) -> None:
        own, other = network(name, 12, 2).state_dict(), network(name, 40, 5).state_dict()
        assert own.keys() == other.keys()
        unlike = {key for key in own if own[key].shape != other[key].shape}
        stem = "stem.linear.weight" if name == "mlp" else "stem.weight"
        assert unlike == {stem, "head.weight", "head.bias"}

    def test_the_graph_takes_any_batch(self, name: str, graphs: dict[str, Path]) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        module = network(name)
        session = onnxruntime.InferenceSession(graphs[name], providers=["CPUExecutionProvider"])
        for count in (1, 2, 7, 32):
            inputs = torch.randn(count, 12)
            (logits,) = session.run(["logits"], {"input": inputs.numpy()})
            np.testing.assert_allclose(logits, module(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("scheme", ["onnxruntime-x86-vnni", "openvino", "tensorrt"])
    def test_the_graph_can_be_quantized(self, name: str, scheme: str, graphs: dict[str, Path], tmp_path: Path) -> None:
        import onnx_ir as ir

        from edgetl.quantize import calibrate, graph, insertion, placement
        from edgetl.quantize.schemes import SCHEMES
        from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
        from edgetl.specs import Estimator, Recipe

        module = network(name)
        inputs = torch.randn(256, 12)
        model = graph.prepare(graph.load(graphs[name]))
        names = placement.points(model, [SCHEMES[scheme]])
        statistics = calibrate.calibrate(
            model, names, [{"input": inputs.numpy()}], open_runner=OnnxRuntimeRunner, memory_mb=64
        )
        recipe = Recipe(
            name="t", description="", activations=Estimator(method="mse"), weights=Estimator(method="mse"),
            bias_correction="none",
        )  # fmt: skip
        made = insertion.quantize(model, statistics.sketches, SCHEMES[scheme], recipe)
        ir.save(made.model, tmp_path / "q.onnx")
        products = sum(node.op_type in ("Gemm", "MatMul") for node in model.graph)
        assert products == (3 if name == "mlp" else 6)
        with OnnxRuntimeRunner(tmp_path / "q.onnx") as runner:
            logits = runner.run({"input": inputs.numpy()})["logits"]
        expected = module(inputs).detach().numpy()
        noise = float(((logits - expected) ** 2).mean() / expected.var())
        assert 1e-9 < noise < 1e-2
        assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.9


class TestBadInput:
    def test_an_unknown_network(self) -> None:
        with pytest.raises(ModelError, match=r"no network 'tables:resnett'.*tables:resnet"):
            tabular.build("resnett", 4, 2, width=8, depth=1, dropout=None)

    @pytest.mark.parametrize("what", ["features", "outputs", "width", "depth"])
    def test_sizes(self, what: str) -> None:
        sizes = {"features": 4, "outputs": 2, "width": 8, "depth": 1, what: 0}
        with pytest.raises(ModelError, match=f"{what} = 0"):
            tabular.build("mlp", dropout=None, **sizes)

    @pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
    def test_dropout(self, dropout: float) -> None:
        with pytest.raises(ModelError, match="it is a probability"):
            tabular.build("mlp", 4, 2, width=8, depth=1, dropout=dropout)

    def test_without_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "torch", None)
        with pytest.raises(MissingExtraError):
            tabular.build("mlp", 4, 2, width=8, depth=1, dropout=None)
