"""The loop: batches, epochs, checkpoints. Knows no files but the checkpoint.

What a step does follows from the weights before it and its number: nothing else is
carried on, so a training that goes on from a checkpoint ends as if it had not stopped.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import count
from time import monotonic

import numpy as np
import torch
from torch import Tensor, nn

from tileseg.base.overlap import Ahead
from tileseg.base.stopping import Stop
from tileseg.errors import ModelError
from tileseg.network.device import device_errors, resolve_device
from tileseg.training.judge import Judged, judged, look
from tileseg.training.losses import cross_entropy_and_dice
from tileseg.training.split import VALIDATION
from tileseg.training.survey import Survey
from tileseg.training.team import ALONE, Team
from tileseg.training.train_checkpoint import read_checkpoint, write_checkpoint
from tileseg.training.train_settings import Training
from tileseg.training.train_tiles import Batch

__all__ = ["Listener", "Loop", "rate_at"]

logger = logging.getLogger(__name__)

_AHEAD = 3  # batches that are drawn meanwhile
_SAVE_SECONDS = 60.0  # between checkpoints, at most
_PIXELS = 1 << 18  # judged, whose logits are kept for the calibration, about

Listener = Callable[[int, int], None]
"""Is told the tiles seen, and all tiles."""


class Loop:
    """A network that is being trained, by one process or as one of a team."""

    def __init__(
        self,
        training: Training,
        found: Survey,
        network: nn.Module,
        stop: Stop,
        team: Team = ALONE,
    ) -> None:
        """Put the network on its device, and go on where a killed training stands.

        Args:
            training: what is asked for.
            found: what there is to learn from.
            network: on the CPU, with the weights to begin with.
            stop: the wish to end.
            team: who takes part, all with the same arguments but the stop.

        Raises:
            ModelError: the device cannot hold it.
            OtherPlanError: the work is another training's.
        """
        self._training, self._found, self._stop = training, found, stop
        self._began, self._first = monotonic(), 0  # of this attempt: time, and step
        self.team = team
        self._device = resolve_device(training.device)
        with device_errors(self._device.name):
            network = network.to(self._device.name)
            self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=training.rate,
            weight_decay=training.weight_decay,
        )
        self.progress = read_checkpoint(
            training.work, found.key, self.network, self._optimizer, team
        )

    @property
    def best_epoch(self) -> int:
        """The number, from 1, of the epoch that is kept: without validation the last.

        0 of none.
        """
        epochs = self.progress.epochs
        scores = [epoch.get("macro_f1", n) for n, epoch in enumerate(epochs)]
        return int(np.argmax(np.nan_to_num(scores))) + 1 if scores else 0

    def run(self, told: Listener) -> None:
        """Train until all epochs are done, or the last ones brought nothing.

        Raises:
            StopSignal: somebody asked to stop; where it stands is written.
        """
        self._began, self._first = monotonic(), self.progress.step
        with device_errors(self._device.name), self._stop.patient():
            while not (self._is_over() or self._stop.error):
                self._epoch(told)
        self.network.load_state_dict(self.progress.best)

    def judge(self, part: int) -> Judged:
        """Say what the network makes of the labels of a part's blocks."""
        training, samples, team = self._training, self._found.samples, self.team
        names = samples.ground.classes
        self.network.eval()
        batches = samples.judged(part, training.batch_size, training.judged, team)
        with device_errors(self._device.name), _ahead(batches) as ready:
            numbers = count(team.rank, team.size)
            mine = look(
                self._forward,
                zip(numbers, self._until_stopped(ready), strict=False),
                len(names),
                most=max(1, _PIXELS // training.judged),
                seed=training.seed,
            )
            return judged(names, team.gather(mine))

    def _until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches; judging can be begun again, so it ends at once."""
        for batch in batches:
            self._stop.obey(0)
            yield batch

    def _is_over(self) -> bool:
        epochs, training = len(self.progress.epochs), self._training
        is_stale = epochs - self.best_epoch >= training.patience
        return epochs >= training.epochs or (is_stale and training.validation > 0)

    def _epoch(self, told: Listener) -> None:
        """Train from where it stands to the epoch's end, and judge; or stop."""
        training, progress = self._training, self.progress
        end = (len(progress.epochs) + 1) * training.steps
        size, total = training.batch_size, training.epochs * training.steps
        steps = range(progress.step, end)
        batches = self._found.samples.batches(steps, size, self.team)
        saved = monotonic()
        self.network.train()
        with _ahead(batches) as ready:
            for batch in ready:
                self._step(batch, rate_at(progress.step, total, training.warm_up))
                told(progress.step * size, total * size)
                if self._stop.error:
                    break
                if monotonic() - saved > _SAVE_SECONDS:
                    self._save()
                    saved = monotonic()
        self._save()
        if progress.step == end and not self._stop.error:
            self._close_epoch()
            self._save()

    def _step(self, batch: Batch, rate: float) -> None:
        """Learn from a batch, at a share of the peak learning rate."""
        training, progress, began = self._training, self.progress, monotonic()
        for group in self._optimizer.param_groups:
            group["lr"] = training.rate * rate
        logits, labels = self._forward(batch)
        loss = cross_entropy_and_dice(
            logits,
            labels,
            smoothing=training.smoothing,
            dice=training.dice,
            total=self.team.total,
        )
        self._optimizer.zero_grad()
        loss.backward()
        self.team.sum_gradients(self.network)
        nn.utils.clip_grad_norm_(self.network.parameters(), max_norm=1.0)
        self._optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            msg = (
                f"step {progress.step + 1}: the loss is {value}; try a lower "
                f"--learning-rate than {training.rate:g}"
            )
            raise ModelError(msg)
        progress.loss_sum += value
        progress.step += 1
        progress.seconds += monotonic() - began

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return fp32 logits and labels of a batch, on the device.

        On a GPU in bf16 where it has that; what is summed stays in fp32.
        """
        device = self._device
        pixels, labels = (torch.from_numpy(part).to(device.name) for part in batch)
        is_half = device.name != "cpu" and device.precision == "bf16"
        half = torch.autocast("cuda", torch.bfloat16) if is_half else nullcontext()
        with half:
            logits = self.network(pixels.to(memory_format=torch.channels_last))
        return logits.float(), labels

    def _close_epoch(self) -> None:
        """Judge the network, and keep it if it is the best so far."""
        training, progress = self._training, self.progress
        epoch = {"loss": progress.loss_sum / training.steps}
        if training.validation:
            found = self.judge(VALIDATION)
            epoch |= {
                "validation_loss": found.loss,
                "macro_f1": found.confusion.macro_f1,
                "accuracy": found.confusion.accuracy,
            }
        progress.epochs.append(epoch)
        progress.loss_sum = 0.0
        if self.best_epoch == len(progress.epochs):
            state = self.network.state_dict()
            progress.best = {key: value.cpu().clone() for key, value in state.items()}
        logger.info("%s", self._line(epoch))

    def _line(self, epoch: dict[str, float]) -> str:
        """Say how an epoch went, and how long the others may take."""
        epochs, training = self.progress.epochs, self._training
        pace = self._pace()
        left = (training.epochs - len(epochs)) * training.steps * pace
        text = f"epoch {len(epochs)} of {training.epochs}: loss {epoch['loss']:.3f}"
        if "macro_f1" in epoch:
            best = epochs[self.best_epoch - 1]["macro_f1"]
            text += f", macro-F1 {epoch['macro_f1']:.3f}"
            text += f" (best {best:.3f}, epoch {self.best_epoch})"
        return f"{text}; {1000 * pace:.0f} ms a step, about {left / 60:.0f} min left"

    def _pace(self) -> float:
        """Return seconds a step, with all around it: reading, judging, waiting."""
        steps = self.progress.step - self._first
        if not steps:  # an attempt that had only to judge
            return self.progress.seconds / self.progress.step
        return (monotonic() - self._began) / steps

    def _save(self) -> None:
        if self.team.rank == 0:
            write_checkpoint(
                self._training.work,
                self._found.key,
                self.progress,
                self.network,
                self._optimizer,
            )


def rate_at(step: int, total: int, warm_up: float) -> float:
    """Return the share of the peak learning rate that a step, from 0, has.

    A straight line up to 1, then half a cosine down to nearly nothing.

    Args:
        step: which.
        total: how many there are.
        warm_up: share of them in which it rises.
    """
    rise = round(warm_up * total)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2


@contextmanager
def _ahead(batches: Generator[Batch]) -> Iterator[Ahead[Batch]]:
    """Let a thread draw some batches meanwhile."""
    with closing(Ahead(batches, _AHEAD)) as ready:
        yield ready
