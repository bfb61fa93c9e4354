"""Models that answer as one: what they must share, and what each one is shown.

Plain values, which travel to where the workers are; knows no network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tileseg.base.builtin import model_folder, portable_name
from tileseg.base.choices import SYMMETRIES
from tileseg.cards.card import Card
from tileseg.cards.item import read_card
from tileseg.errors import UsageError
from tileseg.settings import Job

__all__ = ["Channel", "Ensemble", "read_ensemble"]

_DECIDED = (  # by the first model, for all
    ("outputs", "{} logit(s) a pixel"),
    ("tile", "a tile of {}"),
    ("halo", "a halo of {}"),
    ("unit", "unit {}"),
    ("fields", "fields {}"),
)


@dataclass(frozen=True, slots=True)
class Channel:
    """What a network is shown of a band, (value - mean) / std."""

    band: int
    """Which one, of the ensemble's."""
    mean: float
    """In the cards' unit."""
    std: float
    """Likewise."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """One model or several, and how often each of them looks at a tile."""

    folders: tuple[str, ...]
    """What they are called, wherever that is asked: see `builtin.portable_name`."""
    cards: tuple[Card, ...]
    """Theirs, in the same order."""
    tta: str = "none"
    """See `Job.tta`."""

    def __post_init__(self) -> None:
        """Refuse models whose answers have no average."""
        for message in self._faults():
            raise UsageError(message)

    def _faults(self) -> Iterator[str]:
        """Say what of a later model is not as the first one has it."""
        ways = "their answers have no average; run a job for each, or train them alike"
        first = self.card
        for number, card in enumerate(self.cards[1:], start=2):
            who = f"--model: the {_ordinal(number)} one ({card.name} {card.version})"
            if card.sha256 in {item.sha256 for item in self.cards[: number - 1]}:
                yield f"{who} has the weights of one before it; name each model once"
            names = [[item.name for item in it.classes] for it in (card, first)]
            if names[0] != names[1]:
                got, wanted = map(", ".join, names)
                yield f"{who} has the classes {got}, the first one {wanted}: {ways}"
            for field, words in _DECIDED:
                got, wanted = (words.format(getattr(it, field)) for it in (card, first))
                if got != wanted:
                    yield f"{who} has {got}, the first one {wanted}: {ways}"

    @property
    def card(self) -> Card:
        """The first one's: what it says of classes, tile, halo and unit holds for all.

        What it says of bands and weights does not.
        """
        return self.cards[0]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The model folders, on this machine."""
        return tuple(map(model_folder, self.folders))

    @property
    def forwards(self) -> int:
        """How often a network sees a tile."""
        return len(self.cards) * SYMMETRIES[self.tta]

    @property
    def title(self) -> str:
        """What to call it: names and versions."""
        return " + ".join(f"{card.name} {card.version}" for card in self.cards)

    def joined(self, field: str) -> str:
        """Return what each card says of itself, joined by ` + `."""
        return " + ".join(str(getattr(card, field)) for card in self.cards)

    @property
    def bands(self) -> tuple[str, ...]:
        """All that are read: the first model's, then what the next ones add."""
        others = (band for card in self.cards[1:] for band in card.bands)
        added = dict.fromkeys(band for band in others if band not in self.card.bands)
        return (*self.card.bands, *added)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """All that the networks are shown, each once."""
        return tuple(dict.fromkeys(it for card in self.cards for it in self._of(card)))

    def shown(self) -> Iterator[tuple[int, ...]]:
        """Yield, for each model, which of the channels are its network's inputs."""
        at = {channel: place for place, channel in enumerate(self.channels)}
        for card in self.cards:
            yield tuple(at[channel] for channel in self._of(card))

    def places(self, card: Card) -> list[int]:
        """Return which of the bands a model's network is shown, in its order."""
        # The first one's by place: nothing keeps a card from naming two bands alike.
        own = card.bands
        places = range(len(own)) if card is self.card else map(self.bands.index, own)
        return list(places)

    def _of(self, card: Card) -> Iterator[Channel]:
        """Yield a model's channels, in the order of its network's inputs."""
        facts = zip(self.places(card), card.mean, card.std, strict=True)
        yield from (Channel(*values) for values in facts)

    def gains(
        self, scale: Sequence[tuple[float, ...]]
    ) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
        """Return (gain, bias, band) per channel: stored values to networks' inputs.

        Args:
            scale: (scale, offset) of each of the bands: stored values to the unit.
        """
        channels = self.channels
        pairs = [(*scale[it.band], it.mean, it.std) for it in channels]
        gain = tuple(factor / std for factor, _, _, std in pairs)
        bias = tuple((offset - mean) / std for _, offset, mean, std in pairs)
        return gain, bias, tuple(it.band for it in channels)

    @property
    def tile(self) -> int:
        """Side of a tile in pixels."""
        return self.card.tile

    @property
    def floats(self) -> int:
        """Numbers that a forward holds at once for each pixel; one runs at a time."""
        return max(card.floats for card in self.cards)

    @property
    def ends(self) -> int:
        """Numbers that go in and come out for each pixel, with those being averaged.

        While there is an average: a network's own, turned tiles, its answer, as
        probabilities, these turned back, and the sum of all before.
        """
        own = len(self.channels) + self.card.outputs
        if self.forwards == 1:
            return own
        widest = max(len(card.bands) for card in self.cards)
        return own + widest + 4 * self.card.outputs


def read_ensemble(job: Job) -> Ensemble:
    """Read the cards of a job's models.

    Raises:
        UsageError: they cannot answer as one.
        ModelError: a folder holds no usable card.
        RefusedError: a model is a program, or its weights could run code.
    """
    cards = tuple(read_card(model_folder(name)) for name in job.models)
    for card in cards:
        card.check_trust(is_trusted=job.trust_model_code)
    return Ensemble(tuple(map(portable_name, job.models)), cards, job.tta)


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
