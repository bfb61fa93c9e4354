"""The ways to run a network: as it is, fused, or compiled; and whether one is right.

The plain module says what is right. Knows no cards and no scenes.
"""

import os
from collections.abc import Callable
from math import ceil
from pathlib import Path
from shutil import which
from time import perf_counter

import torch
from torch import Tensor, nn

from tileseg.network.fused import fuse, trimmed
from tileseg.network.unet import UNet

__all__ = ["Forward", "build", "deviation", "is_worth_compiling", "sample"]

Forward = Callable[[Tensor], Tensor]

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far logits may be off, as a share of the largest; they are a tenth of it."""

COMPILE_SECONDS = 60.0
"""What compiling takes, rather more than less, and on every worker."""

COMPILE_GAIN = {"cpu": 0.13, "cuda": 0.33}
"""Share of the time that compiling saved our U-Net where it was measured."""

_SAMPLE_TILES = {"cpu": 2, "cuda": 32}  # that are timed: two do not fill a GPU


def build(module: nn.Module, network: str, trim: int = 0) -> Forward:
    """Return a module's forward in one of the ways to run it.

    Args:
        module: channels last, where it is to work, for inference only.
        network: one of `choices.NETWORKS`.
        trim: pixels on each side of a tile that its answer is to lack.

    Raises:
        Exception: it cannot be run so; compilers raise anything.
    """
    if network == "fused":
        if not isinstance(module, UNet):
            kind = type(module).__name__
            msg = f"there is no fused form of {kind}, only of our U-Net"
            raise TypeError(msg)
        return fuse(module, trim)
    whole = module if network == "plain" else _compile(module)
    return (lambda tiles: trimmed(whole(tiles), trim)) if trim else whole


def sample(
    module: nn.Module, network: str, bands: int, tile: int, trim: int = 0
) -> Tensor:
    """Return fixed tiles, (2, bands, H, W), to compare ways on, in the module's type.

    Small ones for our U-Net, which is built for any size, since each worker looks;
    others and what is compiled get the size that they are to work on.
    """
    height = width = tile
    if isinstance(module, UNet) and network != "compiled":
        unit = 1 << module.depth
        border = 2 * ceil(trim / unit)
        height, width = (2 + border) * unit, (4 + border) * unit
    return _noise(module, (2, bands, height, width))


@torch.inference_mode()
def deviation(
    module: nn.Module, forward: Forward, tiles: Tensor, trim: int = 0
) -> float:
    """Return how far `forward` is off, in tolerances; NaN where either gives NaN."""
    right, got = trimmed(module(tiles), trim).float(), forward(tiles).float()
    bound = TOLERANCE[tiles.dtype] * float(right.abs().max())
    return float((got - right).abs().max()) / max(bound, torch.finfo().tiny)


@torch.inference_mode()
def is_worth_compiling(module: nn.Module, todo: int, bands: int, tile: int) -> bool:
    """Return whether compiling would save more time than it takes.

    Args:
        module: as for `build`.
        todo: tiles to forward.
        bands: of a tile.
        tile: its side.
    """
    kind = next(module.parameters()).device.type
    if not _has_compiler(kind):
        return False
    tiles = _noise(module, (_SAMPLE_TILES[kind], bands, tile, tile))
    module(tiles).sum().item()  # the first of its shape takes longer
    start = perf_counter()
    module(tiles).sum().item()  # waits for the device
    seconds = (perf_counter() - start) / len(tiles) * todo
    return seconds * COMPILE_GAIN[kind] > COMPILE_SECONDS


def _has_compiler(kind: str) -> bool:
    """Return whether torch finds what it compiles with: C++, for a GPU Triton and C."""
    if kind == "cpu":
        return which(os.environ.get("CXX", "g++")) is not None
    return torch.utils._triton.has_triton()  # noqa: SLF001  (no public test)


def _compile(module: nn.Module) -> Forward:
    """Return the module compiled for any number of tiles; it happens at the first."""
    _keep_cache()
    # Else code for a CPU is built anew where there are more or fewer threads: a lane.
    compiled = torch.compile(module, options={"cpp.dynamic_threads": True})

    def forward(tiles_NBTT: Tensor) -> Tensor:
        # One program for every batch: the sample's, the precision check's, the plan's.
        torch._dynamo.mark_dynamic(tiles_NBTT, 0)  # noqa: SLF001  (its documented name)
        logits: Tensor = compiled(tiles_NBTT)
        return logits

    return forward


def _keep_cache() -> None:
    """Let torch keep what it compiled where the user's other caches are."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        caches = Path(given) if given else Path.home() / ".cache"
    except RuntimeError:  # a user without a home: torch's own place is for one boot
        return
    place = caches / "tileseg" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place))


def _noise(module: nn.Module, shape: tuple[int, int, int, int]) -> Tensor:
    """Return the same noise every time, as the module takes it."""
    numbers = torch.Generator().manual_seed(0)
    weight = next(module.parameters())
    tiles = torch.randn(shape, generator=numbers).to(weight.device, weight.dtype)
    return tiles.to(memory_format=torch.channels_last)
