"""Scenes + labels -> a model folder: what is asked, in order, and what is left.

A network sees batches; after each epoch it is judged on blocks that it never saw; the
best epoch's weights are kept, made to say how sure they are, and written with a card.
"""

import json
import logging
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tileseg.base.address import shown
from tileseg.base.classes import LandClass
from tileseg.base.stopping import Stop
from tileseg.cards.architecture import unet
from tileseg.cards.card import Card
from tileseg.cards.item import read_card, write_card
from tileseg.errors import OtherPlanError, UsageError
from tileseg.evaluation.scores import plain
from tileseg.network.model import load_module, round_weights, save
from tileseg.network.unet import UNet
from tileseg.plans.task import refuse_vanishing
from tileseg.stores.lock import hold
from tileseg.stores.storage import Disk
from tileseg.training.calibrate import cool, fit_temperature, head
from tileseg.training.curve import draw_curve
from tileseg.training.split import TEST, VALIDATION
from tileseg.training.survey import Survey, survey
from tileseg.training.team import ALONE, Team
from tileseg.training.train_checkpoint import forget_checkpoint
from tileseg.training.train_loop import Listener, Loop
from tileseg.training.train_settings import Settled, Training

if TYPE_CHECKING:
    from tileseg.training.train_ray import Member

__all__ = ["summary", "train"]

logger = logging.getLogger(__name__)

_METRICS = "metrics.json"


def _nobody(_done: int, _total: int) -> None:
    """Tell nobody."""


def train(
    training: Training, stop: Stop | None = None, told: Listener = _nobody
) -> Card:
    """Train a network and write its model folder; go on where a killed one stopped.

    The same inputs, options and numbers of workers and threads give the same weights on
    one machine, to the byte, however often it was killed on the way.

    Args:
        training: what is asked for.
        stop: the wish to end, which is obeyed after the step in hand.
        told: is told the tiles seen, and all tiles.

    Returns:
        The card, as it is written.

    Raises:
        OtherPlanError: the folder, or the work, is another training's.
        BusyError: another process is at it.
        StopSignal: it was asked to end, and can go on.
        TilesegError: see `survey`, and `train_on_ray` of that engine.
    """
    refuse_vanishing(to=training.to)
    base = _base(training)
    whole = training.settled(_shape(base) if base else None)
    if whole.engine == "ray":
        whole = whole.placed()
    work = Disk(whole.work)
    found = survey(whole, base, work)
    _check(whole, found)
    if _is_done(whole, found.key):
        logger.info("%s: nothing to do, it is complete", whole.folder)
        return read_card(whole.folder)
    with hold(work, found.key):
        found.files.remember(work)
        if whole.overwrite:
            forget_checkpoint(whole.work, unless=found.key)
        _say(found)
        learn = partial(_learn, whole, found)
        if whole.engine == "ray":
            _on_ray(learn, whole, stop or Stop(), told)
        else:
            learn(ALONE, stop or Stop(), told)
    work.clear()
    return read_card(whole.folder)


def _learn(
    training: Settled,
    found: Survey,
    team: Team,
    stop: Stop,
    told: Listener,
) -> None:
    """Train a network, as one of a team, and write its folder."""
    torch.manual_seed(training.seed)
    network = _network(training, found)
    loop = Loop(training, found, network, stop, team)
    loop.run(told)
    _finish(training, found, loop)


def _on_ray(learn: "Member", training: Training, stop: Stop, told: Listener) -> None:
    """Let Ray's workers learn.

    Raises:
        UsageError: Ray is not installed.
    """
    if find_spec("ray") is None or find_spec("pandas") is None:  # Ray Train asks for it
        msg = "engine ray: Ray Train is not installed; pip install 'tileseg[ray]'"
        raise UsageError(msg)
    from tileseg.training.train_ray import train_on_ray

    train_on_ray(learn, training, stop, told)


