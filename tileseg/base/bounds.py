"""What a finished result must pass before it goes live: bounds, and who is within them.

Pure: numbers that were measured in, a verdict on each out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from statistics import fmean, pstdev
from typing import Any

from tileseg.errors import UsageError

__all__ = ["Gate", "Gates", "Shares", "failed", "judge", "shares_of"]

_LEAST_STD = 0.001  # of a share: one that never varied would let no other through
_DIGITS = 4

Shares = Mapping[str, float]
"""Of each class, by its name, the share of the pixels that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The bounds. None: there is no such gate."""

    grid: bool = True
    """Refuse another grid than that of the version of the same scene that is live."""
    seams: float | None = None
    """Greatest ratio of changes across borders of cores to those inside."""
    precision: float | None = None
    """Least share of labels that agree with fp32, 0 to 1."""
    drift: float | None = None
    """Greatest drift of a band from what the model knows, in its standard deviations.
    """
    nodata: float | None = None
    """Greatest share of nodata, 0 to 1."""
    class_std: float | None = None
    """How many standard deviations a class's share may be off its mean in the series;
    one of less than 0.001 counts as that."""
    class_jump: float | None = None
    """How much it may be off that mean, 0 to 1."""
    history: int = 20
    """Results of the series that are looked at, the newest ones: complete ones of all
    folders beside the output, and the scene's kept versions, with the same classes."""
    history_least: int = 5
    """With fewer of them shares are not judged."""
    canary: str = ""
    """A file of tiles and their labels, by `tileseg model canary`; empty for none."""
    canary_share: float = 1.0
    """Least share of them that the network must give again, 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse bounds that mean nothing."""
        at_most = {"precision", "nodata", "class_jump", "canary_share"}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None or isinstance(value, (bool, str)):
                continue
            least, most = 0, 1 if item.name in at_most else float("inf")
            if item.name.startswith("history"):
                least = 1
            if not (isfinite(value) and least <= value <= most):
                wanted = f"{least} to {most}" if isfinite(most) else f"{least} or more"
                msg = f"gates: {item.name}: got {value!r}, wanted {wanted}"
                raise UsageError(msg)

    @property
    def needs_history(self) -> bool:
        """Whether shares of classes are judged."""
        return self.class_std is not None or self.class_jump is not None

    def given(self) -> dict[str, Any]:
        """Return the bounds that are no defaults."""
        return {
            key: it for key, it in asdict(self).items() if it != getattr(Gates(), key)
        }


@dataclass(frozen=True, slots=True)
class Gate:
    """What was found at one of them."""

    name: str
    """A field of `Gates`, or `valid`: every raster is what its shards say."""
    got: Any
    """What was measured; None where nothing could be."""
    wanted: str
    """In words."""
    passed: bool | None
    """None where there was nothing to judge, which keeps nothing from going live."""

    def __str__(self) -> str:
        """Return it as a part of a sentence."""
        return f"{self.name}: got {_said(self.got)}, wanted {self.wanted}"


def failed(gates: Sequence[Gate]) -> list[Gate]:
    """Return those that a result did not pass."""
    return [gate for gate in gates if gate.passed is False]


def shares_of(record: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the classes' shares that a record tells; None where no pixel has one."""
    try:
        pixels = record["pixels"]
        counts = {str(name): int(count) for name, count in pixels["by_class"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else None


def judge(
    gates: Gates,
    record: Mapping[str, Any],
    *,
    live: Mapping[str, Any] | None,
    history: Sequence[Shares] = (),
    canary: float | None = None,
) -> list[Gate]:
    """Say which gates a result passes.

    Args:
        gates: the bounds.
        record: the result's, whose rasters were verified.
        live: the record of what is live in its place; None for nothing.
        history: shares of the series' results, of the same classes.
        canary: share of the golden tiles' labels that the network gave again; None if
            it was not asked.
    """
    pixels = record["pixels"]
    nodata = pixels["nodata"] / pixels["total"] if pixels["total"] else None
    wanted = "rasters that are what their shards say"
    found = [Gate("valid", "so", wanted, passed=True)]  # else there is no record
    if gates.grid:
        found.append(_grid(record, live))
    found += [
        _at_most(name, got, most)
        for name, got, most in (
            ("seams", record["seams"]["ratio"], gates.seams),
            ("drift", record.get("drift"), gates.drift),
            ("nodata", nodata, gates.nodata),
        )
        if most is not None
    ]
    if gates.precision is not None:
        # In fp32 there is nothing to agree with, whatever was tried before.
        is_fast = record["engine"]["precision"] != "fp32"
        agreement = record["precision_check"]["agreement"] if is_fast else None
        found.append(_at_least("precision", agreement, gates.precision))
    if gates.canary:
        gate = _at_least("canary", canary, gates.canary_share)
        # Who made a result that was never asked cannot be asked any more.
        found.append(replace(gate, passed=bool(gate.passed)))
    return found + list(_shares(gates, shares_of(record), history))


def _at_most(name: str, got: float | None, most: float) -> Gate:
    passed = None if got is None else got <= most
    return Gate(name, got, f"at most {most:g}", passed)


def _at_least(name: str, got: float | None, least: float) -> Gate:
    passed = None if got is None else got >= least
    return Gate(name, got, f"at least {least:g}", passed)


_ASKED = ("input", "join", "crs", "resolution")
_GRID = ("width", "height", "crs", "transform")


def _grid(record: Mapping[str, Any], live: Mapping[str, Any] | None) -> Gate:
    """Compare grids where the same was asked for: the same scene, brought to no other.

    Which part of it was asked for is the job's own matter.
    """
    wanted = "the live version's size, CRS and transform"
    jobs = [(it or {}).get("job") or {} for it in (record, live)]
    if live is None or any(jobs[0].get(key) != jobs[1].get(key) for key in _ASKED):
        return Gate("grid", None, wanted, None)
    scenes = record["scene"], live.get("scene", {})
    differing = [key for key in _GRID if scenes[0][key] != scenes[1].get(key)]
    got = f"another {', '.join(differing)}" if differing else "the same"
    return Gate("grid", got, wanted, not differing)


def _shares(
    gates: Gates, shares: Shares | None, history: Sequence[Shares]
) -> Iterator[Gate]:
    """Compare each class's share with its mean in the series; tell of the worst."""
    few = len(history) < gates.history_least
    bounds = {"class_std": gates.class_std, "class_jump": gates.class_jump}
    for name, bound in bounds.items():
        if bound is None:
            continue
        wanted = f"each class at most {bound:g}"
        wanted += " std" if name == "class_std" else ""
        wanted += f" off its mean of the last {len(history)}"
        if few or shares is None:
            reason = f" ({gates.history_least} or more are needed)" if few else ""
            yield Gate(name, None, wanted + reason, None)
            continue
        offs = {
            key: _off(name, shares[key], [it[key] for it in history]) for key in shares
        }
        worst = max(offs, key=lambda key: offs[key])
        got = {"class": worst, "off": offs[worst], "share": shares[worst]}
        got["mean"] = fmean(it[worst] for it in history)
        yield Gate(name, got, wanted, offs[worst] <= bound)


def _off(name: str, share: float, before: Sequence[float]) -> float:
    off = abs(share - fmean(before))
    return off / max(pstdev(before), _LEAST_STD) if name == "class_std" else off


def _said(got: object) -> str:
    if isinstance(got, dict):
        mean, share = got["mean"], got["share"]
        return f"{got['class']} {share:.1%} (mean {mean:.1%}, {got['off']:.3g} off)"
    return f"{got:.{_DIGITS}g}" if isinstance(got, float) else str(got)
