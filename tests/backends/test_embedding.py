from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgetl.backends import backbones, embedding
from edgetl.backends.backbones import Stage
from edgetl.config import Phase
from edgetl.errors import ModelError
from edgetl.export.onnx import export
from edgetl.finetune import selectors
from edgetl.finetune.features import body_of
from edgetl.finetune.weights import load_pretrained
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.specs import BatchRange

PEOPLE, WIDTH = 7, 16
# Name, image size, number of features; heads of different places and kinds.
FAMILIES = [
    ("timm:test_efficientnet", 32, 256),
    ("timm:test_vit", 160, 64),
    ("timm:resnetv2_18", 64, 512),
    ("torchvision:alexnet", 64, 4096),
    ("torchvision:mobilenet_v2", 64, 1280),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=[family[0] for family in FAMILIES])
def family(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, int, int]]:
    torch.manual_seed(0)
    name, size, features = request.param
    yield embedding.build(name, PEOPLE, WIDTH, image_size=size), size, features


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return embedding.build("timm:test_efficientnet", PEOPLE, WIDTH, dropout=0.0, image_size=32)


def images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


class TestFamilies:
    """What holds on top of every classifier."""

    def test_eval_gives_unit_vectors_and_training_cosines(self, family: tuple[nn.Module, int, int]) -> None:
        network, size, features = family
        network.eval()
        with torch.no_grad():
            vectors = network(images(3, size))
            assert network.features(images(3, size)).shape == (3, features)
            cosines = network.train()(images(3, size))
        assert vectors.shape == (3, WIDTH) and torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
        assert cosines.shape == (3, PEOPLE) and cosines.abs().max() <= 1 + 1e-5

    def test_stages_hold_every_parameter_once(self, family: tuple[nn.Module, int, int]) -> None:
        network = family[0]
        before = copy.deepcopy(network.state_dict())
        stages = embedding.embedding_stages(network)
        names = [name for stage in stages for name in stage.parameters]
        assert sorted(names) == sorted(name for name, _ in network.named_parameters())
        assert stages[0].name == "stem" and all(stage.name.startswith("body.") for stage in stages[1:-1])
        assert stages[-1] == Stage(
            name="head", parameters=("head.prototypes", "head.linear.weight", "head.linear.bias")
        )
        assert len({stage.name for stage in stages}) == len(stages) > 2
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_the_head_alone_does_on_features_what_the_network_does(self, family: tuple[nn.Module, int, int]) -> None:
        network, size, _ = family
        network.eval()
        with torch.no_grad():
            features = network.features(images(2, size))
            assert torch.equal(body_of(network, embedding.HEAD)(images(2, size)), features)
            head = copy.deepcopy(network.get_submodule(embedding.HEAD))
            assert torch.equal(head(features), network(images(2, size)))
            assert head.train()(features).shape == (2, PEOPLE)


