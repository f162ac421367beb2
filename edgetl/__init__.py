"""edgetl: fine-tune, export, quantize, prove and ship models to edge devices.

What stands in ``__all__`` is the public API; each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetl.catalog import recipe, target
    from edgetl.config import load as load_config
    from edgetl.errors import EdgetlError
    from edgetl.pipeline.build import build
    from edgetl.pipeline.own_model import quantize_model
    from edgetl.runtime.bundle import open_bundle
    from edgetl.store import Store

__version__ = "0.1.0"

__all__ = [
    "EdgetlError",
    "Store",
    "__version__",
    "build",
    "load_config",
    "open_bundle",
    "quantize_model",
    "recipe",
    "target",
]

_HOMES = {
    "EdgetlError": ("errors", "EdgetlError"),
    "Store": ("store", "Store"),
    "build": ("pipeline.build", "build"),
    "load_config": ("config", "load"),
    "open_bundle": ("runtime.bundle", "open_bundle"),
    "quantize_model": ("pipeline.own_model", "quantize_model"),
    "recipe": ("catalog", "recipe"),
    "target": ("catalog", "target"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgetl' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"edgetl.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
