"""Other libraries side by side with tileseg: same scene, same network, same machine."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from benchmark import whole
from benchmark.scenes import Kind, make_scene, own_model
from benchmark.setting import Setting
from benchmark.table import Figures, Row, spread
from tileseg.cards.card import Card
from tileseg.network.model import load_module
from tileseg.plans.task import Task, prepare

__all__ = ["Contest", "contest_of", "measure", "own_figures", "peer_figures", "rows_of"]

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "peers" / "bin" / "python"
_PATIENCE = 900  # seconds for one whole job of a library
_REASON = 160  # letters of why something failed

# What is installed (see requirements/peers.in) to the program that uses it.
PROGRAMS = {
    "DataLoader of rasterio windows": "windows",
    "torchgeo GridGeoSampler": "torchgeo_grid",
    "MONAI sliding_window_inference": "monai_window",
    "terratorch tiled_inference": "terratorch_tiled",
    "geoai predict_geotiff": "geoai_geotiff",
    "Ray Data map_batches": "ray_data",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One scene and one network for everybody."""

    scene: Path
    """The file."""
    model: Path
    """The model folder."""
    task: Task
    """What tileseg makes of the two."""
    reference: NDArray[np.uint8]
    """The labels that are right, (height, width)."""
    setting: Setting
    """Device, rounds."""

    def figures(
        self, seconds: float, tiles: float, alone: float, labels: NDArray[np.uint8]
    ) -> Figures:
        """Return what is said of one whole job."""
        return {
            "mpx_s": self.reference.size / 1e6 / seconds,
            "tiles_s": tiles / seconds,
            "ratio": tiles / seconds / alone,
            "agree": float((labels == self.reference).mean()),
        }


def measure(setting: Setting) -> Iterator[Row]:
    """Yield rows for tileseg and every library, on a scene for each base width."""
    side = setting.small
    contests = {16: side} if setting.quick else {8: side, 16: side, 64: side}
    if not setting.is_gpu and 64 in contests:  # noqa: PLR2004  (a width)
        contests[64] = 1_024  # else it is an hour
    for width, size in contests.items():
        kind = Kind(height=size, width=size)
        scene = make_scene(kind, setting.folder / "scenes")
        model = own_model(setting.folder, width)
        whole.one_job(scene, model, setting)  # imports, and what is done only once
        contest = contest_of(scene, model, setting)
        yield from rows_of(contest, f"width {width}, {size}²")


def contest_of(scene: Path, model: Path, setting: Setting) -> Contest:
    """Make ready for everybody, with the reference."""
    with TemporaryDirectory() as place:
        task = prepare(whole.job_of(scene, model, setting, place))
    return Contest(
        scene=scene,
        model=model,
        task=task,
        reference=_reference(scene, model, task, setting),
        setting=setting,
    )


def _reference(
    scene: Path, model: Path, task: Task, setting: Setting
) -> NDArray[np.uint8]:
    """Return the labels of the plain network in fp32, tile by tile, cores side by side.

    Shares no code with what is measured but the network.
    """
    card = task.card
    gain, bias = np.array(task.gains()[:2])
    with rasterio.open(scene) as source:
        pixels = source.read() * gain[:, None, None] + bias[:, None, None]
    height, width = pixels.shape[1:]
    end = (-height % card.stride, -width % card.stride)
    margins = [(0, 0), *((card.halo, card.halo + more) for more in end)]
    padded = torch.from_numpy(np.pad(pixels.astype(np.float32), margins, "symmetric"))
    labels = np.zeros((height, width), np.uint8)
    module = load_module(model, card).to(setting.device.name).eval()
    torch.backends.cudnn.allow_tf32 = False
    for row in range(0, height, card.stride):
        tiles = padded[:, row : row + card.tile].unfold(2, card.tile, card.stride)
        part = _labels_of(module, tiles.permute(2, 0, 1, 3), card, setting)
        labels[row : row + card.stride] = part[: height - row, :width]
    return labels


def _labels_of(
    module: torch.nn.Module, tiles: torch.Tensor, card: Card, setting: Setting
) -> NDArray[np.uint8]:
    """Return the labels of the cores of a row of tiles, (stride, tiles * stride)."""
    core = slice(card.halo, card.tile - card.halo)
    with torch.inference_mode():
        parts = [
            module(part.to(setting.device.name))[:, :, core, core].argmax(dim=1).cpu()
            for part in tiles.split(setting.batch(card))
        ]
    labels = torch.cat(list(torch.cat(parts)), dim=1)
    return labels.numpy().astype(np.uint8)


