"""Two sketches of a tensor, compared: buckets of bfloat16, and bins of equal width whose range doubles.

Both count the activations of EfficientNet-Lite0 on photographs. Printed are the time per value, the bytes per tensor,
and how much more quantization noise a tensor has with the range that each sketch makes the estimator choose, than with
the best range found on the values themselves.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import imagenet
import numpy as np
from numpy.typing import NDArray

from edgetl.data.load import load_samples
from edgetl.data.loader import Samples, batches
from edgetl.quantize import graph, placement, ranges
from edgetl.quantize.activations import with_outputs
from edgetl.quantize.schemes import SCHEMES, UINT8
from edgetl.quantize.sketch import SketchBuilder
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.specs import Estimator


class GrowingBins:
    """Bins of equal width over [-reach, reach]; the reach doubles, and pairs of bins join, when a value lies beyond."""

    def __init__(self, bins: int) -> None:
        self.counts = np.zeros(bins, dtype=np.int64)
        self.reach = 2.0**-20

    def add(self, values: NDArray[np.float32]) -> None:
        largest = float(np.abs(values).max(initial=0.0))
        while largest >= self.reach:
            quarter = len(self.counts) // 4
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[quarter : 3 * quarter] = joined
            self.reach *= 2.0
        half = len(self.counts) // 2
        places = np.floor(values * np.float32(half / self.reach)).astype(np.int64) + half
        self.counts += np.bincount(places, minlength=len(self.counts))

    def best_range(self) -> ranges.QuantParams:
        """The u8 range with the least squared error, values taken for the middle of their bin."""
        half = len(self.counts) // 2
        middles = (np.arange(len(self.counts)) + 0.5 - half) * (self.reach / half)
        filled = self.counts > 0
        return best_of(middles[filled], self.counts[filled].astype(np.float64))


def best_of(values: NDArray[np.float64], weights: NDArray[np.float64]) -> ranges.QuantParams:
    """The least squared error by brute force over both ends of the range."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    shares = np.geomspace(1.0, 0.05, 60)
    found = []
    for share in shares:
        found.append(ranges.params_of(share * low, share * high, UINT8))
    best = min(found, key=lambda params: noise(values, params, weights))
    for share in np.geomspace(0.8, 1.25, 25):
        for ends in ((best.low * share, best.high), (best.low, best.high * share)):
            tried = ranges.params_of(*ends, UINT8)
            if noise(values, tried, weights) < noise(values, best, weights):
                best = tried
    return best


def noise(values: NDArray[np.float64], params: ranges.QuantParams, weights: NDArray[np.float64] | None = None) -> float:
    return float(np.average(np.square(params.fake_quantize(values) - values), weights=weights))


def activations(pictures: int) -> dict[str, NDArray[np.float32]]:
    """All activations that would be quantized, by name, of some photographs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, path = imagenet.export_lite0(folder)
        model = graph.prepare(graph.load(path))
        names = placement.points(model, list(SCHEMES.values()))
        samples = load_samples(imagenet.photographs(folder, pictures))[:pictures]
        images, _ = next(batches(Samples(samples, imagenet.PREPROCESSING), pictures))
        with OnnxRuntimeRunner(with_outputs(model, names, folder / "all.onnx")) as runner:
            outputs = runner.run({"input": images})
        return {name: outputs[name].astype(np.float32) for name in names if name in outputs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4)
    tensors = activations(parser.parse_args().pictures)
    kinds = {"bfloat16": 0, "2048 bins": 2048, "8192 bins": 8192}
    seconds = dict.fromkeys(kinds, 0.0)
    worse: dict[str, list[float]] = {kind: [] for kind in kinds}
    for values in tensors.values():
        flat = values.astype(np.float64).reshape(-1)
        few = flat[:: max(1, flat.size // 100_000)]
        best = noise(few, best_of(few, np.ones(few.size)))
        for kind, bins in kinds.items():  # one after the other on the same tensor: interleaved over all tensors
            began = time.perf_counter()
            if bins:
                growing = GrowingBins(bins)
                for sample in values:
                    growing.add(sample.reshape(-1))
                seconds[kind] += time.perf_counter() - began
                params = growing.best_range()
            else:
                builder = SketchBuilder()
                for sample in values:
                    builder.add(sample, channel_axis=0)
                sketch = builder.sketch()
                seconds[kind] += time.perf_counter() - began
                params = ranges.activation_params(sketch, Estimator(method="mse"), UINT8)
            worse[kind].append(noise(few, params) / max(best, 1e-30))
    values_counted = sum(array.size for array in tensors.values())
    print(f"{len(tensors)} tensors, {values_counted / 1e6:.1f} million values; best: by brute force on the values")
    print(f"{'':10} {'ns/value':>9} {'KB/tensor':>10} {'noise / best, median':>21} {'worst':>8}")
    for kind, bins in kinds.items():
        ratios = np.asarray(worse[kind])
        size = (bins or 1 << 16) * 8 / 1000
        per_value = 1e9 * seconds[kind] / values_counted
        print(f"{kind:10} {per_value:9.2f} {size:10.0f} {np.median(ratios):21.3f} {ratios.max():8.3f}")
    print("bfloat16 also counts the sum, the sum of squares and the extremes of every channel; the bins do not")


if __name__ == "__main__":
    main()
