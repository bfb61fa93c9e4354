"""What kind of network a model folder holds. Plain values: knows no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "PROGRAMS", "Architecture", "unet"]

KINDS: Mapping[str, str] = {
    "unet": ".safetensors",
    "smp": ".safetensors",
    "onnx": ".onnx",
    "torchscript": ".pt",
    "exported": ".pt2",
}
"""Kinds of networks -> how the file of their weights is called."""

PROGRAMS = ("torchscript", "exported")
"""Kinds that are code of somebody else's, and run only where that is trusted."""

_FP32_ONLY = (*PROGRAMS, "onnx")
_DEEPEST = 9  # poolings
_UNET_CHANNELS = 6  # times the first stage's, which a U-Net holds at once for a pixel


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a network is built, and what it asks for."""

    kind: str
    """One of `KINDS`: our own U-Net, or somebody else's."""
    name: str
    """What people call it: U-Net, FPN, ..."""
    parameters: Mapping[str, Any]
    """What its kind needs to build it, as JSON has it."""
    multiple: int
    """Sides of tiles and cores must be a multiple of it."""
    floats: int
    """Numbers that a forward holds at once, for each pixel of a tile."""

    @property
    def is_fp32_only(self) -> bool:
        """Whether it computes in the numbers that it was saved with."""
        return self.kind in _FP32_ONLY

    def faults(self) -> list[str]:
        """Say what is wrong, each in words that go on after "it"."""
        if self.kind not in KINDS:
            known = ", ".join(KINDS)
            return [
                f"has a network of unknown kind {self.kind!r}, wanted one of {known}"
            ]
        if not (self.multiple > 0 and self.floats > 0):
            return [
                f"needs multiple and floats > 0, got {self.multiple}, {self.floats}"
            ]
        return []


def unet(width: int, depth: int) -> Architecture:
    """Return our own U-Net.

    At its top it holds the first stage's skip and, while the last stage works, its
    input and its answer: 5 times the first stage's channels; from below come the deeper
    skips, less than one.

    Args:
        width: channels of the first stage.
        depth: poolings.

    Raises:
        ValueError: there is none of that shape; in words that go on after "it".
    """
    if not (width > 0 and 0 < depth <= _DEEPEST):
        msg = f"has no U-Net of width {width}, depth {depth}"
        raise ValueError(msg)
    return Architecture(
        kind="unet",
        name="U-Net",
        parameters={"width": width, "depth": depth},
        multiple=1 << depth,
        floats=_UNET_CHANNELS * width,
    )
