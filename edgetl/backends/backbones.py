"""Networks by name: built, and taken apart into a head and stages.

A backbone is ``timm:<name>`` or ``torchvision:<name>``. Whatever :func:`build` returns has one linear head whose input
are the pooled features (n, d) and whose output are the logits (n, classes).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetl.errors import ModelError, not_imported

if TYPE_CHECKING:
    from torch import nn

_HINT = "model.backbone in edgetl.toml"
# Children of these names are stages of their own; what else has children is one stage.
_OPENED = frozenset(
    {"features", "encoder", "layers", "layer", "blocks", "stages", "trunk_output", "classifier", "heads", "transformer"}
)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Parameters of a network that lie together between its input and its output."""

    name: str
    """"stem", "head", or the prefix that its parameters have in common, as "layer1"."""
    parameters: tuple[str, ...]
    """Their names, in the order of the network's ``named_parameters()``."""


def build(backbone: str, classes: int, *, dropout: float | None = None, image_size: int | None = None) -> nn.Module:
    """A network with random weights.

    GoogLeNet and Inception have no auxiliary heads, and take images normalised as :func:`preprocessing_of` says.

    Args:
        backbone: timm:<name> or torchvision:<name>.
        classes: Outputs of its head.
        dropout: Probability of dropping a feature before the head. None: the network's own.
        image_size: Height and width of the images that it will see, in pixels. Networks with position embeddings are
            made for it, and one image is tried. None: the network's own size, untried.

    Raises:
        MissingExtraError: timm or torchvision is not installed.
        ModelError: No such network (the message names similar ones), one whose head is not a single linear layer, one
            that has no dropout to set, or one that cannot take images of that size.
    """
    family, _, name = backbone.partition(":")
    if classes < 1:
        raise ModelError(f"{backbone} was asked for {classes} classes; a head needs at least one")
    if family == "timm":
        module = _build_timm(name, classes, dropout, image_size)
    elif family == "torchvision":
        module = _build_torchvision(name, classes, image_size)
    else:
        raise ModelError(f"'{backbone}' names no network; write timm:<name> or torchvision:<name>", hint=_HINT)
    try:
        head_of(module)
    except ModelError as error:
        raise ModelError(f"{backbone} cannot be used: {error.message}", hint=_HINT) from None
    if dropout is not None:
        _set_dropout(module, backbone, dropout)
    if image_size is not None:
        _try_one_image(module, backbone, classes, image_size)
    return module


def head_of(module: nn.Module) -> tuple[str, nn.Linear]:
    """The classifier: the last linear layer.

    Args:
        module: From :func:`build`, or any network whose last linear layer gives its outputs.

    Returns:
        Its name in ``named_modules()``, and itself. In eval mode its input are the features of shape (n, d), and its
        output is the network's.

    Raises:
        ModelError: The network ends in something else, or in several heads.
    """
    from torch import nn

    inside: Any = module
    classifier: Any = getattr(module, "get_classifier", None)
    if classifier is not None:
        inside = classifier()
        if not isinstance(inside, nn.Module) or isinstance(inside, nn.ModuleList):
            raise ModelError("it has several heads, whose outputs are added up")
    own = set(inside.modules())
    found = [(name, part) for name, part in module.named_modules() if part in own and isinstance(part, nn.Linear)]
    if not found:
        raise ModelError(f"it ends in {type(inside).__name__}, not in a linear layer")
    last = found[-1]
    alike = [part for _, part in found if part.weight.shape == last[1].weight.shape]
    if inside is not module and len(alike) > 1:
        raise ModelError("it has several heads, whose outputs are added up")
    return last


def embedding_size(module: nn.Module) -> int:
    """Width d of the features (n, d) that the head sees.

    Raises:
        ModelError: As :func:`head_of`.
    """
    return head_of(module)[1].in_features


def stages(module: nn.Module) -> tuple[Stage, ...]:
    """Every parameter exactly once, in stages from the input to the output.

    For networks of timm that are its own groups (``group_matcher(coarse=True)``), else the modules in their order, with
    containers like ``features`` opened. Normalisation between two stages, or behind the last one, belongs to the one
    before it; class tokens and position embeddings belong to the stem.

    Returns:
        The first is named "stem", the last "head" and holds the parameters of :func:`head_of` alone.

    Raises:
        ModelError: As :func:`head_of`.
    """
    head_name, head = head_of(module)
    head_parameters = tuple(f"{head_name}.{name}" for name, _ in head.named_parameters())
    groups = _timm_groups(module, head_parameters)
    if groups is None:
        groups = [names for names in _units(module, "", head) if names != list(head_parameters)]
    body = _joined(module, groups)
    names = _names([*body, list(head_parameters)])
    made = [Stage(name=name, parameters=tuple(group)) for name, group in zip(names, body, strict=False)]
    return (*made, Stage(name="head", parameters=head_parameters))


