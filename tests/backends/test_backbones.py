from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from edgetl.backends.backbones import Stage, build, embedding_size, head_of, preprocessing_of, stages
from edgetl.errors import ModelError

CLASSES = 5
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Name, image size, name of the head, width of the features, number of stages.
FAMILIES = [
    ("torchvision:alexnet", 64, "classifier.6", 4096, 8),
    ("torchvision:vgg11", 32, "classifier.6", 4096, 11),
    ("torchvision:googlenet", 64, "fc", 1024, 13),
    ("torchvision:inception_v3", 80, "fc", 2048, 17),
    ("torchvision:resnet18", 64, "fc", 512, 6),
    ("torchvision:densenet121", 64, "classifier", 1024, 9),
    ("torchvision:mobilenet_v2", 64, "classifier.1", 1280, 20),
    ("torchvision:mobilenet_v3_small", 64, "classifier.3", 1024, 15),
    ("torchvision:efficientnet_b0", 64, "classifier.1", 1280, 10),
    ("torchvision:convnext_tiny", 64, "classifier.2", 768, 9),
    ("torchvision:shufflenet_v2_x0_5", 64, "fc", 1024, 6),
    ("torchvision:mnasnet0_5", 64, "classifier.1", 1280, 11),
    ("timm:resnet18", 64, "fc", 512, 6),
    ("timm:densenet121", 64, "classifier", 1024, 6),
    ("timm:mobilenetv2_100", 64, "classifier", 1280, 9),
    ("timm:mobilenetv3_small_100", 64, "classifier", 1024, 9),
    ("timm:mobilenetv4_conv_small", 64, "classifier", 1280, 8),
    ("timm:efficientnet_b0", 64, "classifier", 1280, 9),
    ("timm:tf_efficientnet_lite0", 64, "classifier", 1280, 9),
    ("timm:convnext_atto", 64, "head.fc", 320, 6),
    ("timm:vit_tiny_patch16_224", 64, "head", 192, 14),
    # Heads that are convolutions in timm, which build() makes linear; and a network that timm does not group.
    ("timm:dpn68", 64, "classifier", 832, 6),
    ("timm:resnetv2_18", 64, "head.fc", 512, 6),
    ("timm:poolformerv2_s12", 64, "head.fc", 512, 6),
]


Built = tuple[nn.Module, tuple[str, int, str, int, int]]


@pytest.fixture(scope="module", params=FAMILIES, ids=[family[0] for family in FAMILIES])
def family(request: pytest.FixtureRequest) -> Iterator[Built]:
    torch.manual_seed(0)
    yield build(request.param[0], CLASSES, image_size=request.param[1]).eval(), request.param


class TestFamilies:
    """What holds of every network that build() makes."""

    def test_the_head_maps_the_features_to_the_logits(self, family: Built) -> None:
        module, (_, size, name, width, _) = family
        found, head = head_of(module)
        assert (found, embedding_size(module)) == (name, width) and module.get_submodule(name) is head
        features: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        with torch.inference_mode():
            logits = module(torch.randn(2, 3, size, size))
            hook.remove()
            assert [tuple(part.shape) for part in features] == [(2, width)]
            assert logits.shape == (2, CLASSES) and torch.equal(head(features[0]), logits)
        assert bool(logits.isfinite().all())

    def test_the_stages_are_a_partition_in_the_order_of_the_modules(self, family: Built) -> None:
        module, (_, _, head, _, count) = family
        found = stages(module)
        assert [name for stage in found for name in stage.parameters] == [name for name, _ in module.named_parameters()]
        assert len(found) == count == len({stage.name for stage in found}) and all(stage.parameters for stage in found)
        assert found[0].name == "stem"
        assert found[-1] == Stage(name="head", parameters=(f"{head}.weight", f"{head}.bias"))

    def test_no_stage_is_normalisation_alone(self, family: Built) -> None:
        module, _ = family
        for stage in stages(module):
            assert any(module.get_parameter(name).ndim > 1 for name in stage.parameters), stage

    def test_mean_and_deviation_are_known(self, family: Built) -> None:
        mean, std = preprocessing_of(family[0])
        assert len(mean) == len(std) == 3 and all(0 < value < 1 for value in (*mean, *std))


