"""What may be asked of a training: its fields, from wherever they come."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from tileseg.classes import color_of
from tileseg.errors import UsageError
from tileseg.fields import checked, fits, read_toml, said

__all__ = ["Training", "read_training"]

_LABEL = re.compile(r"(?P<name>[^=]+?)(?:=#?(?P<color>[0-9A-Fa-f]{6}))?")
_MOST = 255  # classes
_LARGEST = 4096  # pixels of a block's side: labels of some are held whole
_CORES = 4  # a halo is at most so small a part of a tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training. Every field but the first three has a default that fits most."""

    scenes: tuple[str, ...]
    """GeoTIFFs, paths or addresses; of one sensor or several."""
    labels: tuple[str, ...]
    """What is known of each scene, in their order: see `open_reference`."""
    to: str
    """Model folder to write; unfinished work lies in <it>.work."""
    classes: tuple[str, ...] = ()
    """`name` or `name=RRGGBB`, in the order of their values; empty for those that the
    labels name."""
    bands: tuple[str, ...] = ()
    """In the network's order; empty for all of the first scene, or the base's."""
    unit: str = "reflectance"
    """`reflectance`, by each scene's GDAL scale and offset, or `dn`, as stored."""
    column: str = "class"
    """Of polygons or points: which one says the class."""
    renamed: tuple[str, ...] = ()
    """`VALUE=CLASS`: values or names of the labels as the model has them; 255: none."""
    base: str = ""
    """Model folder to go on from; empty for random weights."""
    own_scaling: bool = False
    """Scale as these scenes ask, not as the base does."""
    width: int = 16
    """Channels of the U-Net's first stage; the base's where there is one."""
    depth: int = 4
    """Poolings; the base's where there is one."""
    tile: int = 128
    """Side of a tile in pixels."""
    halo: int = 16
    """Margin of a tile that is not judged, as in segmenting."""
    epochs: int = 10
    """At most; each ends with a look at the validation blocks."""
    steps: int = 100
    """Batches in an epoch."""
    batch_size: int = 8
    """Tiles in a batch."""
    learning_rate: float | None = None
    """Peak of AdamW's; None for 2e-3, from a base 5e-4."""
    weight_decay: float = 0.01
    """AdamW's."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls, a cosine."""
    dice: float = 0.5
    """Weight of the Dice loss beside the cross-entropy."""
    smoothing: float = 0.05
    """Of the labels, in the cross-entropy."""
    jitter: float = 1.0
    """How much brightness, haze and noise are varied; 0 for not."""
    block: int = 256
    """Side in pixels of the blocks that are for training, validation or test."""
    margin: int | None = None
    """Pixels that training tiles keep from blocks for the others; None for the halo."""
    validation: float = 0.15
    """Share of the labels for choosing the best epoch and for calibration."""
    test: float = 0.15
    """Share of the labels that is judged once, at the end."""
    judged: int = 512
    """Tiles of either that are looked at, at most."""
    patience: int = 6
    """Epochs without a better macro-F1 after which training ends."""
    seed: int = 0
    """Of the blocks, the weights and what is drawn."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    engine: str = "local"
    """`local`, this process, or `ray`: workers that share each batch, by Ray Train."""
    workers: int | None = None
    """Of Ray; None for one per GPU, or one on the CPU of each node."""
    overwrite: bool = False
    """Replace another model in the folder, and another training's work."""

    def __post_init__(self) -> None:
        """Refuse what no training could mean."""
        for item in fields(self):
            if not fits(got := getattr(self, item.name), item.type):
                msg = f"{item.name}: got {got!r}, wanted {said(item.type)}"
                raise UsageError(msg)
        for name, (is_good, wanted) in self._limits().items():
            if (got := getattr(self, name)) is not None and not is_good(got):
                msg = f"{name}: got {got!r}, wanted {wanted}"
                raise UsageError(msg)

    def _limits(self) -> dict[str, tuple[Callable[[Any], bool], str]]:
        """Return, for each field with limits, its test and what it wants."""
        positive = (lambda number: number > 0), "more than 0"
        count = (lambda number: number >= 0), "0 or more"
        share = (lambda part: 0 <= part < 0.5), "0 or more, less than 0.5"  # noqa: PLR2004
        number = (lambda value: 0 <= value < inf), "a number, 0 or more"
        least = self.tile + 2 * self.keep
        return {
            "scenes": ((lambda some: len(some) > 0), "a scene: --scene SCENE"),
            "labels": (
                lambda some: len(some) == len(self.scenes),
                f"one for each of {len(self.scenes)} scenes: --labels FILE",
            ),
            "to": (
                lambda path: Path(path).name not in ("", "..") and "://" not in path,
                "a model folder, on a disk: --to DIR",
            ),
            "classes": (
                lambda some: not some or _are_classes(some),
                "2 to 255 names, each once: --classes water=2b7bba,trees",
            ),
            "renamed": (lambda some: all("=" in text for text in some), "VALUE=CLASS"),
            "unit": (lambda unit: unit in ("reflectance", "dn"), "reflectance or dn"),
            "device": (lambda it: it in ("auto", "cpu", "cuda"), "auto, cpu or cuda"),
            "engine": (lambda engine: engine in ("local", "ray"), "local or ray"),
            "workers": (
                lambda count: 0 < count <= (1, self.batch_size)[self.engine == "ray"],
                f"1, or with --engine ray up to a tile each ({self.batch_size})",
            ),
            "width": positive, "depth": positive, "tile": positive, "epochs": positive,
            "steps": positive, "batch_size": positive, "judged": positive,
            "patience": positive, "margin": count, "seed": count, "dice": number,
            "jitter": number, "weight_decay": number, "validation": share,
            "test": share,
            "learning_rate": (lambda rate: 0 < rate < 1, "between 0 and 1"),
            "warm_up": (lambda part: 0 <= part < 1, "0 or more, less than 1"),
            "smoothing": (lambda part: 0 <= part < 1, "0 or more, less than 1"),
            "halo": (
                lambda halo: 0 <= _CORES * halo <= self.tile,
                f"at most a quarter of the tile ({self.tile})",
            ),
            "block": (
                lambda side: least <= side <= _LARGEST,
                f"{least} (a tile and a margin on both sides) to {_LARGEST}",
            ),
        }  # fmt: skip

    def placed(self) -> "Training":
        """Return the same by paths that are the same wherever a process runs."""
        return replace(
            self,
            labels=tuple(str(Path(path).absolute()) for path in self.labels),
            to=str(self.folder.absolute()),
            base=self.base and str(self.base_folder.absolute()),
        )

    @property
    def keep(self) -> int:
        """Pixels that training tiles keep from other blocks."""
        return self.halo if self.margin is None else self.margin

    @property
    def folder(self) -> Path:
        """Where the model goes."""
        return Path(self.to)

    @property
    def base_folder(self) -> Path:
        """Model to go on from."""
        return Path(self.base)

    @property
    def work(self) -> Path:
        """Where unfinished work lies."""
        return self.folder.with_name(self.folder.name + ".work")

    @property
    def rate(self) -> float:
        """Peak learning rate."""
        return self.learning_rate or (5e-4 if self.base else 2e-3)

    @property
    def names_and_colors(self) -> tuple[tuple[str, str], ...]:
        """Name and colour of each class."""
        return with_colors(self.classes)

    @property
    def renaming(self) -> dict[str, str]:
        """What the labels say -> the model's class."""
        pairs = (text.partition("=") for text in self.renamed)
        return {old.strip(): new.strip() for old, _, new in pairs}


def with_colors(classes: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return name and colour of each `name` or `name=RRGGBB`."""
    found = [_LABEL.fullmatch(text.strip()) for text in classes]
    return tuple(
        (match["name"].strip(), (match["color"] or color_of(n)).lower())
        for n, match in enumerate(found)
        if match
    )


def _are_classes(classes: tuple[str, ...]) -> bool:
    names = {name for name, _ in with_colors(classes)}
    return 1 < len(classes) <= _MOST and len(names) == len(classes)


def read_training(path: str) -> dict[str, Any]:
    """Read the fields of a `Training` from a TOML file.

    Raises:
        UsageError: it is unreadable, or names a field that there is not.
    """
    return checked(path, read_toml(path), Training)
