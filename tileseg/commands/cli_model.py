"""Commands about model folders: looked at, and made of others' networks."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tileseg.base.choices import ANSWERS, DEVICES, PRECISIONS, SYMMETRIES, UNITS
from tileseg.base.environment import scrub
from tileseg.commands.console import (
    configure_logging,
    one_line_errors,
    results,
    signals,
    tell,
)
from tileseg.commands.intake import scenes_of
from tileseg.commands.options import Numbers, pairs, with_options, words
from tileseg.errors import ExitCode, TilesegError, worst

if TYPE_CHECKING:
    from tileseg.settings import Job

__all__ = ["model"]

_SCENES = (
    click.option(
        "--scene",
        "inputs",
        multiple=True,
        required=True,
        metavar="SCENE",
        help="As --input of `segment`; may be given several times.",
    ),
    click.option("--host", "hosts", multiple=True, help="As of `segment`."),
    click.option("--config", metavar="FILE", help="A job file, for `bands`, say."),
    click.option("--scale", type=float, help="As of `segment`."),
    click.option("--offset", type=float, help="See --scale."),
)

_IMPORT_OPTIONS = (
    click.option(
        "--bands",
        metavar="NAME,...",
        callback=words,
        help="Bands in the order of the network's inputs.",
    ),
    click.option(
        "--classes",
        metavar="NAME,...",
        callback=words,
        help="Classes in the order of its answers; of one answer background and class.",
    ),
    click.option(
        "--colors", metavar="RRGGBB,...", callback=words, help="Of the classes."
    ),
    click.option(
        "--fields",
        metavar="NAME,...",
        callback=words,
        help="Those of them that are agricultural fields: polygons are of these alone.",
    ),
    click.option(
        "--unit",
        type=click.Choice(UNITS),
        help="What mean and std are in: 0 to 1, or values as stored."
        "  [default: reflectance]",
    ),
    click.option(
        "--mean",
        type=Numbers(),
        help="Per band, or one: the network sees (value - mean) / std.",
    ),
    click.option("--std", type=Numbers(), help="Per band, or one."),
    click.option(
        "--tile",
        type=click.IntRange(16, 4096),
        help="Side of a tile in pixels.  [default: what the file says, else 256]",
    ),
    click.option(
        "--halo",
        type=click.IntRange(0, 1024),
        help="Margin of a tile that is not kept.  [default: about an eighth of it]",
    ),
    click.option("--gsd", type=float, help="Metres of a pixel that it was trained on."),
    click.option("--name", help="Of the model.  [default: the folder's]"),
    click.option("--version", help="Of the model.  [default: 1]"),
    click.option(
        "--answers",
        type=click.Choice(ANSWERS),
        help="What the network gives.  [default: found out]",
    ),
    click.option(
        "--smp",
        metavar="KEY=VALUE",
        multiple=True,
        callback=pairs,
        help="Of a state_dict of segmentation_models_pytorch: arch, encoder_name, ...",
    ),
    click.option(
        "--about",
        metavar="KEY=VALUE",
        multiple=True,
        callback=pairs,
        help="Anything more for the card: licence=MIT.",
    ),
    click.option(
        "--trust-model-code",
        "trust_code",
        is_flag=True,
        help="Run a program (TorchScript, torch.export), with --sha256.",
    ),
    click.option("--sha256", metavar="DIGEST", help="Of the file, as its maker says."),
)


@click.group()
def model() -> None:
    """Look at model folders, and make them."""


@model.command()
@click.argument("folder", metavar="[MODEL]", default="")
def info(folder: str) -> None:
    """Say what a model eats, what its classes are and where it comes from."""
    from tileseg.base.builtin import model_folder
    from tileseg.cards.item import read_card

    with one_line_errors():
        path = model_folder(folder)
        card = read_card(path)
    more = {"gsd_range": card.gsd_range, "temperature": card.temperature}
    known = {key: item for key, item in more.items() if item is not None}
    # Pairs: free words of a card must not take a fact's place.
    lines: list[tuple[str, object]] = [("folder", path), *card.facts().items()]
    lines += [*known.items(), *card.about.items()]
    for name, values in zip(card.bands, card.statistics or (), strict=False):
        lines.append((f"values of {name}", str(values)))
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        tell(f"{key:<{width}}  {_plain(value)}")


@model.command()
@click.argument("folder", metavar="[MODEL]", default="")
@click.option("--trust-model-code", "is_trusted", is_flag=True, help="Run a program.")
def trace(folder: str, *, is_trusted: bool) -> None:
    """Print the shape after every stage for one tile.

    MODEL is a model folder, or `unet` for the classic network with random weights.
    """
    from tileseg.base.builtin import model_folder
    from tileseg.cards.item import read_card
    from tileseg.network.model import load_module
    from tileseg.network.unet import UNet
    from tileseg.network.unet import trace as trace_network

    network: Any
    with one_line_errors():
        if folder == "unet":
            network, bands, tile = UNet(), 3, 128
        else:
            path = model_folder(folder)
            card = read_card(path)
            card.check_trust(is_trusted=is_trusted)
            network = load_module(path, card)
            bands, tile = len(card.bands), card.tile
    for line in trace_network(network, bands, tile):
        click.echo(line)


def _scene_jobs(options: dict[str, Any]) -> "list[Job]":
    """Return a job for each scene that `_SCENES` name."""
    from tileseg.settings import Job

    options["hosts"] = options["hosts"] or None
    options["trust_model_code"] = True  # no network is run, nor its file opened
    return [Job(**facts) for facts in scenes_of(options)]


@model.command("check")
@click.option("--model", metavar="MODEL", help="As of segment.  [default: ours]")
@with_options(_SCENES)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a scene.")
def check_fit(*, as_json: bool, **options: Any) -> NoReturn:  # noqa: ANN401  (fields of a Job)
    """Say whether a model was made for scenes like this: ok, warn or refuse.

    Bands, type, scale, resolution, range, and how far the values have drifted from
    those it was trained on. Looks at some places only. Exits with 2 if it refuses.
    """
    scrub()
    from tileseg.plans.fit import compare

    codes = [0]
    with results(), one_line_errors():
        for job in _scene_jobs(options):
            try:
                found = compare(job)
            except TilesegError as err:
                tell(str(err), level=logging.ERROR)
                codes.append(int(err.exit_code))
                continue
            tell(json.dumps(found.as_dict()) if as_json else str(found))
            codes.append(ExitCode.USAGE if found.verdict == "refuse" else ExitCode.OK)
    sys.exit(worst(codes))


@model.command("statistics")
@click.option("--model", metavar="DIR", required=True, help="A folder of your own.")
@with_options(_SCENES)
def add_statistics(**options: Any) -> None:  # noqa: ANN401  (fields of a Job)
    """Write into a model's card what values scenes have that it was trained on."""
    scrub()
    from tileseg.base.builtin import not_ours
    from tileseg.cards.item import write_card
    from tileseg.plans.fit import with_statistics

    with results(), one_line_errors():
        folder = not_ours(options["model"])
        card = with_statistics(_scene_jobs(options))
        write_card(folder, card)
        for name, known in zip(card.bands, card.statistics or (), strict=True):
            tell(f"{name}: {known}")


