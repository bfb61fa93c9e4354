"""Which scenes a night takes, in which order, why not the rest, and what they cost."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

from tileseg.base.locations import within
from tileseg.base.redact import redact
from tileseg.cards.ensemble import Ensemble, read_ensemble
from tileseg.errors import TilesegError
from tileseg.nights.nightly_entry import FAILED, Entry, Speed
from tileseg.nights.nightly_file import NightFile, Schedule
from tileseg.nights.nightly_source import Found
from tileseg.nights.nightly_state import State
from tileseg.plans.ledger import digest, tiles_done
from tileseg.plans.task import Task, check_shared, draft, meet, versions
from tileseg.settings import Job
from tileseg.stores.objects import open_storage
from tileseg.stores.storage import Storage

__all__ = ["Choice", "Cost", "asked", "chosen", "ordered", "span", "turns"]

Left = Callable[[], float | None]

_NO_PRODUCTS = {"engine", "grace", "hosts", "input", "keep", "keep_work", "output",
        "patience", "price", "run_shards", "trusted", "wait", "watts", "work",
        "workers"}  # fmt: skip
"""Fields of a job that say how it is done, and change no product."""

_AGAIN = ("changed", "options", "gone")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a scene takes."""

    tiles: int
    """Left to do."""
    bytes: int
    """To read."""


@dataclass(frozen=True)
class Choice:
    """A scene of the source, and what is to become of it tonight."""

    found: Found
    facts: dict[str, Any]
    """Fields of its job."""
    why: str
    """To be done: `new`, `changed`, `options`, `gone` (its results are), `begun`,
    `again` (it failed), `judged` (parked at a gate, which may let it pass). Not:
    `unchanged`, `kept`, `later`, `parked` (judged on a later night, or often enough),
    `given_up`, `double`."""
    known: Entry | None = None
    """What is known of it."""
    is_guest: bool = False
    """Whether the results that go by its name may be of another scene."""

    @property
    def is_due(self) -> bool:
        """Whether it is to be done tonight, if there is time."""
        return self.why in ("new", "begun", "again", "judged", *_AGAIN)

    def is_refused(self, known: Entry) -> bool:
        """Return whether it was refused the place of another scene of its name."""
        return self.is_guest and known.claim == self.found.version

    @cached_property
    def cost(self) -> Cost | None:
        """What it takes; None where it cannot be opened."""
        return self._looked_at if isinstance(self._looked_at, Cost) else None

    @property
    def flaw(self) -> str | None:
        """Why it cannot be opened, which its run will tell, too; None if it can."""
        return self._looked_at if isinstance(self._looked_at, str) else None

    @cached_property
    def _looked_at(self) -> Cost | str:
        if self.why == "judged":
            return Cost(0, 0)
        try:
            task = self.open()
            is_begun = self.why == "begun"
            done = tiles_done(open_storage(task.job.workplace)) if is_begun else 0
        except TilesegError as err:
            return redact(str(err))
        size = task.scene.size * task.grid.area.size // task.grid.scene.size
        return Cost(max(1, task.grid.tiles.size - done), size)

    def open(self) -> Task:
        """Return what is to be done.

        Raises:
            TilesegError: the scene cannot be opened, or does not fit the job.
        """
        job = Job(**self.facts)
        return draft(job, *meet(job))


def asked(job: Mapping[str, Any]) -> str:
    """Return a digest of all that is asked of every scene: what changes its products.

    Raises:
        TilesegError: models, golden tiles, area or mask cannot be used: all would fail.
    """
    whole = Job(**{**job, "input": "scene.tif"})
    ensemble = read_ensemble(whole)
    _check(whole, ensemble)
    given = {k: v for k, v in whole.given().items() if k not in _NO_PRODUCTS}
    area = Path(whole.aoi) if whole.aoi else None
    return digest(
        {
            "job": given,
            "overwrite": whole.overwrite,
            "area": _sum(area) if area else None,
            "models": [card.facts() for card in ensemble.cards],
            "versions": versions(polygons=bool(whole.polygons)),
        }
    )


def _check(job: Job, ensemble: Ensemble) -> None:
    """Refuse what all scenes would fail of alike."""
    check_shared(job, ensemble)
    if path := job.gates.canary:
        from tileseg.plans.canary import read_canary

        read_canary(path).check(ensemble, path)
    if job.aoi:
        from tileseg.scenes.region import read_polygons

        read_polygons(job.aoi)


def _how(file: NightFile) -> str:
    """Return a digest of all that a night's file says of how scenes are done."""
    job = Job(**{**file.job, "input": "scene.tif"}).given()
    return digest({"job": job, "target": asdict(file.target)})


