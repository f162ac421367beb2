"""edgetl.toml as frozen, validated objects."""

from edgetl.config.finetune import Augment, Finetune, Phase
from edgetl.config.reading import json_schema, load, preset_text, presets, signing_key
from edgetl.config.sections import (
    Batch,
    Bench,
    Budget,
    Bundle,
    Config,
    Data,
    Export,
    Model,
    Parity,
    Project,
    Quantize,
    TargetEntry,
)

__all__ = [
    "Augment",
    "Batch",
    "Bench",
    "Budget",
    "Bundle",
    "Config",
    "Data",
    "Export",
    "Finetune",
    "Model",
    "Parity",
    "Phase",
    "Project",
    "Quantize",
    "TargetEntry",
    "json_schema",
    "load",
    "preset_text",
    "presets",
    "signing_key",
]