class TestStages:
    def names(self, backbone: str) -> list[str]:
        return [stage.name for stage in stages(build(backbone, 2))]

    @pytest.mark.parametrize("backbone", ["timm:resnet18", "torchvision:resnet18"])
    def test_resnet(self, backbone: str) -> None:
        assert self.names(backbone) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]

    def test_names_are_prefixes_of_the_parameters(self) -> None:
        for stage in stages(build("torchvision:densenet121", 2))[1:-1]:
            assert stage.parameters[0].startswith(f"{stage.name}.")
        assert self.names("timm:mobilenetv4_conv_small")[-2:] == ["conv_head", "head"]

    def test_tokens_and_positions_belong_to_the_stem(self) -> None:
        timm = stages(build("timm:vit_tiny_patch16_224", 2, image_size=32))
        assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(timm[0].parameters)
        assert timm[12].name == "blocks.11" and "norm.weight" in timm[12].parameters
        registers = stages(build("timm:vit_small_patch14_reg4_dinov2", 2, image_size=28))
        assert "reg_token" in registers[0].parameters  # which timm's own patterns leave over

    @pytest.mark.parametrize("backbone", ["timm:rdnet_tiny", "timm:coat_tiny", "timm:twins_svt_small"])
    def test_groups_of_timm_that_are_none_or_in_another_order(self, backbone: str) -> None:
        with torch.device("meta"):
            module = build(backbone, 2)
        found = stages(module)
        names = [name for stage in found for name in stage.parameters]
        assert sorted(names) == sorted(name for name, _ in module.named_parameters())
        assert (found[0].name, found[-1].name) == ("stem", "head") and len({stage.name for stage in found}) == len(
            found
        )

    def test_a_network_of_ones_own(self) -> None:
        own = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        assert [(stage.name, len(stage.parameters)) for stage in stages(own)] == [("stem", 4), ("3", 2), ("head", 2)]
        assert stages(nn.Sequential(nn.Linear(3, 2))) == (Stage(name="head", parameters=("0.weight", "0.bias")),)

    def test_a_stage_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            stages(build("timm:test_efficientnet", 2))[0].name = "other"  # type: ignore[misc]


class TestDropout:
    @pytest.mark.parametrize("backbone", ["torchvision:mobilenet_v3_small", "torchvision:googlenet"])
    def test_torchvision(self, backbone: str) -> None:
        found = [part.p for part in build(backbone, 2, dropout=0.35).modules() if isinstance(part, nn.Dropout)]
        assert found == [0.35]

    def test_timm(self) -> None:
        assert build("timm:test_efficientnet", 2, dropout=0.35).drop_rate == 0.35

    def test_it_drops_features_before_the_head_in_training_alone(self) -> None:
        for backbone in ("timm:test_efficientnet", "torchvision:mobilenet_v2"):
            module = build(backbone, 2, dropout=0.9)
            seen: list[float] = []
            head_of(module)[1].register_forward_pre_hook(
                lambda _, x, s=seen: s.append(float((x[0] == 0).float().mean()))
            )
            images = torch.randn(4, 3, 32, 32)
            module.train()(images)
            module.eval()(images)
            assert seen[0] > 0.7 > 0.6 > seen[1], backbone

    def test_a_network_without_is_named(self) -> None:
        with pytest.raises(ModelError, match="torchvision:resnet18 has no dropout before its head"):
            build("torchvision:resnet18", 2, dropout=0.3)

    @pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
    @pytest.mark.parametrize("backbone", ["timm:test_efficientnet", "torchvision:mobilenet_v2"])
    def test_no_probability(self, backbone: str, dropout: float) -> None:
        with pytest.raises(ModelError, match=r"dropout is|cannot be built"):
            build(backbone, 2, dropout=dropout)