def _sum(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None  # each scene's run will tell


def chosen(
    file: NightFile,
    found: Iterable[Found],
    state: State,
    *,
    folders: frozenset[str],
    work: Storage,
) -> list[Choice]:
    """Return what is to become of each scene, in the source's order.

    Args:
        file: what is asked.
        found: the scenes of the source.
        state: what is known of them; of tonight.
        folders: in which there are results.
        work: where unfinished work is, in folders of these names.
    """
    scenes, unfinished = list(found), frozenset(work.folders())
    wanted, how = asked(file.job), _how(file)
    owners, choices = _owners(scenes, state), []
    for scene in scenes:
        name, known = scene.name, state.scenes.get(scene.name)
        is_owner = owners.get(name) == scene.href
        if is_owner:
            del owners[name]  # one that the source has twice is its own double
        is_guest = bool(known and _is_other(scene, known) and name in folders)
        is_refused = bool(is_guest and known and known.claim == scene.version)
        fresh = Entry(
            scene=scene.href, mark=scene.mark, asked=wanted, how=how, state="", night=""
        )
        why = _why(known, fresh, state.night)
        if is_refused or not is_owner:
            why = "double"
        elif why == "new" and name in unfinished and tiles_done(work.below(name)):
            why = "begun"  # by a night that was killed before it took note
        elif why in ("unchanged", "kept") and name not in folders:
            why = "gone"
        if known and why not in ("new", "double", *_AGAIN):
            fresh = replace(known, scene=scene.href)
        facts = _facts(file, scene, is_guest=is_guest)
        choices.append(Choice(scene, facts, why, fresh, is_guest=is_guest))
    return choices


def _facts(file: NightFile, scene: Found, *, is_guest: bool) -> dict[str, Any]:
    """Return the fields of a scene's job."""
    facts = {
        **file.job,
        "input": scene.source,
        "output": within("output", file.target.output, scene.name),
        "work": within("work", file.target.workplace, scene.name),
    }
    # Of a guest the same bytes stay as they are, others are refused.
    return {**facts, "overwrite": False} if is_guest else facts


def _is_other(scene: Found, known: Entry) -> bool:
    """Return whether a scene may be another one than that of its name's results."""
    return known.scene != scene.href and known.mark != scene.mark


def _owners(scenes: Iterable[Found], state: State) -> dict[str, str]:
    """Return which scene has each name: that of the results, else the first."""
    owners: dict[str, str] = {}
    for scene in scenes:
        known = state.scenes.get(scene.name)
        if scene.name not in owners or (known and known.scene == scene.href):
            owners[scene.name] = scene.href
    return owners


def _why(known: Entry | None, fresh: Entry, tonight: str) -> str:
    """Return what is to become of a scene, by what was known and what is so now."""
    if known is None:
        return "new"
    if known.mark != fresh.mark:
        return "changed"
    # What failed may have failed of how it was done: hosts, engine, places.
    is_other = known.state in ("failed", "partial") and known.how != fresh.how
    if known.asked != fresh.asked or is_other:
        return "options"
    if known.state not in FAILED:
        return {"waiting": "begun", "kept": "kept"}.get(known.state, "unchanged")
    # Who was last tried on a night to come was so by a clock that was wrong.
    is_later = known.next and known.next > tonight >= known.night
    if known.state == "parked":
        return "parked" if known.given_up or is_later else "judged"
    return "given_up" if known.given_up else "later" if is_later else "again"


def ordered(choices: Iterable[Choice], night: Schedule) -> list[Choice]:
    """Return those that are due, first things first.

    By pattern; what was begun; new scenes before those that are made again; the rest as
    the schedule says.
    """
    due = [choice for choice in choices if choice.is_due]

    def rank(choice: Choice) -> tuple[Any, ...]:
        name = choice.found.name
        at = (i for i, text in enumerate(night.first) if fnmatchcase(name, text))
        is_begun, is_again = choice.why == "begun", choice.why in _AGAIN
        return next(at, inf), not is_begun, is_again, _place(choice, night), name

    return sorted(due, key=rank)


def _place(choice: Choice, night: Schedule) -> float:
    """Return by what the schedule sorts; who does not say when it was taken is last."""
    if night.order == "smallest":  # what cannot be opened is small
        return choice.cost.tiles if choice.cost else 0
    taken = choice.found.taken
    if night.order == "name" or taken is None:
        return inf
    return taken.timestamp() * (-1 if night.order == "newest" else 1)


def turns(
    due: Iterable[Choice], speed: Callable[[], Speed], left: Left, whole: float
) -> Iterator[tuple[Choice, bool]]:
    """Yield each scene as its turn comes, with whether there is time for it.

    There is none where it is expected to take longer than is left. A scene that would
    take longer than a whole night fits none: such ones have what time is left at the
    end, and go on the next night.

    Args:
        due: in the night's order.
        speed: how fast scenes are done, as it is known by then.
        left: seconds until the deadline, by then; None without one.
        whole: seconds of a whole night.
    """
    long = []
    for choice in due:
        time = left()
        if time is None or time <= 0:
            yield choice, time is None
            continue
        need = speed().seconds(choice.cost.tiles) if choice.cost else None
        if need is not None and need > whole:
            long.append(choice)
        else:
            yield choice, need is None or need <= time
    for choice in long:
        time = left()
        yield choice, time is None or time > 0


def span(state: State, end: datetime | None) -> float:
    """Return how many seconds the night has in all."""
    return inf if end is None else (end - state.started).total_seconds()
