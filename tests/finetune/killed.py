"""A short training in a process of its own, for the tests that kill it or start two of it: OUTPUT STATE [slowly]."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import torch

from edgetl.backends.backbones import build, stages
from edgetl.config import Finetune, Phase
from edgetl.finetune.loop import train_phase
from edgetl.finetune.phases import Data, Place

spec = importlib.util.spec_from_file_location("finetune_conftest", Path(__file__).with_name("conftest.py"))
assert spec and spec.loader
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

output, state = map(Path, sys.argv[1:3])
torch.set_num_threads(1)
train, val = shared.coloured(96, 0), shared.coloured(30, 1)
torch.manual_seed(0)
module = build("timm:test_efficientnet", 3)
result = train_phase(
    module,
    Data(train=train, labels=train.labels.tolist(), val=val, val_labels=val.labels.tolist(), classes=3),
    Phase(train="all", epochs=4, lr=1e-3, patience=9),
    Finetune(batch_size=16, save_every_s=0.01),
    stages(module),
    seed=3,
    place=Place(state=state),
    progress=(lambda *_: time.sleep(0.2)) if len(sys.argv) > 3 else None,
)
if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
    torch.save(module.state_dict(), output)
