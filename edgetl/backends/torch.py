"""PyTorch: the reference that every engine is compared with, and the checkpoint that it is kept in.

See :mod:`edgetl.backends.checkpoint` for what stands beside a checkpoint's weights.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import networks
from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.backends.checkpoint import DEPLOY, WEIGHTS, Deploy, read_deploy
from edgetl.errors import ModelError, ProviderError
from edgetl.runtime.runner import EngineNode, Placement, Runner, Tensors, TensorSpec, check_feeds
from edgetl.specs import Precision, Target
from edgetl.store import versions_of

if TYPE_CHECKING:
    import torch
    from torch import nn


def write_checkpoint(folder: Path, module: nn.Module, deploy: Deploy) -> None:
    """Write ``model.safetensors`` (float32, on the CPU) and ``deploy.json``."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().to("cpu").contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, str(folder / WEIGHTS))
    values = {
        "schema": 1,
        "backbone": deploy.backbone,
        "classes": list(deploy.classes),
        "preprocessing": deploy.preprocessing.to_json(),
        "config_digest": deploy.config_digest,
        "options": dict(deploy.options),
    }
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (folder / DEPLOY).write_text(text + "\n", encoding="utf-8")


def read_checkpoint(folder: Path, *, dropout: float | None = None) -> tuple[nn.Module, Deploy]:
    """The network, in eval mode on the CPU, and how to use it; the inverse of :func:`write_checkpoint`.

    Args:
        folder: Of the checkpoint.
        dropout: Before the head, should the network be trained on; None: its own.

    Raises:
        ModelError: Something is missing, or the weights do not fit the network.
    """
    deploy = read_deploy(folder)
    module = networks.build(
        deploy.backbone, len(deploy.classes), deploy.preprocessing, options=deploy.options, dropout=dropout
    )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(str(folder / WEIGHTS)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"the weights in {folder} do not fit {deploy.backbone}: {error}") from None
    return module.eval(), deploy


class TorchBackend:
    """PyTorch in eager mode, float32."""

    name = "torch"
    extra = "train"

    def version(self) -> str | None:
        """Of the torch package."""
        return versions_of("torch")["torch"] or None

    def why_not_here(self, target: Target, precision: Precision) -> str | None:
        """A missing package or GPU."""
        if self.version() is None:
            return "torch is not installed"
        if precision != "fp32":
            return "the reference runs in fp32"
        if target.provider == "cuda" and not cuda_available():
            return "PyTorch sees no CUDA device"
        return None

    def compile(self, request: CompileRequest) -> EngineRecord:
        """Copy a checkpoint: ``request.model`` is its folder."""
        read_deploy(request.model)
        for name in (WEIGHTS, DEPLOY):
            shutil.copyfile(request.model / name, request.folder / name)
        reason = self.why_not_here(request.target, request.precision)
        record = EngineRecord(
            backend=self.name,
            provider=request.target.provider,
            precision=request.precision,
            status="built" if reason else "ready",
            files=(WEIGHTS, DEPLOY),
            versions={"torch": self.version() or ""},
            note=f"not run here: {reason}" if reason else "",
        )
        record.write(request.folder)
        return record

    def open(self, folder: Path, *, threads: int | None = None) -> Runner:
        """Load a checkpoint for inference."""
        module, deploy = read_checkpoint(folder)
        device = EngineRecord.read(folder).provider if (folder / "engine.json").exists() else "cpu"
        return TorchRunner(module, deploy.input, deploy.output, device=device, threads=threads)

    def nodes(self, folder: Path, *, threads: int | None = None) -> tuple[EngineNode, ...]:
        """None: eager PyTorch runs a module, and has no graph of its own."""
        return ()


class TorchRunner:
    """A module as a :class:`edgetl.runtime.runner.Runner` with one input and one output.

    Args:
        module: Maps the one to the other. It is moved to the device.
        fed: The input, with a dynamic batch in front.
        output: Likewise, float32.
        device: cpu or cuda.
        threads: PyTorch's intra-op threads while this runner runs; None leaves them as they are.

    Raises:
        ProviderError: CUDA was asked for and is not there.
    """

    def __init__(
        self,
        module: nn.Module,
        fed: TensorSpec,
        output: TensorSpec,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        if device == "cuda" and not cuda_available():
            raise ProviderError("PyTorch sees no CUDA device", hint="edgetl doctor")
        self._module: nn.Module | None = module.eval().to(device)
        self._device = device
        self._threads = threads
        self._inputs, self._outputs = (fed,), (output,)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """One."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """One."""
        return self._outputs

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """One synchronous inference in float32 (TF32 is not used)."""
        import torch

        check_feeds(feeds, self._inputs)
        assert self._module is not None, "the runner is closed"
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            array = torch.from_numpy(np.ascontiguousarray(feeds[self._inputs[0].name])).to(self._device)
            found: torch.Tensor = self._module(array)
        return {self._outputs[0].name: found.float().cpu().numpy()}

    def placement(self) -> Placement:
        """Everything runs where the module is."""
        assert self._module is not None, "the runner is closed"
        kinds: dict[str, int] = {}
        for module in self._module.modules():
            if not list(module.children()):
                kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
        return Placement(provider=self._device, nodes={self._device: sum(kinds.values())}, kinds=kinds)

    def profile(self, feeds: Tensors, *, runs: int) -> tuple[EngineNode, ...]:
        """The whole network as one node: eager PyTorch has no graph of its own.

        Its multiply-adds are PyTorch's own count; activations are not counted. See
        :meth:`edgetl.runtime.runner.Profiled.profile`.

        Raises:
            ModelError: The network has layers that PyTorch does not count.
        """
        assert self._module is not None, "the runner is closed"
        import torch

        recurrent = {type(each).__name__ for each in self._module.modules() if isinstance(each, torch.nn.RNNBase)}
        if recurrent:
            raise ModelError(f"PyTorch does not count the multiply-adds of {', '.join(sorted(recurrent))}")
        with _counter() as counter:
            self.run(feeds)
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            self.run(feeds)
            times.append(1e3 * (time.perf_counter() - began))
        node = EngineNode(
            name=type(self._module).__name__,
            kind="network",
            precision="fp32",
            multiply_adds=counter.get_total_flops() // 2,
            provider=self._device,
            weight_bytes=sum(each.nbytes for each in self._module.parameters()),
            time_ms=statistics.median(times),
        )
        return (node,)

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._module = None


def _counter() -> Any:
    """PyTorch's counter of operations, which leaves out a processor's own kernel of attention."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    kernel = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return FlopCounterMode(display=False, custom_mapping={kernel: attention} if kernel else {})


def cuda_available() -> bool:
    """Whether PyTorch is installed and sees an NVIDIA GPU."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
