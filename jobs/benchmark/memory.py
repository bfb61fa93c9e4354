"""Peak memory against the scene's size, each job in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmark.scenes import Kind, make_model, make_scene
from benchmark.setting import Setting
from benchmark.table import Row

__all__ = ["Case", "measure", "row_of"]

JOBS = Path(__file__).parents[1]
_SIMULATED = 100_000.0  # tiles a second: never what is waited for
_SPARSE = 64
_PATIENCE = 1800  # seconds for one job
_REASON = 160  # letters of why something failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A scene, a model and options."""

    kind: Kind
    """The scene."""
    classes: int = 2
    """Of the model."""
    confidence: bool = False
    """Whether that is made too."""
    is_simulated: bool = True
    """Whether a network of no cost takes the real one's place."""

    @property
    def name(self) -> str:
        """What it is, in a line."""
        kind = self.kind
        size = f"{kind.height:,} × {kind.width:,}"
        layer = ", confidence" if self.confidence else ""
        real = "" if self.is_simulated else ", real network"
        pixels = f"{kind.bands} × {kind.dtype}"
        return f"{size}, {pixels}, {self.classes} classes{layer}{real}"

    @property
    def note(self) -> str:
        """What one must know to read its row."""
        sparse = (
            f"one block in {self.kind.every} has data" if self.kind.every > 1 else ""
        )
        device = "a simulated network" if self.is_simulated else "the real network"
        return f"{device}; {sparse}" if sparse else device


def measure(setting: Setting) -> Iterator[Row]:
    """Yield a row for every scene."""
    for case in _cases(quick=setting.quick):
        yield row_of(case, setting)


def _cases(*, quick: bool) -> Iterator[Case]:
    small = (
        Kind(height=2_048, width=2_048) if quick else Kind(height=4_096, width=4_096)
    )
    yield Case(kind=small, is_simulated=False)
    yield Case(kind=small)
    yield Case(kind=small, classes=20, confidence=True)
    if quick:
        yield Case(kind=Kind(height=8_192, width=8_192, every=8))
        return
    large = Kind(height=32_768, width=32_768, every=8)
    wide = Kind(height=4_096, width=200_000, every=_SPARSE)
    for kind in (large, wide):
        yield Case(kind=kind)
        yield Case(kind=kind, confidence=True)
        yield Case(kind=kind, classes=20)
        yield Case(kind=kind, classes=20, confidence=True)
    for side in (4_096, 8_192):
        yield Case(
            kind=Kind(height=side, width=side, bands=12, dtype="float32", codec="lzw")
        )


def row_of(case: Case, setting: Setting) -> Row:
    """Do the job in a process of its own; say what it took."""
    scene = make_scene(case.kind, setting.folder / "scenes")
    bands, classes = case.kind.bands, case.classes
    model = make_model(setting.folder, width=8, bands=bands, classes=classes)
    with TemporaryDirectory() as place:
        job = {
            "input": str(scene),
            "model": str(model),
            "output": str(Path(place) / "out"),
            "device": setting.device.name.partition(":")[0],
            "engine": "local",
            "confidence": case.confidence,
        }
        try:
            said = run_child(job, _SIMULATED if case.is_simulated else None)
        except subprocess.SubprocessError as err:
            lines = str(getattr(err, "stderr", "") or err).strip().splitlines()
            note = f"{case.note}; failed: {lines[-1][:_REASON]}"
            return Row("memory", case.name, {"above_mb": None}, note)
    values = said["run"]
    figures = {
        "above_mb": said["peak_mb"] - said["loaded_mb"],
        "predicted_mb": values["estimate"]["memory_mb"],
        "loaded_mb": said["loaded_mb"],
        "device_mb": values["memory"]["device_mb"],
        "mpx_s": case.kind.mpx / said["seconds"],
        "seconds": said["seconds"],
        "mpx": case.kind.mpx,
    }
    return Row("memory", case.name, figures, case.note)


def run_child(job: dict[str, Any], rate: float | None) -> dict[str, Any]:
    """Do a job in a process of its own; return what `child.py` says.

    Raises:
        subprocess.SubprocessError: it failed, or took too long.
    """
    wish = json.dumps({"job": job, "rate": rate})
    paths = [str(JOBS), str(JOBS.parent), os.environ.get("PYTHONPATH", "")]
    out = subprocess.run(  # noqa: S603  (our own program)
        [sys.executable, "-m", "benchmark.child", wish],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        check=True,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    ).stdout
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    return said