class TestHead:
    def test_it_starts_as_a_rotation(self) -> None:
        """Not narrower than the features, it keeps the angles between them."""
        torch.manual_seed(0)
        network = embedding.build("timm:test_efficientnet", PEOPLE, 256).eval()
        features = torch.rand(20, 256)
        with torch.no_grad():
            unit = network.get_submodule("head")(features)
        expected = nn.functional.normalize(features)
        assert torch.allclose(unit @ unit.T, expected @ expected.T, atol=1e-5)

    def test_cosines_are_those_with_the_prototypes(self, small: nn.Module) -> None:
        head = small.get_submodule("head")
        features = torch.rand(4, 256)
        with torch.no_grad():
            cosines = head.train()(features)
            found = nn.functional.cosine_similarity(head.eval()(features)[:, None], head.prototypes[None], dim=2)
        assert torch.allclose(cosines, found, atol=1e-6)

    def test_a_vector_of_length_zero_is_no_nan(self, small: nn.Module) -> None:
        head = small.get_submodule("head")
        features = torch.zeros(1, 256, requires_grad=True)  # the bias starts at 0, so this is the zero vector
        cosines = head.train()(features)
        cosines.sum().backward()
        assert torch.equal(cosines.detach(), torch.zeros(1, PEOPLE))
        assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
        assert torch.isfinite(features.grad).all() if features.grad is not None else False

    def test_cosines_are_float32_under_autocast(self, small: nn.Module) -> None:
        small.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert small(images(2)).dtype == torch.float32

    def test_the_networks_mode_decides_where_nothing_of_the_head_is_trained(self, small: nn.Module) -> None:
        stages = embedding.embedding_stages(small)
        phase = Phase(train="names", names=("body.blocks.*",))
        selectors.prepare(small, selectors.selected(small, phase, stages), batchnorm="frozen-statistics")
        assert not small.get_submodule("head").training
        assert small(images(2)).shape == (2, PEOPLE)

    def test_the_head_alone_is_one_stage(self, small: nn.Module) -> None:
        head = small.get_submodule("head")
        assert embedding.embedding_stages(head) == (
            Stage(name="head", parameters=("prototypes", "linear.weight", "linear.bias")),
        )

    def test_a_few_steps_pull_people_apart(self, small: nn.Module) -> None:
        labels = torch.arange(PEOPLE).repeat(4)
        inputs = images(PEOPLE).repeat(4, 1, 1, 1) + 0.1 * images(4 * PEOPLE)
        chosen = selectors.selected(small, Phase(train="all"), embedding.embedding_stages(small))
        selectors.prepare(small, chosen, batchnorm="frozen-statistics")
        optimizer = torch.optim.AdamW(small.parameters(), 1e-2)
        losses = []
        for _ in range(12):
            loss = nn.functional.cross_entropy(16 * small(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.2 * losses[0]


class TestAsClassifier:
    def test_pretrained_weights_of_a_classifier_fit(self, small: nn.Module, tmp_path: Path) -> None:
        torch.manual_seed(5)
        classifier = backbones.build("timm:test_efficientnet", 10, image_size=32).eval()
        torch.save(classifier.state_dict(), tmp_path / "w.pth")
        before = copy.deepcopy(small.get_submodule("head").state_dict())
        with embedding.as_classifier(small) as body:
            copied = load_pretrained(body, str(tmp_path / "w.pth"), backbone="timm:test_efficientnet")
        assert not copied.head_kept and copied.tensors == len(classifier.state_dict()) - 2
        assert [name for name, _ in small.named_parameters()][-3:] == [
            f"head.{name}" for name in ("prototypes", "linear.weight", "linear.bias")
        ]
        head = small.get_submodule("head").state_dict()
        assert all(torch.equal(value, before[name]) for name, value in head.items())
        with torch.no_grad():
            expected = body_of(classifier, backbones.head_of(classifier)[0])(images(2))
            assert torch.equal(small.eval().features(images(2)), expected)

    def test_the_head_goes_again_after_an_error(self, small: nn.Module) -> None:
        names = list(small.state_dict())
        with pytest.raises(RuntimeError, match="stop"), embedding.as_classifier(small) as body:
            assert backbones.head_of(body)[1].out_features == 1
            raise RuntimeError("stop")
        assert list(small.state_dict()) == names

    def test_another_module_is_refused(self) -> None:
        with (
            pytest.raises(ModelError, match="Linear is no embedding network"),
            embedding.as_classifier(nn.Linear(2, 2)),
        ):
            pass
        with pytest.raises(ModelError, match="no embedding network"):
            embedding.embedding_stages(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("people", "width", "message"), [(1, 8, "with 1 person to"), (0, 8, "0 people"), (3, 1, "of 1 numbers")]
)
def test_too_few_people_or_numbers(people: int, width: int, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        embedding.build("timm:test_efficientnet", people, width)
    assert error.value.hint


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ModelError, match="timm has no model 'resnot'"):
        embedding.build("timm:resnot", 3, 8)


def test_a_checkpoint_of_tensors_brings_it_back(small: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    torch.manual_seed(9)
    again = embedding.build("timm:test_efficientnet", PEOPLE, WIDTH, image_size=32)
    again.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(again.eval()(images(2)), small.eval()(images(2)))


def test_the_exported_graph_has_no_prototypes_and_agrees(small: nn.Module, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "e.onnx"
    contract = ImagePreprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    export(small, path, batch=BatchRange(min=1, max=8), opset=18, labels=(), preprocessing=contract, output="embedding")
    graph = onnx.load(path).graph
    assert not [value.name for value in graph.initializer if list(value.dims) in ([PEOPLE, WIDTH], [WIDTH, PEOPLE])]
    assert [size.dim_value for size in graph.output[0].type.tensor_type.shape.dim][1:] == [WIDTH]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (found,) = session.run(None, {"input": images(count).numpy()})
        with torch.no_grad():
            expected = small.eval()(images(count)).numpy()
        assert found.shape == (count, WIDTH)
        np.testing.assert_allclose(found, expected, atol=1e-5)