def rows_of(contest: Contest, name: str) -> Iterator[Row]:
    """Yield everybody's row, all in turns."""
    found: dict[str, list[Figures]] = {}
    notes: dict[str, str] = {}
    for _ in range(contest.setting.rounds):
        found.setdefault("tileseg", []).append(own_figures(contest))
        for peer, program in PROGRAMS.items():
            if peer in notes:
                continue  # it will not do better
            figures, note = peer_figures(contest, program)
            if note:
                notes[peer] = note
            else:
                found.setdefault(peer, []).append(figures)
    own = median(float(item["mpx_s"] or 0) for item in found["tileseg"])
    for peer in ("tileseg", *PROGRAMS):
        figures = _medians(found.get(peer, []))
        if figures:
            figures["tileseg_is"] = own / float(figures["mpx_s"] or 1)
        yield Row("peers", f"{peer}, {name}", figures, notes.get(peer, ""))


def _medians(rounds: list[Figures]) -> Figures:
    if not rounds:
        return {}
    middles: Figures = {
        key: median(float(item[key] or 0) for item in rounds) for key in rounds[0]
    }
    apart = spread(float(item["mpx_s"] or 0) for item in rounds)
    return middles | {"spread": apart}


def own_figures(contest: Contest) -> Figures:
    """Do tileseg's whole job, with all its defaults, in this process."""
    setting = whole.guarded(contest.scene, contest.model, contest.setting)
    alone = whole.own_rate(contest.model, setting)
    with TemporaryDirectory() as place:
        job = whole.job_of(contest.scene, contest.model, setting, place)
        took = whole.done(job)
        with rasterio.open(job.output_path / "mask.tif") as mask:
            labels = mask.read(1)
    seconds = float(took["seconds"] or 0)
    return contest.figures(
        seconds, float(took["tiles_s"] or 0) * seconds, alone, labels
    )


def peer_figures(contest: Contest, program: str) -> tuple[Figures, str]:
    """Run a library's program in its own Python; return figures, or a reason."""
    with TemporaryDirectory() as place:
        mask = Path(place) / "mask.tif"
        try:
            said = _run(program, _wish(contest, mask))
            labels = np.load(mask.with_suffix(".npy"))
        except (OSError, subprocess.SubprocessError, ValueError, LookupError) as err:
            return {}, _reason(err)
    figures = contest.figures(said["seconds"], said["tiles"], said["alone"], labels)
    return figures, ""


def _wish(contest: Contest, mask: Path) -> dict[str, Any]:
    card, setting = contest.task.card, contest.setting
    gain, bias, _ = contest.task.gains()
    return {
        "scene": str(contest.scene),
        "weights": str(contest.model / card.weights),
        "width": card.architecture.parameters["width"],
        "bands": len(card.bands),
        "classes": card.outputs,
        "gain": gain,
        "bias": bias,
        "tile": card.tile,
        "stride": card.stride,
        "batch": 64 if setting.is_gpu else setting.batch(card),
        "workers": min(14, len(os.sched_getaffinity(0))),
        "device": setting.device.name,
        "mask": str(mask),
    }


def _run(program: str, wish: dict[str, Any]) -> dict[str, float]:
    done = subprocess.run(  # noqa: S603  (our own program)
        [str(python()), "-m", "benchmark.peer", program, json.dumps(wish)],
        check=True,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "jobs"))),
        },
    )
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return said


def python() -> Path:
    """Return the Python that has the libraries: `make peers` makes it."""
    return Path(os.environ.get("TILESEG_PEERS", PYTHON))


def _reason(err: Exception) -> str:
    """Return why a library's program gave nothing, in a line."""
    if isinstance(err, FileNotFoundError):
        return "not installed: make peers"
    if isinstance(err, subprocess.TimeoutExpired):
        return f"given up after {_PATIENCE} s"
    if isinstance(err, subprocess.CalledProcessError):
        lines = (err.stderr or "").strip().splitlines() or [str(err)]
        return f"failed: {lines[-1][:_REASON]}"
    return f"failed: {str(err)[:_REASON]}"
