"""Confidence that can be believed: one temperature for all logits, one bias for each.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017; with biases Alexandari
et al., Maximum Likelihood with Bias-Corrected Calibration, ICML 2020.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tileseg.card import CONFIDENCE_STEPS
from tileseg.scores import Calibration

__all__ = ["NONE", "Scaling", "calibration", "cool", "fit_scaling", "head"]

_STEPS = 100  # of the search, at most
_DIGITS = 4  # that a scaling is known to, at best

Logits = NDArray[np.float32]
"""(n, classes), of some pixels."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What is done to logits: divided by a temperature, then biased."""

    temperature: float
    biases: tuple[float, ...] = ()
    """Of each class; empty for none."""


NONE = Scaling(1.0)
"""Logits as they are."""


def fit_scaling(
    logits: Logits, labels: NDArray[np.uint8], *, with_biases: bool
) -> Scaling:
    """Return the scaling that gives the labels the greatest likelihood.

    With biases, classes come out as common as they are among the labels, whatever a
    network was trained on; a class without labels has none. The mean negative
    log-likelihood is convex in 1/T and in the biases. No scaling of no pixels.
    """
    if not len(labels):
        return NONE
    values, truth = torch.from_numpy(logits).double(), torch.from_numpy(labels).long()
    is_there = torch.bincount(truth, minlength=values.shape[1]) > 0
    cold = torch.zeros((), dtype=torch.float64, requires_grad=True)  # log 1/T
    free = torch.zeros(len(is_there), dtype=torch.float64, requires_grad=with_biases)
    optimizer = torch.optim.LBFGS(
        [cold, free] if with_biases else [cold],
        max_iter=_STEPS,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        scaled = values * cold.exp() + free * is_there
        found = nn.functional.cross_entropy(scaled, truth)
        found.backward()
        return found

    optimizer.step(loss)
    biases = torch.where(is_there, free - free[is_there].mean(), 0).detach()
    return Scaling(
        round(float(torch.exp(-cold.detach())), _DIGITS),
        tuple(round(bias, _DIGITS) for bias in biases.tolist()) if with_biases else (),
    )


def calibration(logits: Logits, labels: NDArray[np.uint8]) -> Calibration:
    """Return how often softmax(logits) is right where it is so sure."""
    values = logits.astype(np.float64)
    chances = np.exp(values - values.max(axis=1, keepdims=True))
    sure = (chances.max(axis=1) / chances.sum(axis=1) * CONFIDENCE_STEPS).round()
    said, bins = sure.astype(np.int64), CONFIDENCE_STEPS + 1
    is_right = logits.argmax(axis=1) == labels
    right = np.bincount(said[is_right], minlength=bins)
    return Calibration(right, np.bincount(said, minlength=bins))


def head(network: nn.Module) -> nn.Conv2d:
    """Return the last convolution, whose answers are the logits."""
    *_, last = (item for item in network.modules() if isinstance(item, nn.Conv2d))
    return last


def cool(network: nn.Module, scaling: Scaling) -> None:
    """Scale a network's logits, once for all: in the weights of its last layer."""
    last = head(network)
    assert last.bias is not None, "our own U-Net's has one"
    last.weight.data /= scaling.temperature
    last.bias.data /= scaling.temperature
    if scaling.biases:
        last.bias.data += torch.tensor(scaling.biases).to(last.bias)
