"""The models that come with tileseg, and how a model is named."""

from importlib.resources import files
from pathlib import Path

from tileseg.errors import UsageError

__all__ = ["MODELS", "default_model", "model_folder", "not_ours", "portable_name"]

MODELS = "landcover-bgr", "landcover-bgrn"
"""Land cover from blue, green and red; from these and near infrared."""


def default_model() -> Path:
    """Return the folder of the model that is meant where none is named."""
    return model_folder("")


def model_folder(name: str) -> Path:
    """Return the folder of a model.

    Args:
        name: its path, one of `MODELS`, or empty for the first of these.
    """
    if name and name not in MODELS:
        return Path(name)
    return Path(str(files("tileseg"))) / "models" / (name or MODELS[0])


def portable_name(name: str) -> str:
    """Return a model's name as a process elsewhere understands it.

    Another machine may have tileseg in another place, and another current folder.
    """
    return name if name in ("", *MODELS) else str(Path(name).absolute())


def not_ours(name: str) -> Path:
    """Return the folder of a model that is to be written.

    Raises:
        UsageError: the name is that of a model of ours: what is written there would
            be found by no one.
    """
    if name in ("", *MODELS):
        msg = (
            f"{name or MODELS[0]}: comes with tileseg and is not written to; "
            f"wanted another folder, or ./{name or MODELS[0]}"
        )
        raise UsageError(msg)
    return Path(name)