def summary(training: Training) -> dict[str, Any]:
    """Return what a trained model's folder says of its scores, in short."""
    metrics = json.loads((training.folder / _METRICS).read_text())
    keys = "accuracy", "macro_f1", "calibration_error"
    return {
        "model": str(training.folder),
        "epochs": len(metrics["epochs"]),
        "best_epoch": metrics["best_epoch"],
        **{
            part: {key: metrics[part][key] for key in keys}
            for part in ("validation", "test")
            if part in metrics
        },
    }


def _base(training: Training) -> Card | None:
    """Return the card of the model to go on from.

    Raises:
        UsageError: it cannot be trained, or not on these bands.
    """
    if not training.base:
        return None
    card = read_card(training.base_folder)
    if card.architecture.kind != "unet":
        msg = (
            f"{training.base}: is a network of kind {card.architecture.kind}, and only "
            "our own U-Net can be trained"
        )
        raise UsageError(msg)
    if training.bands and len(training.bands) != len(card.bands):
        msg = (
            f"bands: got {len(training.bands)}, wanted {len(card.bands)}, as "
            f"{training.base} has"
        )
        raise UsageError(msg)
    return card


def _shape(base: Card) -> dict[str, Any]:
    """Return what a base decides of a training: fields of `Settled`."""
    own = base.architecture.parameters
    return {
        "unit": base.unit, "width": own["width"], "depth": own["depth"],
        "tile": base.tile, "halo": base.halo,
    }  # fmt: skip


def _check(training: Settled, found: Survey) -> None:
    """Refuse now what the card would refuse at the end.

    Raises:
        UsageError: there is something.
    """
    try:
        _card(training, found, "0" * 64, None)
    except ValueError as err:
        msg = f"{training.folder}: would be no usable model: it {err}"
        raise UsageError(msg) from err


def _is_done(training: Training, key: str) -> bool:
    """Return whether the folder holds the model that is asked for.

    Raises:
        OtherPlanError: it holds another one, which is not to be replaced.
    """
    if not (training.folder / "card.json").exists():
        return False
    try:
        known = json.loads((training.folder / _METRICS).read_text())["key"]
    except (OSError, ValueError, TypeError, LookupError):
        known = None
    if known != key and not training.overwrite:
        msg = (
            f"{training.folder}: holds another model (other data, options or version); "
            "replace it with --overwrite, or choose another --to"
        )
        raise OtherPlanError(msg)
    return bool(known == key)


def _say(found: Survey) -> None:
    """Log what there is to learn from, and what no score will speak of."""
    for part, classes in found.labelled().items():
        if not any(classes.values()):  # nothing was asked for
            continue
        text = ", ".join(f"{name} {pixels:,}" for name, pixels in classes.items())
        logger.info("%s pixels: %s", part, text)
        missing = [name for name, pixels in classes.items() if not pixels]
        if missing:
            text = (
                "no label of %s lies in blocks for %s, whose scores do not speak of "
                "it: label more places, or cut other blocks (--block, --seed)"
            )
            logger.warning(text, ", ".join(missing), part)


def _network(training: Settled, found: Survey) -> nn.Module:
    """Return a network with random weights, or the base's.

    That gets a new last layer where the classes are others, and of one logit a second.
    """
    outputs, base = len(found.classes), found.base
    if base is None:
        width, depth = training.width, training.depth
        return UNet(len(found.bands), outputs, width=width, depth=depth)
    network = load_module(training.base_folder, base)
    last = head(network)
    if not _keeps_classes(base, found):
        logger.info("%s: other classes, so its last layer is new", training.base)
        network.final_conv = nn.Conv2d(last.in_channels, outputs, kernel_size=1)
    elif base.outputs == 1:
        network.final_conv = _with_background(last)
    return network


def _keeps_classes(base: Card, found: Survey) -> bool:
    """Return whether values mean what they mean to the base."""
    return [item.name for item in base.classes] == [name for name, _ in found.classes]


