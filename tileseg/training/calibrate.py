"""Confidence that can be believed: one temperature for all logits.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tileseg.cards.card import CONFIDENCE_STEPS
from tileseg.evaluation.scores import Calibration

__all__ = ["calibration", "cool", "fit_temperature", "head"]

_COLDEST, _HOTTEST = 1 / 20, 20.0
_STEPS = 60  # each narrows the search by 0.62
_GOLDEN = (5**0.5 - 1) / 2

Logits = NDArray[np.float32]
"""(n, classes), of some pixels."""


def fit_temperature(logits: Logits, labels: NDArray[np.uint8]) -> float:
    """Return T so that softmax(logits / T) gives the labels the greatest likelihood.

    The mean negative log-likelihood is convex in 1/T, so a golden-section search finds
    it; 1 of no pixels.
    """
    if not len(labels):
        return 1.0
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    true = values[np.arange(len(labels)), labels]

    def loss(inverse: float) -> float:
        sums = np.log(np.exp(values * inverse).sum(axis=1))
        return float((sums - true * inverse).mean())

    low, high = np.log(1 / _HOTTEST), np.log(1 / _COLDEST)
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if loss(np.exp(left)) <= loss(np.exp(right)):
            high = right
        else:
            low = left
    return float(np.exp(-(low + high) / 2))


def calibration(
    logits: Logits, labels: NDArray[np.uint8], temperature: float = 1.0
) -> Calibration:
    """Return how often softmax(logits / T) is right where it is so sure."""
    values = logits.astype(np.float64) / temperature
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


def cool(network: nn.Module, temperature: float) -> None:
    """Divide a network's logits by a temperature, once for all: in its weights."""
    last = head(network)
    last.weight.data /= temperature
    if last.bias is not None:
        last.bias.data /= temperature
