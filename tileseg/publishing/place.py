"""What a job does with the place of a scene's outputs, a folder or a bucket."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from tileseg.publishing.versions import Version

__all__ = ["PARKED", "Listed", "Place"]

PARKED = "parked"
"""The status of a result that a gate keeps from going live."""

Listed = Iterable[Mapping[str, Any]]
"""Files: path, bytes and sha256 of each."""


class Place(Protocol):
    """Where the outputs of one scene go, and what a job does there."""

    def published(self) -> dict[str, Any] | None:
        """Return the record of what is there; None if it is empty."""

    def is_complete(self, record: dict[str, Any], request_id: str) -> bool:
        """Return whether `record` answers the request and its files are intact."""

    def sweep(self) -> None:
        """Remove what killed runs left of versions that are not the published one."""

    def staging(self) -> AbstractContextManager[Path]:
        """Give an empty local folder; publish it if all goes well.

        With a record whose status is `PARKED` beside what is published.
        """

    def list_outputs(
        self, folder: Path, plan_id: str, listed: Listed = ()
    ) -> list[dict[str, Any]]:
        """Return path, bytes and sha256 of every file of the folder, once published.

        Args:
            folder: with the files.
            plan_id: whose they are.
            listed: see `list_outputs` of publish.py.
        """

    def parked(self) -> dict[str, Any] | None:
        """Return the record of the result that a gate keeps from going live, if any."""

    def holds_parked(self, record: dict[str, Any]) -> bool:
        """Return whether the files of the parked result are intact."""

    def kept(self) -> list[Version]:
        """Return the versions that were live before; the last one first."""

    def rolled_back(self) -> frozenset[str]:
        """Return the ids of requests whose results were live and were taken back."""

    def release(self, gates: list[Any] | None = None) -> dict[str, Any]:
        """Make the parked result live, and return its record.

        Args:
            gates: what its record is to say of them anew.

        Raises:
            OutputError: there is none, or its files are not intact.
            BusyError: another run is publishing.
        """

    def discard_parked(self) -> None:
        """Remove the parked result.

        Raises:
            BusyError: another run is publishing.
        """

    def roll_back(self, wanted: str = "") -> dict[str, Any]:
        """Make a kept version live, and return its record; keep the one that was.

        Args:
            wanted: see `versions.choose`.

        Raises:
            OutputError: there is no such version, or its files are not intact.
            BusyError: another run is publishing.
        """
