"""A process that measures torch.compile among others, and finds what its rank finds: OUTPUT."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch

from edgetl.backends.backbones import build, stages
from edgetl.config import Finetune, Phase
from edgetl.finetune import compiling
from edgetl.finetune.loop import train_phase
from edgetl.finetune.phases import Data

spec = importlib.util.spec_from_file_location("finetune_conftest", Path(__file__).with_name("conftest.py"))
assert spec and spec.loader
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

torch.set_num_threads(1)
first = os.environ["RANK"] == "0"
compiling.measured = lambda models, step, device: {"eager": 1.0 + first, "compiled": 2.0 - first}
torch.compile = lambda network: network  # type: ignore[assignment]  # who decides is what is looked at, not compiling
train, val = shared.coloured(32, 0), shared.coloured(8, 1)
module = build("timm:test_efficientnet", 3)
result = train_phase(
    module,
    Data(train=train, labels=train.labels.tolist(), val=val, val_labels=val.labels.tolist(), classes=3),
    Phase(train="all", epochs=1),
    Finetune(batch_size=16, compile="measure"),
    stages(module),
    seed=3,
)
Path(sys.argv[1]).write_text(json.dumps(result.compiled), encoding="utf-8")
