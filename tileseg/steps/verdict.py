"""What limited a run, and what would shorten it: a judgement of its seconds.

Pure: numbers in, a word and a sentence out. Knows no scene and no worker.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ENDS", "STAGES", "Spent", "Verdict", "judge"]

STAGES = ("read", "forward", "write")
"""What a worker does at the same time, for different parts of the scene."""

ENDS = ("stitch", "verify", "vectorize")
"""What is done when they have done it."""

_PHASES = ("start", "work", "finish")
_NAMES = {"read": "reading", "forward": "the network", "write": "writing shards"}
_AFTER = {
    "stitch": ("stitching", "put --work and --output on a faster disk"),
    "verify": ("reading what was stitched", "put --output on a faster disk"),
    "vectorize": ("joining polygons", "do without where the mask is enough"),
    "publish": (
        "pictures, report and publishing",
        "they take as long for a small scene; put --output on a faster disk",
    ),
}
# Three stages in turn, none overlapping another, are busy for a third each or more.
_IDLE = 1 / 3
_WAITED = 1 / 3  # of a start: longer than for what of ours runs beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Where the seconds of one attempt went, and what it was about."""

    total: float = 0.0
    """From the start to the last product, by the clock."""
    work: float = 0.0
    """Of it, from calling the workers to the last receipt."""
    finish: float = 0.0
    """Of it, after the last receipt."""
    plan: float = 0.0
    """Of what came before the workers: finding them, and settling how to compute."""
    compare: float = 0.0
    """Likewise: looking for shards that are as they were."""
    waited: float = 0.0
    """Likewise: when a core was wanted, and other programs had it."""
    workers: int = 1
    """How many took part."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """`load` and `STAGES`: seconds of all workers together; stages overlap."""
    ends: Mapping[str, float] = field(default_factory=dict)
    """`stitch`, `verify`, `vectorize`: parts of `finish`."""
    is_gpu: bool = False
    """Whether the network ran on GPUs."""
    is_remote: bool = False
    """Whether the scene was fetched."""
    is_striped: bool = False
    """Whether a file of the scene is not tiled."""
    is_quick: bool = False
    """Whether no other codec would make the scene faster to read."""
    forwards: int = 1
    """How often a tile was forwarded: by several models, in several ways."""
    is_shared: bool = False
    """Whether the workers are there for other scenes, too."""
    has_polygons: bool = False
    """Whether workers polygonised their shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What limited a run."""

    limit: str | None = None
    """`start`, a stage of the workers, `idle`, `stitch`, `verify`, `vectorize` or
    `publish`; None where nothing was done."""
    busy: Mapping[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(STAGES)
    )
    """Share of the workers' time in which each stage was at it, 0 to 1; None where
    they did nothing."""
    phases: Mapping[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(_PHASES)
    )
    """Shares of the whole time, adding up to 1."""
    advice: str | None = None
    """One sentence."""


def judge(spent: Spent) -> Verdict:
    """Say what limited a run.

    The phase that took longest did; of the workers' phase the stage that was busiest,
    since the others wait for it. Loading the network is part of the start.
    """
    if spent.total <= 0:
        return Verdict()
    seconds = _phases(spent)
    whole = sum(seconds.values())
    phases = {name: seconds[name] / whole for name in _PHASES}
    share = spent.workers * seconds["work"]
    busy = {
        name: min(1.0, spent.stages.get(name, 0.0) / share) if share else None
        for name in STAGES
    }
    limit = _limit(spent, phases, busy)
    return Verdict(
        limit=limit,
        busy=busy,
        phases=phases,
        advice=_advice(limit, spent, phases, busy),
    )


def _phases(spent: Spent) -> dict[str, float]:
    """Return the seconds of each phase by the clock."""
    load = min(spent.work, spent.stages.get("load", 0.0) / spent.workers)
    start = max(0.0, spent.total - spent.work - spent.finish)
    return {"start": start + load, "work": spent.work - load, "finish": spent.finish}


def _limit(
    spent: Spent, phases: Mapping[str, float], busy: Mapping[str, float | None]
) -> str:
    phase = max(_PHASES, key=lambda name: phases[name])
    if phase == "start":
        return phase
    if phase == "finish":
        ends = {name: spent.ends.get(name, 0.0) for name in ENDS}
        ends["publish"] = spent.finish - sum(ends.values())
        return max(ends, key=lambda name: ends[name])
    busiest = max(STAGES, key=lambda name: busy[name] or 0.0)
    return busiest if (busy[busiest] or 0.0) >= _IDLE else "idle"


def _advice(
    limit: str,
    spent: Spent,
    phases: Mapping[str, float],
    busy: Mapping[str, float | None],
) -> str:
    """Return what a limit means and what would help."""
    if limit in STAGES:
        shares = {name: f"{_NAMES[name]} {busy[name] or 0:.0%}" for name in STAGES}
        besides = " and ".join(shares[name] for name in STAGES if name != limit)
        text = f"{_NAMES[limit]} was busy {busy[limit] or 0:.0%} of the time"
        return f"{text}, {besides}: {_help(limit, spent)}"
    if limit == "idle":
        return f"no stage was busy for long: {_help_idle(spent)}"
    if limit == "start":
        text = f"starting took {phases['start']:.0%} of the time"
        return f"{text}{_help_starting(spent, phases['start'])}"
    most, help_ = _AFTER[limit]
    share = f"what comes after the workers took {phases['finish']:.0%} of the time"
    return f"{share}, most of it {most}: {help_}"


def _help_idle(spent: Spent) -> str:
    if spent.workers == 1:
        return "something else on the machine holds the worker up"
    return (
        "the scene is small for so many workers, or something else on their machines "
        "holds them up; try fewer"
    )


def _help_starting(spent: Spent, share: float) -> str:
    seconds = share * spent.total
    if spent.compare > seconds / 2:
        return (
            ", most of it comparing the scene with what is published: give it more CPU "
            "cores or a faster disk"
        )
    if spent.waited > _WAITED * seconds:
        return (
            ", much of it waiting for cores that other programs had: run it when the "
            "machine has less to do"
        )
    if spent.is_shared:
        return (
            ": opening the scene and settling how to compute, which every scene takes, "
            "however small"
        )
    most = ", most of it loading libraries and the network, and checking its numbers"
    text = ": give several scenes to one command, which loads libraries once"
    return f"{most if spent.plan > seconds / 2 else ''}{text}"


def _help(stage: str, spent: Spent) -> str:
    """Return what would make a stage of the workers shorter."""
    if stage == "forward":
        help_ = "a GPU shortens it, or more CPU cores"
        if spent.is_gpu:
            help_ = "more GPUs shorten it (--engine ray --workers N)"
        if spent.forwards > 1:
            help_ += f"; each tile is forwarded {spent.forwards} times (--model, --tta)"
        return help_
    if stage == "write":
        if spent.has_polygons:
            return "polygons are made there; more CPU cores shorten it"
        return "put --work on a faster disk, or give it more CPU cores"
    return _help_reading(spent)


def _help_reading(spent: Spent) -> str:
    if spent.is_remote:
        return "copy the scene to a local disk, or run nearer to its server"
    if spent.is_striped:
        return "write the scene anew in tiles (TILED=YES), and give it more CPU cores"
    help_ = "give it more CPU cores or a faster disk"
    if spent.is_quick:
        return help_
    return f"{help_}, or write the scene anew with a faster codec (COMPRESS=ZSTD)"