def preprocessing_of(module: nn.Module) -> tuple[Channels, Channels]:
    """Mean and standard deviation per colour channel, on the scale 0 to 1, that pretrained weights expect.

    Raises:
        ModelError: The network does not say.
    """
    cfg = getattr(module, "pretrained_cfg", None)
    if cfg:
        mean, std = (tuple(float(value) for value in cfg.get(key) or ()) for key in ("mean", "std"))
        if len(mean) == len(std) == 3:
            return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
    if type(module).__module__.startswith("torchvision.models."):
        # Their weights were trained on (x - 0.5) / 0.5. torchvision changes ImageNet's normalisation into that one
        # inside the network (transform_input), which build() leaves off: the engine is spared the arithmetic.
        return _HALVES if type(module).__name__ in ("GoogLeNet", "Inception3") else _IMAGENET
    raise ModelError(
        f"{type(module).__name__} does not say how its images are normalised", hint="write mean and std in [data]"
    )


def timm_networks() -> Any:
    """The package timm.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise not_imported(error, "timm", extra="train", needed_for="building the network") from None
    return timm


def torchvision_networks() -> Any:
    """The module ``torchvision.models``.

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise not_imported(error, "torchvision", extra="train", needed_for="building the network") from None
    return models


def _build_timm(name: str, classes: int, dropout: float | None, image_size: int | None) -> nn.Module:
    timm = timm_networks()
    if not timm.is_model(name):
        raise _unknown("timm", name)
    options: dict[str, Any] = {"num_classes": classes}
    if dropout is not None:
        options["drop_rate"] = dropout
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise ModelError(f"timm has no weights '{name}'; it has {', '.join(known)}", hint=_HINT) from None
    if image_size is not None and cfg and cfg.fixed_input_size and cfg.input_size[-1] != image_size:
        options["img_size"] = image_size
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        asked = ", ".join(f"{key} = {value}" for key, value in options.items())
        raise ModelError(f"timm:{name} cannot be built with {asked}: {error}", hint=_HINT) from None
    _make_head_linear(module)
    return module


def _build_torchvision(name: str, classes: int, image_size: int | None) -> nn.Module:
    models = torchvision_networks()
    if name not in models.list_models(module=models):
        raise _unknown("torchvision", name)
    options: dict[str, Any] = {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "transform_input": False, "init_weights": True}
    if image_size is not None and name.startswith("vit_"):
        options["image_size"] = image_size
    if image_size is not None and name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    try:
        module: nn.Module = models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise ModelError(
            f"torchvision:{name} cannot be built for images of {image_size} pixels: {error}",
            hint="data.image_size in edgetl.toml",
        ) from None
    return module


def _unknown(family: str, name: str) -> ModelError:
    """The error for a name that a family does not have: similar names, and the other family where it has it."""
    models = torchvision_networks()
    known = {"timm": timm_networks().list_models(), "torchvision": models.list_models(module=models)}
    other = "torchvision" if family == "timm" else "timm"
    near = difflib.get_close_matches(name, known[family], n=5, cutoff=0.4) or known[family][:5]
    hint = f"write {other}:{name}" if name in known[other] else _HINT
    return ModelError(f"{family} has no model '{name}'; it has {', '.join(near)} …", hint=hint)


def _make_head_linear(module: nn.Module) -> None:
    """Put a linear layer in the place of a 1 × 1 convolution on pooled features: the same function of (n, d)."""
    from torch import nn

    classifier: Any = getattr(module, "get_classifier", None)
    conv = classifier() if classifier is not None else None
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1):
        return
    name = next(name for name, part in module.named_modules() if part is conv)
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    pool = getattr(owner, "global_pool", None)
    if not isinstance(getattr(pool, "flatten", None), nn.Identity):
        return
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.load_state_dict(
        {key: value.flatten(1) if value.ndim > 1 else value for key, value in conv.state_dict().items()}
    )
    pool.flatten = nn.Flatten(1)  # type: ignore[union-attr]  # as checked above
    setattr(owner, leaf, linear)


