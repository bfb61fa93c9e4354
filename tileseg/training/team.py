"""Processes that train one network: who sees which tiles, and what is summed over all.

Who starts them has initialised torch.distributed; a team of one needs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

__all__ = ["ALONE", "Team"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """One of `size` processes that take each step together, and so keep one's weights.

    Every method but `share` is called by all of them, in one order.
    """

    rank: int = 0
    """Which one this is; the first writes what is written."""
    size: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `size`-th of the items: those that are this process's."""
        return items[self.rank :: self.size]

    def gather(self, mine: list[T]) -> list[T]:
        """Return what all processes have, in the order in which `share` dealt it."""
        if self.size == 1:
            return mine
        every: list[list[T]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(every, mine)
        count = sum(map(len, every))
        return [every[n % self.size][n // self.size] for n in range(count)]

    def first(self, make: Callable[[], T]) -> T:
        """Return to all what the first process makes."""
        if self.size == 1:
            return make()
        made = [make() if self.rank == 0 else None]
        distributed.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]  # no None any more

    def total(self, mine: Tensor) -> Tensor:
        """Return the sum over all processes, with the gradient of this one's part."""
        if self.size == 1:
            return mine
        every = mine.detach().clone()
        distributed.all_reduce(every)
        return every + (mine - mine.detach())

    def sum_gradients(self, network: nn.Module) -> None:
        """Add up each parameter's gradients.

        As one vector, the same at every step: in whatever order its parts are added,
        that is the order after a checkpoint too.
        """
        if self.size == 1:
            return
        found = [item.grad for item in network.parameters() if item.grad is not None]
        vector = torch.cat([gradient.reshape(-1) for gradient in found])
        distributed.all_reduce(vector)
        parts = vector.split([gradient.numel() for gradient in found])
        for gradient, part in zip(found, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


ALONE = Team()
