"""Which values of a mask make a pixel invalid: one rule, said in a line. Pure."""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.base.address import shown
from tileseg.errors import UsageError

__all__ = ["Rule", "parse_rule"]

_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LIST = rf"{_NUMBER}(?:\s*,\s*{_NUMBER})*"
_RULE = re.compile(
    rf"(?P<source>.*\S)(?<!\snot)\s+(?:(?P<verb>in|not\s+in|bits)\s+(?P<values>{_LIST})"
    rf"|(?P<sign>>=|<=|>|<)\s*(?P<bound>{_NUMBER}))"
)
_MOST_BITS = 64
_OWN = "band:"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is invalid by a mask: where `verb` holds for its value and `values`."""

    source: str
    """`band:NAME` of the scene, or the mask's file or address."""
    verb: str
    """`in`, `not in`, `bits` (any of them set), `>`, `>=`, `<` or `<=`."""
    values: tuple[float, ...]
    """What the value is compared with; of `bits` their numbers, from 0."""

    def facts(self) -> list[Any]:
        """Return what it does, as JSON has it; not where the mask lies."""
        return [self.verb, *self.values]

    def with_source(self, source: str) -> "Rule":
        """Return the same rule about another source."""
        return replace(self, source=source)

    def __str__(self) -> str:
        """Return the line that says it."""
        numbers = ",".join(f"{value:.15g}" for value in self.values)
        return f"{self.source} {self.verb} {numbers}"

    @property
    def band(self) -> str:
        """Which of the scene's own bands it is about; empty for another file."""
        return self.source[len(_OWN) :] if self.source.startswith(_OWN) else ""

    def hits(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return True where a value makes its pixel invalid; NaN and Inf always do."""
        match self.verb:
            case "in":
                hit = np.isin(values, self.values)
            case "not in":
                hit = np.isin(values, self.values, invert=True)
            case "bits":
                bits = sum(1 << int(bit) for bit in set(self.values))
                hit = values.astype(np.int64).view(np.uint64) & np.uint64(bits) != 0
            case ">":
                hit = values > self.values[0]
            case ">=":
                hit = values >= self.values[0]
            case "<":
                hit = values < self.values[0]
            case _:
                hit = values <= self.values[0]
        return hit | ~np.isfinite(values) if values.dtype.kind == "f" else hit


def parse_rule(text: str) -> Rule:
    """Read `<source> in 3,8`, `... not in 4,5`, `... bits 1,3` or `... > 40`.

    Raises:
        UsageError: it is none of these.
    """
    found = _RULE.fullmatch(text.strip())
    if not found:
        msg = (
            f"mask: got {shown(text)!r}, wanted a file or band:NAME and a rule: "
            "'scl.tif in 3,8', 'scl.tif not in 4,5', 'qa.tif bits 1,3' or 'c.tif > 40'"
        )
        raise UsageError(msg)
    verb = " ".join((found["verb"] or found["sign"]).split())
    values = tuple(float(n) for n in (found["values"] or found["bound"]).split(","))
    if verb == "bits" and not all(n in range(_MOST_BITS) for n in values):
        msg = f"mask: got {shown(text)!r}, wanted bits by their numbers, 0 to 63"
        raise UsageError(msg)
    return Rule(found["source"], verb, values)