class TestPreprocessing:
    def test_each_family(self) -> None:
        assert preprocessing_of(build("torchvision:mobilenet_v2", 2)) == IMAGENET
        assert preprocessing_of(build("timm:resnet18", 2)) == IMAGENET
        assert preprocessing_of(build("timm:tf_efficientnet_lite0", 2)) == HALVES

    def test_googlenet_without_its_own_arithmetic_on_images(self) -> None:
        """torchvision changes ImageNet's normalisation into halves inside the network; build() does not."""
        from torchvision.models import googlenet

        module = build("torchvision:googlenet", 2).eval()
        theirs = googlenet(num_classes=2, aux_logits=False, transform_input=True, init_weights=False).eval()
        theirs.load_state_dict(module.state_dict())
        pixels = torch.rand(1, 3, 64, 64)

        def normalised(constants: tuple[tuple[float, ...], tuple[float, ...]]) -> torch.Tensor:
            mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in constants)
            return (pixels - mean) / std

        with torch.inference_mode():
            torch.testing.assert_close(
                module(normalised(preprocessing_of(module))), theirs(normalised(IMAGENET)), rtol=1e-4, atol=1e-5
            )

    def test_a_network_that_does_not_say(self) -> None:
        with pytest.raises(ModelError, match="Sequential does not say how"):
            preprocessing_of(nn.Sequential(nn.Linear(3, 2)))


class TestRefusals:
    @pytest.mark.parametrize(
        ("backbone", "match"),
        [
            ("timm:tf_efficientnet_lite9", "timm has no model 'tf_efficientnet_lite9'; it has tf_efficientnet_lite"),
            ("timm:resnet18.no_such_tag", r"timm has no weights 'resnet18.no_such_tag'; it has resnet18\.a1_in1k, "),
            ("torchvision:resnet19", "torchvision has no model 'resnet19'; it has resnet"),
            ("torchvision:fcn_resnet50", "torchvision has no model"),  # segments, does not classify
            ("torchvision:", "torchvision has no model ''"),
            ("timm:", "timm has no model ''"),
            ("keras:resnet18", "write timm:<name> or torchvision:<name>"),
            ("resnet18", "write timm:<name> or torchvision:<name>"),
            ("torchvision:squeezenet1_1", "squeezenet1_1 cannot be used: it ends in SqueezeNet"),
            ("timm:deit_tiny_distilled_patch16_224", "several heads"),
            ("timm:repvit_m0_9", "several heads"),
        ],
    )
    def test_names(self, backbone: str, match: str) -> None:
        with pytest.raises(ModelError, match=match):
            build(backbone, 2)

    def test_the_other_family_is_named_where_it_has_the_network(self) -> None:
        with pytest.raises(ModelError) as caught:
            build("timm:alexnet", 2)
        assert caught.value.hint == "write torchvision:alexnet"

    @pytest.mark.parametrize(
        ("backbone", "size", "match"),
        [
            ("torchvision:inception_v3", 64, "cannot take images of 64 × 64 pixels"),
            ("torchvision:vit_b_32", 65, "cannot be built for images of 65 pixels"),
        ],
    )
    def test_image_sizes(self, backbone: str, size: int, match: str) -> None:
        with pytest.raises(ModelError, match=match):
            build(backbone, 2, image_size=size)

    @pytest.mark.parametrize("classes", [0, -1])
    def test_no_classes(self, classes: int) -> None:
        with pytest.raises(ModelError, match="at least one"):
            build("timm:test_efficientnet", classes)

    def test_the_mode_is_left_as_it_was(self) -> None:
        assert build("timm:test_efficientnet", 2, image_size=32).training
