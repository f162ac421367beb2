"""A phase while it runs: steps, epochs, what is kept of them, and how it goes on after it was killed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.backends.backbones import Stage
from edgetl.config import Finetune, Phase
from edgetl.finetune import averaging, compiling, divergence, losses, schedules, selectors, state
from edgetl.finetune.feeding import fed
from edgetl.finetune.groups import decaying, optimizer_of, parameter_groups, recorded
from edgetl.finetune.parts import at_once, cut, enough_for_batchnorm
from edgetl.finetune.phases import Data, Epoch, Place, Progress, Score
from edgetl.finetune.samplers import Batches
from edgetl.metrics import metric

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn


class Trainer:
    """One phase on a network.

    Args:
        module: Trained in place; on the accelerator's device from here on.
        data: Training and validation samples.
        phase: What is trained, and how long.
        finetune: How.
        stages: Of the network.
        seed: Of everything random.
        place: Device, workers, state.
        accelerator: Of accelerate: device, precision, processes.

    Raises:
        ModelError: The phase selects nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        phase: Phase,
        finetune: Finetune,
        stages: Sequence[Stage],
        *,
        seed: int,
        place: Place,
        accelerator: Accelerator,
    ) -> None:
        import torch

        self.metric: Score = metric("top1")
        self.progress: Progress | None = None
        self.on_epoch: Callable[[Epoch], None] | None = None
        self.chosen = selectors.selected(module, phase, stages)
        self.history: list[Epoch] = []
        self.best, self.best_epoch, self.averaged = float("-inf"), 0, 0
        self.compiled: dict[str, float] = {}
        self._data, self._phase, self._finetune, self._place = data, phase, finetune, place
        self._seed, self._accelerator, self._module = seed, accelerator, module
        module.to(accelerator.device).to(memory_format=torch.channels_last)
        selectors.prepare(module, self.chosen, batchnorm=phase.batchnorm)
        groups = parameter_groups(module, self.chosen, phase, finetune, stages)
        self.groups = recorded(groups)
        self._optimizer = optimizer_of(finetune, groups)
        self._loss = data.loss or losses.classification(finetune, self._class_weights())
        self._penalised = decaying(module, self.chosen) if finetune.l1 else []
        self._batches = Batches(
            labels=np.asarray(data.labels, dtype=np.int64),
            batch_size=finetune.batch_size,
            epochs=phase.epochs,
            seed=seed,
            balanced=finetune.balance == "sampler",
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        self._at_once = at_once(finetune, accelerator.num_processes)
        self._learns = selectors.learns_statistics(module)
        self._step = 0
        self._best_weights: averaging.State = {}
        self._average = averaging.copied(module.state_dict()) if finetune.ema else None
        self._last: list[averaging.State] = []
        self._sums = {"loss": 0.0, "samples": 0.0, "seconds": 0.0, "all_samples": 0.0, "all_seconds": 0.0}

    @property
    def images_per_s(self) -> float:
        """Of training steps, all processes together."""
        return round(self._sums["all_samples"] / max(self._sums["all_seconds"], 1e-9), 1)

    @property
    def _when(self) -> str:
        return f"in step {self._step} of the phase '{self._phase.train}'"

    def run(self) -> None:
        """All epochs, or those that are left of them; then the best weights are the network's.

        Raises:
            TrainingError: The loss or weights became NaN or infinite.
            DataError: Samples hold NaN.
            ModelError: A BatchNorm is to learn from one value per channel.
        """
        if not self._resume():
            self.best = self._validate(self._module.state_dict())
            self._best_weights = averaging.copied(self._module.state_dict())
        model, optimizer = self._accelerator.prepare(self._module, self._optimizer)
        models = compiling.candidates(model, self._finetune)
        saved = time.monotonic()
        for inputs, targets in self._left():
            if len(models) > 1 and not self.compiled:
                self.compiled = self._measured(models, inputs, targets)
            self._one_step(models[compiling.faster(self.compiled)], optimizer, inputs, targets)
            if self._step % self._batches.per_epoch == 0:
                self._end_epoch()
                if self._over():
                    break
            if time.monotonic() - saved >= self._finetune.save_every_s:
                self._save()
                saved = time.monotonic()
        self._keep_best()

    # --- steps ------------------------------------------------------------------------------------------------------

    def _one_step(self, model: nn.Module, optimizer: Any, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Forward, backward and one update on this process's part of a batch."""
        import torch

        began = time.perf_counter()
        seed = _mixed(self._seed, self._step, self._accelerator.process_index)
        torch.manual_seed(seed)  # dropout is a function of the step, too
        given = inputs
        if self._data.mix is not None:
            inputs, targets = self._data.mix(inputs, targets, seed)
        rate = schedules.factor(self._phase, self._step, self._batches.steps, self._batches.per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        loss = torch.zeros((), device=self._accelerator.device)
        parts = cut(inputs, targets, self._at_once, learns=self._learns)
        for number, (piece, wanted) in enumerate(parts, 1):
            last = number == len(parts)
            with nullcontext() if last else self._accelerator.no_sync(model):
                loss += self._backward(model, piece, wanted, penalise=last)
        if self._finetune.clip_norm:
            self._accelerator.clip_grad_norm_(self._module.parameters(), self._finetune.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self._average is not None and self._finetune.ema:
            averaging.move(self._average, self._module.state_dict(), self._finetune.ema, self._step)
        self._step += 1
        if not np.isfinite(float(loss)):
            keys = next(iter(replace(self._batches, first_step=self._step - 1)))
            raise divergence.of_loss(float(loss), self._when, given, keys)
        self._count(float(loss), len(inputs), time.perf_counter() - began)

    def _backward(
        self, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, *, penalise: bool
    ) -> torch.Tensor:
        """Add the gradients of a part of a step's samples; the sum of their losses."""
        with self._accelerator.autocast(), enough_for_batchnorm(self._when):
            logits = model(inputs)
        summed = self._loss(logits, targets).sum()
        # Losses are added up over the step's samples; gradients are averaged over processes.
        loss = summed * (self._accelerator.num_processes / self._batches.size(self._step))
        if penalise and self._penalised:
            loss = loss + self._finetune.l1 * sum(weights.abs().sum() for weights in self._penalised)
        self._accelerator.backward(loss)
        return summed.detach()

    def _count(self, loss: float, samples: int, seconds: float) -> None:
        for name, value in (("loss", loss), ("samples", samples), ("seconds", seconds)):
            self._sums[name] += value
        self._sums["all_samples"] += samples * self._accelerator.num_processes
        self._sums["all_seconds"] += seconds
        if self.progress:
            epoch, done = divmod(self._step - 1, self._batches.per_epoch)
            what = f"{self._phase.train}: epoch {epoch + 1} of {self._phase.epochs}"
            self.progress(what, done + 1, self._batches.per_epoch)

    def _left(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches that are left, on the device; workers read ahead across epochs."""
        if self._over():
            return
        device, left = self._accelerator.device, replace(self._batches, first_step=self._step)
        for inputs, targets in fed(self._data.train, device, workers=self._place.workers, batch_sampler=left):
            yield inputs, targets.to(device, non_blocking=True)

    def _measured(
        self, models: Mapping[str, nn.Module], inputs: torch.Tensor, targets: torch.Tensor
    ) -> dict[str, float]:
        """Seconds for 20 steps of the network as it is and compiled, which change nothing.

        Of several processes the first one's clock counts for all: each would else decide for itself.
        """
        weights = averaging.copied(self._module.state_dict())

        def step(model: nn.Module) -> None:
            self._backward(model, inputs, targets, penalise=False)
            self._module.zero_grad(set_to_none=True)

        seconds = [compiling.measured(models, step, self._accelerator.device)]
        self._module.load_state_dict(weights)  # statistics moved, where BatchNorm learns them
        if self._accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(seconds)
        return seconds[0]

    # --- epochs -----------------------------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        """Validate, and remember the weights where they are the best so far."""
        divergence.check_weights(self._module, self._when)
        began = time.perf_counter()
        weights = self._module.state_dict() if self._average is None else self._average
        value = self._validate(weights)
        epoch = self._step // self._batches.per_epoch
        seconds = self._sums["seconds"] + time.perf_counter() - began
        loss = self._everywhere(self._sums["loss"]) / self._everywhere(self._sums["samples"])
        self.history.append(Epoch(epoch=epoch, train_loss=loss, val_score=value, seconds=round(seconds, 3)))
        if self.on_epoch:
            self.on_epoch(self.history[-1])
        self._sums |= {"loss": 0.0, "samples": 0.0, "seconds": 0.0}
        # The weights from before the phase are there to guard against harm, and a tie shows none: the trained ones are
        # kept. Otherwise a random head or network would win wherever val cannot tell the two apart.
        beaten = value > self.best or (value == self.best and not self.best_epoch)
        if beaten or self._phase.keep == "last":
            self.best, self.best_epoch, self._best_weights = value, epoch, averaging.copied(weights)
        if self._finetune.average_last > 1:
            self._last = [*self._last, averaging.copied(weights)][-self._finetune.average_last :]

    def _over(self) -> bool:
        """Whether the phase has ended: after all epochs, without gain for a while, or good enough."""
        epochs = len(self.history)
        good = self._phase.until is not None and self.best >= self._phase.until
        return epochs >= self._phase.epochs or epochs - self.best_epoch >= self._phase.patience or good

    def _keep_best(self) -> None:
        """Load the best weights, or the mean of the last epochs' where that validates no worse."""
        if len(self._last) > 1:
            together = averaging.mean(self._last)
            value = self._validate(together)
            if value >= self.best:
                self.best, self._best_weights, self.averaged = value, together, len(self._last)
        self._module.load_state_dict(self._best_weights)

    def _validate(self, weights: averaging.State) -> float:
        """The metric of the network with some weights on all validation samples, each process having its share."""
        import torch
        from torch.func import functional_call

        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        keys = [(0, index) for index in range(rank, len(self._data.val_labels), world)]
        device, workers = self._accelerator.device, self._place.workers
        self._module.eval()
        found, labels = [], []
        with torch.inference_mode(), self._accelerator.autocast():
            # No more at a time than in training: where accumulate is needed, more would not fit here either.
            for inputs, targets in fed(self._data.val, device, workers=workers, sampler=keys, batch_size=self._at_once):
                found.append(functional_call(self._module, weights, (inputs,)).float().cpu().numpy())
                labels.append(targets.numpy())
        selectors.prepare(self._module, self.chosen, batchnorm=self._phase.batchnorm)
        pieces = [(np.concatenate(found), np.concatenate(labels))] if found else []
        if world > 1:
            from accelerate.utils import gather_object

            pieces = gather_object(pieces)
        return self.metric(np.concatenate([part[0] for part in pieces]), np.concatenate([part[1] for part in pieces]))

    def _everywhere(self, value: float) -> float:
        """The sum over processes."""
        import torch

        if self._accelerator.num_processes == 1:
            return value
        there = torch.tensor([value], dtype=torch.float64 if self._place.device == "cpu" else torch.float32)
        return float(self._accelerator.reduce(there.to(self._accelerator.device), "sum").item())

    def _class_weights(self) -> torch.Tensor | None:
        import torch

        if self._finetune.balance != "loss":
            return None
        weights = losses.class_weights(self._data.labels, self._data.classes)
        return torch.from_numpy(weights).to(self._accelerator.device)

    # --- resume -----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Keep the state; one process for all, because they have the same."""
        if self._place.state is None or not self._accelerator.is_main_process:
            return
        divergence.check_weights(self._module, self._when)
        scaler = self._accelerator.scaler
        state.save(
            self._place.state,
            {
                "step": self._step,
                "history": [asdict(epoch) for epoch in self.history],
                "best": self.best,
                "best_epoch": self.best_epoch,
                "best_weights": self._best_weights,
                "weights": self._module.state_dict(),
                "average": self._average,
                "last": self._last,
                "optimizer": self._optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "sums": self._sums,
                "compiled": self.compiled,
            },
        )

    def _resume(self) -> bool:
        """Go on from the state that was kept; whether there was one."""
        found = None if self._place.state is None else state.load(self._place.state)
        if found is None:
            return False
        self._step, self.best, self.best_epoch = found["step"], found["best"], found["best_epoch"]
        self.history = [Epoch(**epoch) for epoch in found["history"]]
        self._module.load_state_dict(found["weights"])
        self._best_weights = self._here(found["best_weights"])
        self._average = None if found["average"] is None else self._here(found["average"])
        self._last = [self._here(weights) for weights in found["last"]]
        self._optimizer.load_state_dict(found["optimizer"])
        if found["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(found["scaler"])
        self._sums, self.compiled = found["sums"], found["compiled"]
        return True

    def _here(self, weights: averaging.State) -> averaging.State:
        return {name: tensor.to(self._accelerator.device) for name, tensor in weights.items()}


def _mixed(*numbers: int) -> int:
    """A seed of 63 bits out of several numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
