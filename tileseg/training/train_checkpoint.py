"""Where a training stands, so that a killed one goes on to the same end."""

from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from tileseg.errors import InputError, OtherPlanError, RefusedError
from tileseg.network.checkpoint import load
from tileseg.stores.storage import write_whole
from tileseg.training.team import Team

__all__ = ["Progress", "forget_checkpoint", "read_checkpoint", "write_checkpoint"]

_NAME = "checkpoint.pt"
_KEYS = {"key", "progress", "network", "optimizer"}


@dataclass(slots=True)
class Progress:
    """How far a training came, beside its network and optimizer."""

    step: int = 0
    """Batches seen."""
    loss_sum: float = 0.0
    """Of the batches of this epoch."""
    seconds: float = 0.0
    """That steps took, all attempts together; changes no weight."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """What each epoch came to: `loss`, `macro_f1`, `accuracy`, `validation_loss`."""
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights of the best epoch, on the CPU."""


def write_checkpoint(
    work: Path,
    key: str,
    progress: Progress,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write where a training stands, whole or not at all.

    Args:
        work: the folder.
        key: what is trained, and how.
        progress: how far.
        network: its weights as they are now.
        optimizer: its state; the schedule and what is drawn follow from the step.

    Raises:
        OutputError: it cannot be written.
    """
    state = {
        "key": key,
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    buffer = BytesIO()
    torch.save(state, buffer)
    write_whole(work / _NAME, buffer.getvalue())


def read_checkpoint(
    work: Path,
    key: str,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    team: Team,
) -> Progress:
    """Put network and optimizer where a training stands; at the start if it is new.

    Only the first process looks at the disk, so that all stand at the same step.

    Raises:
        InputError: the checkpoint is damaged.
        OtherPlanError: it is another training's.
    """
    path = work / _NAME
    state = team.first(partial(_read, path))
    if state is None:
        return Progress()
    if state["key"] != key:
        msg = (
            f"{path}: is of another training (other data, options or version); finish "
            "that one, or give it up with --overwrite"
        )
        raise OtherPlanError(msg)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def forget_checkpoint(work: Path, *, unless: str) -> None:
    """Remove a checkpoint that is damaged, or of another training than the key's."""
    path = work / _NAME
    try:
        state = _read(path)
    except InputError:
        state = {"key": None}
    if state is not None and state["key"] != unless:
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a checkpoint holds; None if there is none."""
    try:
        state = load(path, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, RefusedError) as err:
        msg = f"{path}: cannot be read as a checkpoint: {err}; remove it"
        raise InputError(msg) from err
    if not isinstance(state, dict) or _KEYS - state.keys():
        msg = f"{path}: is no whole checkpoint of a training; remove it"
        raise InputError(msg)
    return state
