"""What may be asked for one scene: the fields of a job, from wherever they come."""

import os
from dataclasses import MISSING, Field, dataclass, field, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any

from tileseg.base.address import called, keep, keep_input, shown
from tileseg.base.attributes import Attribute, fault
from tileseg.base.bounds import Gates
from tileseg.base.builtin import model_folder
from tileseg.base.choices import (
    BLENDS,
    DEVICES,
    ENGINES,
    FORMATS,
    JOINS,
    NETWORKS,
    PRECISIONS,
    RESAMPLINGS,
    SYMMETRIES,
)
from tileseg.base.fields import Limits, check_values, of_table, one_of
from tileseg.base.locations import check_location, work_beside
from tileseg.base.longitudes import is_bbox
from tileseg.base.names import scene_name
from tileseg.base.rules import parse_rule
from tileseg.errors import UsageError

__all__ = ["LAYERS", "MOST_METRES", "Job"]

LAYERS = ("confidence", "margin", "entropy", "probabilities")
"""What there may be of each pixel beside its class: each a raster, a field of a job."""

MOST_METRES = 1_000_000
"""That borders may be simplified by."""

_LONGEST = 10 * 86_400  # seconds
_MOST_KEPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One scene to segment. Every field but `input` has a default that fits most."""

    input: str | tuple[str, ...]
    # Of an address with a query only its handle is kept here: see `address.keep`.
    """The scene, a path or an address (https, s3, gs or az): a GeoTIFF or a STAC Item.

    Several files only with `join`."""
    join: str = ""
    """Several files as one scene: `bands` of one place, or the parts of a `mosaic`."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north of what is asked for, in degrees; None for all."""
    aoi: str = ""
    """A vector file whose polygons are what is asked for; empty for all."""
    model: str | tuple[str, ...] = ""
    """Model folder, or `landcover-bgr` or `landcover-bgrn`; empty for the first.

    Of several the probabilities are averaged."""
    tta: str = "none"
    """`d4`: the average over a tile's four turns and their mirror images."""
    output: str = ""
    """Output directory or s3://bucket/prefix; empty for `out/<name of the scene>`."""
    work: str = ""
    """Work directory or s3://bucket/prefix; empty for `<output>.work`, locally."""
    engine: str = "auto"
    """Who runs the workers. `auto`: Ray inside a Ray job or where RAY_ADDRESS says one,
    else threads of this process."""
    workers: int | None = None
    """How many; None for one per GPU, or one on the CPU (of each node)."""
    device: str = "auto"
    """Where the network computes. `auto`: on GPUs if there are any."""
    batch_size: int | None = None
    """Tiles in one forward; None for a size that fits the device."""
    precision: str = "auto"
    """Of the network's numbers. `auto`: `bf16` where the hardware has it and the labels
    agree with `fp32`, else that."""
    network: str = "auto"
    """How it is run: `plain`; `fused`, in fewer passes over memory; or `compiled` by
    torch. `auto` takes the fastest that gives the plain one's answers; the others are
    orders."""
    blend: str = "crop"
    """How tiles meet: each keeps its core, or they fade into each other (`cosine`)."""
    confidence: bool = False
    """Also make confidence.tif: the probability of the class."""
    margin: bool = False
    """Also make margin.tif: how much more probable the class is than the next one."""
    entropy: bool = False
    """Also make entropy.tif: 0 for one certain class, 1 where all are as probable."""
    probabilities: bool = False
    """Also make probabilities.tif: a band for each class, how probable it is."""
    polygons: str = ""
    """Also make polygons in this format."""
    simplify: float | None = None
    """Metres on the ground that their borders are simplified by; None for not."""
    min_area: float | None = None
    """Hectares; smaller ones become parts of neighbours. None for none."""
    attributes: dict[str, Attribute] = field(default_factory=dict)
    """Columns that they get, by name: the same value, a text or number, in all."""
    scale: float | None = None
    """physical = stored * scale + offset; None for the file's own tags."""
    offset: float | None = None
    """See `scale`; 0 if only that is given."""
    hosts: tuple[str, ...] = ()
    """`host[:port]` that may be read over plain http, or in a private network."""
    crs: str = ""
    """CRS that the scene is brought to, as EPSG:32631; empty for its own."""
    resolution: float | str | None = None
    """Side of a pixel it is brought to, in the CRS's unit; `card` for the model's."""
    resampling: str = "bilinear"
    """How that is done."""
    mask: tuple[str, ...] = ()
    """What makes pixels invalid: `scl.tif in 3,8,9,10`, `band:qa bits 1,3` ..."""
    allow_ungeoreferenced: bool = False
    """Take a scene that is placed by GCPs or RPCs only; its mask is placed alike."""
    bands: tuple[str | int, ...] = ()
    """The scene's bands in the model's order, by name or index; empty for by name."""
    overwrite: bool = False
    """Replace the result of another plan."""
    again: bool = True
    """Whether that also makes a result again that a person rolled back; in a night's
    file not."""
    keep: int = 0
    """Versions to keep of those that newer ones replace, the last ones."""
    gates: Gates = Gates()  # noqa: RUF009  (frozen)
    """What a result must pass before it goes live; in a job file a table."""
    allow_partial: bool = False
    """Publish with holes where shards failed."""
    incremental: bool = False
    """Bring the scene's result up to date: compute only what looks otherwise.

    Also make shards.json, which is needed for it the next time."""
    dry_run: bool = False
    """Say what would be done and do nothing."""
    keep_work: bool = False
    """Keep the plan's work directory after success."""
    shard: int | None = None
    """Side of a shard in pixels, a multiple of the stride; None for what the card's
    tile and halo give."""
    mixed_devices: bool = False
    """Let workers of other hardware than the first one's take part (Ray)."""
    grace: float | None = None
    """Seconds for shards in hand after a signal; None for 20, in a Ray job 2."""
    patience: float = 60
    """Seconds without progress after which a worker is taken to be stuck, or 20 times
    what is usual if that is more; five times as long at the start, and so many times as
    a tile is forwarded."""
    wait: float = 1800
    """Seconds to wait for a first worker, or for one when none is left (Ray)."""
    max_pixels: int = 100_000_000_000
    """Scenes of more are refused: a few bytes can claim any number."""
    trusted: bool = False
    """The input is ours: need not be looked at first by a process that may die, which
    takes 0.3 s."""
    trust_model_code: bool = False
    """Run a model that is a program (TorchScript, torch.export), whatever it does."""
    watts: float | None = None
    """What a device takes; of GPUs that count their energy themselves not needed."""
    price: float | None = None
    """What a device costs in an hour, in whatever money."""
    run_shards: tuple[int, int] | None = None
    """Most (rows, columns) of shards in a run; None for a choice by memory."""

    def __post_init__(self) -> None:
        """Refuse what no run could mean."""
        check_location("output", self.output)
        check_location("work", self.work)
        table: object = self.gates
        if isinstance(table, dict):
            object.__setattr__(self, "gates", of_table("gates", table, Gates))
        check_values(self, self._limits)
        self._keep_secrets()
        self._check_inputs()
        for name in ("simplify", "min_area"):
            if getattr(self, name) is not None and not self.polygons:
                msg = f"{name}: means nothing without polygons; give both"
                raise UsageError(msg)
        self._check_attributes()
        if self.offset is not None and self.scale is None:
            msg = "offset: means nothing without scale; give both"
            raise UsageError(msg)

    def _keep_secrets(self) -> None:
        """Have handles in the place of addresses with a query."""
        sources = tuple(map(keep_input, self.inputs))
        is_one = isinstance(self.input, str)
        object.__setattr__(self, "input", sources[0] if is_one else sources)
        rules = map(parse_rule, self.mask)
        kept = (str(rule.with_source(keep(rule.source))) for rule in rules)
        object.__setattr__(self, "mask", tuple(kept))

    def _check_attributes(self) -> None:
        """Refuse columns that polygons cannot have."""
        if self.attributes and not self.polygons:
            msg = "attributes: mean nothing without polygons; give both"
            raise UsageError(msg)
        if wrong := fault(self.attributes):
            msg = f"attributes: {wrong}"
            raise UsageError(msg)

    def _check_inputs(self) -> None:
        """Refuse several files that are no one scene, or one without a name."""
        if not self.inputs or not all(self.inputs):
            msg = f"input: got {self.input!r}, wanted a scene"
            raise UsageError(msg)
        if len(self.inputs) > 1 and not self.join:
            msg = (
                "input: several files are a scene each, and a job has one: join them "
                "as its bands or as a mosaic (--join), or run a job for each"
            )
            raise UsageError(msg)
        if len(self.inputs) > 1 and not self.output:
            msg = "output: wanted a directory, since files that are joined have no name"
            raise UsageError(msg)
        if self.bbox and self.aoi:
            msg = "bbox, aoi: wanted one of them, got both"
            raise UsageError(msg)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every file, or STAC Item, that the scene is made of."""
        return (self.input,) if isinstance(self.input, str) else self.input

    @property
    def href(self) -> str:
        """What the scene is called in messages and records."""
        return called(self.input)

    def given(self) -> dict[str, Any]:
        """Return the fields that are no defaults, as JSON has them.

        Not `overwrite`, `again` and `dry_run`, which were meant for the one run.
        """
        given = {
            item.name: _plain(value)
            for item in fields(self)
            if (value := getattr(self, item.name)) != _default(item)
            and item.name not in ("overwrite", "again", "dry_run")
        }
        inputs = list(map(called, self.inputs))
        if self.mask:
            rules = map(parse_rule, self.mask)
            given["mask"] = [str(it.with_source(shown(it.source))) for it in rules]
        return {**given, "input": inputs if len(inputs) > 1 else inputs[0]}

    @staticmethod
    def _limits() -> Limits:
        """Return, for each field with limits, its test and what it wants."""
        positive = (lambda number: number > 0), "1 or more"
        seconds = (lambda x: 0 < x <= _LONGEST), "more than 0 seconds, at most 10 days"
        return {
            "output": (
                lambda path: not path or Path(path).name not in ("", ".."),
                "a directory of its own",
            ),
            "engine": one_of("auto", *ENGINES),
            "device": one_of("auto", *DEVICES),
            "precision": one_of("auto", *PRECISIONS),
            "network": one_of("auto", *NETWORKS),
            "blend": one_of(*BLENDS),
            "model": (lambda folders: folders != (), "one model folder or more"),
            "tta": one_of(*SYMMETRIES),
            "join": (lambda how: how in ("", *JOINS), one_of(*JOINS)[1]),
            "bbox": (is_bbox, "west, south, east, north in degrees, south < north"),
            "resampling": one_of(*RESAMPLINGS),
            "resolution": (
                lambda x: x == "card" if isinstance(x, str) else 0 < x < inf,
                "a number > 0, or card",
            ),
            "polygons": (lambda it: it in ("", *FORMATS), one_of(*FORMATS)[1]),
            "simplify": (
                lambda metres: 0 < metres <= MOST_METRES,
                f"metres, more than 0, at most {MOST_METRES:,}",
            ),
            "min_area": (lambda area: 0 < area < inf, "hectares, more than 0"),
            "workers": positive,
            "batch_size": positive,
            "shard": positive,
            "max_pixels": positive,
            "run_shards": (lambda pair: min(pair) > 0, "1 or more of each"),
            "scale": (lambda x: isfinite(x) and x != 0, "a finite number, not 0"),
            "offset": (isfinite, "a finite number"),
            "keep": ((lambda number: 0 <= number <= _MOST_KEPT), f"0 to {_MOST_KEPT}"),
            "watts": (lambda x: 0 < x < inf, "a finite number > 0"),
            "price": (lambda x: 0 <= x < inf, "a finite number, not below 0"),
            "grace": ((lambda x: 0 <= x <= _LONGEST), "0 seconds to 10 days"),
            "patience": seconds,
            "wait": seconds,
        }

    @property
    def engine_kind(self) -> str:
        """Which engine: `local` or `ray`."""
        if self.engine != "auto":
            return self.engine
        address = os.environ.get("RAY_ADDRESS", "")
        is_for_jobs = address.startswith("http")  # what `ray job submit` goes by
        return "ray" if address and not is_for_jobs else "local"

    @property
    def grace_seconds(self) -> float:
        """How long shards in hand may take after a signal.

        `ray job stop` kills a driver after 3 seconds.
        """
        if self.grace is not None:
            return self.grace
        return 2 if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else 20

    @property
    def destination(self) -> str:
        """Where the outputs go: a local path, or an address in an object store."""
        return self.output or str(Path("out") / scene_name(self.inputs[0]))

    @property
    def output_path(self) -> Path:
        """Where local outputs go."""
        return Path(self.destination)

    @property
    def workplace(self) -> str:
        """Where unfinished work lives: a local path or an address, as the outputs."""
        return self.work or work_beside(self.destination)

    @property
    def work_path(self) -> Path:
        """Where local unfinished work lives."""
        return Path(self.workplace)

    @property
    def models(self) -> tuple[str, ...]:
        """What every model is called: see `builtin.model_folder`."""
        return (self.model,) if isinstance(self.model, str) else self.model

    @property
    def model_path(self) -> Path:
        """The first model's folder."""
        return model_folder(self.models[0])

    @property
    def layers(self) -> tuple[str, ...]:
        """What is wanted of each pixel beside its class, of `LAYERS`."""
        return tuple(name for name in LAYERS if getattr(self, name))


def _plain(value: Any) -> Any:  # noqa: ANN401  (any field of a job)
    """Return a field's value as JSON has it."""
    if isinstance(value, Gates):
        return value.given()
    return list(value) if isinstance(value, tuple) else value


def _default(item: "Field[Any]") -> object:
    """Return what a field is if nobody says anything."""
    return item.default if item.default_factory is MISSING else item.default_factory()