def _with_background(last: nn.Conv2d) -> nn.Conv2d:
    """Return a layer of two logits, 0 and that of `last`: softmax is its sigmoid."""
    both = nn.Conv2d(last.in_channels, 2, kernel_size=1)
    assert both.bias is not None, "it was made with one"
    assert last.bias is not None, "our U-Net's last layer has one"
    nn.init.zeros_(both.weight)
    nn.init.zeros_(both.bias)
    both.weight.data[1:] = last.weight.data
    both.bias.data[1:] = last.bias.data
    return both


def _finish(training: Settled, found: Survey, loop: Loop) -> None:
    """Calibrate and judge the best weights, and write the model folder.

    The card comes last: it makes a folder a model.
    """
    metrics, temperature = _metrics(training, found, loop)
    if loop.team.rank > 0:
        return
    data, sha256 = save(loop.network.cpu())
    card = _card(training, found, sha256, temperature)
    folder = Disk(training.folder)
    folder.remove("card.json")
    folder.write(card.weights, data)
    folder.write(_METRICS, (json.dumps(plain(metrics), indent=1) + "\n").encode())
    folder.write("curve.png", draw_curve(loop.progress.epochs, loop.best_epoch))
    write_card(training.folder, card)
    for part in ("validation", "test"):
        if part in metrics:
            text = "%s blocks: accuracy %.3f, macro-F1 %.3f, calibration error %.3f"
            keys = "accuracy", "macro_f1", "calibration_error"
            logger.info(text, part, *(metrics[part][key] for key in keys))
    logger.info(
        "%s: epoch %d of %d is kept", folder, loop.best_epoch, len(loop.progress.epochs)
    )


def _metrics(
    training: Settled, found: Survey, loop: Loop
) -> tuple[dict[str, Any], float | None]:
    """Return all that was measured, and the temperature that the logits now have.

    The scores are of the very weights that are left in the network: rounded, cooled.
    """
    progress = loop.progress
    metrics: dict[str, Any] = {
        "key": found.key,
        "best_epoch": loop.best_epoch,
        "epochs": progress.epochs,
        "labelled": found.labelled(),
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "ms_per_step": round(1000 * progress.seconds / progress.step, 3),
        "workers": loop.team.size,
        "threads": torch.get_num_threads(),
        "training": {
            **asdict(training), "scenes": [shown(path) for path in training.scenes]
        },
    }  # fmt: skip
    round_weights(loop.network)
    temperature = None
    if training.validation:
        seen = loop.judge(VALIDATION)
        temperature = round(fit_temperature(seen.logits, seen.labels), 4)
        cool(loop.network, temperature)
        round_weights(loop.network)
        metrics["temperature"] = temperature
        metrics["calibration_error_before"] = seen.scores()["calibration_error"]
        metrics["validation"] = loop.judge(VALIDATION).scores()
    if training.test:
        metrics["test"] = loop.judge(TEST).scores()
    return metrics, temperature


def _card(
    training: Settled, found: Survey, sha256: str, temperature: float | None
) -> Card:
    """Return the card of what was trained."""
    samples = found.samples
    about: dict[str, Any] = {"training_pixels": found.labelled()["training"]}
    fields: tuple[int, ...] = ()
    if base := found.base:
        about["base"] = f"{base.name}-{base.version}, {base.sha256}"
        fields = base.fields if _keeps_classes(base, found) else ()
    return Card(
        name=training.folder.name,
        version="1",
        bands=found.bands,
        unit=samples.ground.unit,
        mean=samples.mean,
        std=samples.std,
        tile=training.tile,
        halo=training.halo,
        classes=tuple(LandClass(n, *item) for n, item in enumerate(found.classes)),
        fields=fields,
        outputs=len(found.classes),
        architecture=unet(training.width, training.depth),
        sha256=sha256,
        gsd=found.gsd,
        gsd_range=found.gsd_range,
        about=about,
        statistics=found.statistics,
        scenes=found.scenes,
        temperature=temperature,
    )