@model.command("canary")
@click.argument("folder", metavar="[MODEL]", default="")
@with_options(_SCENES)
@click.option("--to", "path", metavar="FILE", required=True, help="A new .npz.")
@click.option("--tta", type=click.Choice(list(SYMMETRIES)), help="As of `segment`.")
@click.option("--device", type=click.Choice(["auto", *DEVICES]),
              help="As of `segment`: what the nights compute on.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", *PRECISIONS]),
              help="As of `segment`.")  # fmt: skip
def canary_(folder: str, path: str, **options: Any) -> None:  # noqa: ANN401  (fields of a Job)
    """Write tiles of scenes and the labels that a model gives them here, as golden.

    A job whose gates name the file (`canary`) publishes only where the network gives
    them again.
    """
    scrub()
    with results(), one_line_errors():
        from tileseg.plans.canary import make_canary, save_canary

        made = make_canary(_scene_jobs({**options, "model": folder or None}))
        save_canary(made, path)
        count = made.labels.size
        tell(f"{path}: {len(made.labels)} spots, {count} pixels, {made.sha256[:16]}")


@model.command("import")
@click.argument("source")
@click.option("--to", "folder", metavar="DIR", required=True, help="A new folder.")
@with_options(_IMPORT_OPTIONS)
def import_(source: str, folder: str, **options: Any) -> None:  # noqa: ANN401  (of Told)
    """Make a model folder of another library's network, once.

    SOURCE is a state_dict (.pt, .pth) of the tutorial's U-Net or of
    segmentation_models_pytorch, a folder that its save_pretrained wrote, a Lightning
    checkpoint of torchgeo's segmentation task, safetensors, ONNX, TorchScript or
    torch.export. What it does not say itself must be told. Afterwards only DIR is used.
    """
    configure_logging(0, is_quiet=False)
    with results(), one_line_errors(), signals():
        # Not before: a wrong option is told without torch.
        from tileseg.base.builtin import not_ours
        from tileseg.training.adopt import Told, adopt, lay

        told = Told(**{key: item for key, item in options.items() if item is not None})
        place = not_ours(folder).absolute()
        adopted = adopt(Path(source), told, folder_name=place.name)
        lay(adopted, place)
        card = adopted.card
        step = f"tiles of {card.tile} pixels, halo {card.halo}"
        tell(f"{folder}: {card.architecture.name} ({card.architecture.kind}), {step}")


def _plain(value: object) -> str:
    """Return a card's value as a person writes it."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values())
    return str(value)