def _set_dropout(module: nn.Module, backbone: str, dropout: float) -> None:
    """Set the dropout in front of the head, or see that timm has set it."""
    from torch import nn

    if not 0.0 <= dropout < 1.0:
        raise ModelError(f"dropout is {dropout}; it is a probability from 0 to below 1")
    if backbone.startswith("timm:"):
        rates = [getattr(part, "drop_rate", None) for part in module.modules()]
        rates += [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
        found = dropout in rates
    else:
        near = head_of(module)[0].partition(".")[0]
        drops = [
            part
            for child, inner in module.named_children()
            if child == near or isinstance(inner, nn.Dropout)
            for part in inner.modules()
            if isinstance(part, nn.Dropout)
        ]
        for part in drops:
            part.p = dropout
        found = bool(drops)
    if not found:
        raise ModelError(
            f"{backbone} has no dropout before its head that could be set to {dropout}",
            hint="leave out dropout in [finetune], or take another backbone",
        )


def _try_one_image(module: nn.Module, backbone: str, classes: int, image_size: int) -> None:
    """Run one black image, and see that the head does what :func:`head_of` says."""
    import torch

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    training = module.training
    hook = head_of(module)[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    try:
        with torch.inference_mode():
            logits = module.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"{backbone} cannot take images of {image_size} × {image_size} pixels: {error}",
            hint="a larger data.image_size, or another model.backbone, in edgetl.toml",
        ) from None
    finally:
        hook.remove()
        module.train(training)
    expected = [((1, embedding_size(module)), (1, classes))]
    found = [(tuple(features.shape), tuple(output.shape)) for features, output in seen]
    if found != expected or not torch.equal(seen[0][1], logits):
        raise ModelError(
            f"{backbone} cannot be used: its last linear layer maps {found or 'nothing'}; it should be {expected}, and"
            " the network's output",
            hint=_HINT,
        )


def _timm_groups(module: nn.Module, head: tuple[str, ...]) -> list[list[str]] | None:
    """timm's own grouping without the head; what it leaves over keeps its place in the order of the modules.

    None: a network that timm does not group.
    """
    matcher: Any = getattr(module, "group_matcher", None)
    if matcher is None:
        return None
    from timm.models import group_parameters

    try:
        patterns = matcher(coarse=True)
    except (AssertionError, NotImplementedError):  # how a few say that they have fine groups alone
        return None
    group_of = dict(group_parameters(module, patterns, reverse=True))
    order = [name for name, _ in module.named_parameters() if name not in head]
    left_over = group_of[head[0]]  # no pattern knows the head: it shares a group with what else none knows
    known = [name for name in order if group_of[name] != left_over]
    last = order.index(known[-1]) if known else -1
    groups: dict[int, list[str]] = {}
    current = group_of[known[0]] if known else 0
    for place, name in enumerate(order):
        if group_of[name] != left_over:
            current = group_of[name]
        elif place > last:
            current = left_over
        groups.setdefault(current, []).append(name)
    return [groups[key] for key in sorted(groups)]


def _units(module: nn.Module, prefix: str, head: nn.Module) -> Iterator[list[str]]:
    """Names of parameters in the order of the modules, cut where a child begins that is a stage by itself."""
    for name, _ in module.named_parameters(recurse=False):
        yield [prefix + name]
    for name, child in module.named_children():
        holds_head = child is not head and any(part is head for part in child.modules())
        if holds_head or (name in _OPENED and child is not head and any(child.children())):
            yield from _units(child, f"{prefix}{name}.", head)
        elif names := [f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()]:
            yield names


def _joined(module: nn.Module, groups: list[list[str]]) -> list[list[str]]:
    """Groups, where those that are no stage by themselves join the one before, or the first real one behind."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}

    def minor(group: list[str]) -> bool:
        """Normalisation, biases, or a bare parameter: a class token, a position embedding."""
        alone = len(group) == 1 and not group[0].endswith(("weight", "bias"))
        return alone or all(len(shapes[name]) <= 1 for name in group)

    joined: list[list[str]] = []
    begun = False
    for group in groups:
        if joined and (minor(group) or not begun):
            joined[-1].extend(group)
        else:
            joined.append(list(group))
        begun = begun or not minor(group)
    return joined


def _names(groups: list[list[str]]) -> list[str]:
    """The first stage is the stem; another is named by the shortest prefix that it shares with no other stage."""
    owners: dict[str, set[int]] = {}
    for number, group in enumerate(groups):
        for name in group:
            for prefix in _prefixes(name):
                owners.setdefault(prefix, set()).add(number)
    names = ["stem"] if groups else []
    for group in groups[1:]:
        own = (prefix for prefix in _prefixes(group[0]) if len(owners[prefix]) == 1)
        names.append(next(prefix for prefix in own if prefix not in ("stem", "head")))
    return names


def _prefixes(name: str) -> list[str]:
    """ "a", "a.b" and "a.b.c" of "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
