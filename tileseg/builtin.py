"""The models that come with tileseg, and how a model is named."""

from importlib.resources import files
from pathlib import Path

__all__ = ["MODELS", "default_model", "known_anywhere", "model_folder"]

MODELS = "landcover-bgr", "landcover-bgrn"
"""Land cover from blue, green and red, and from these and near infrared."""


def default_model() -> Path:
    """Return the folder of the model that is meant where none is named."""
    return model_folder(MODELS[0])


def model_folder(name: str) -> Path:
    """Return the folder of a model.

    Args:
        name: its path, one of `MODELS`, or empty for the first of these.
    """
    if name and name not in MODELS:
        return Path(name)
    return Path(str(files("tileseg"))) / "models" / (name or MODELS[0])


def known_anywhere(name: str) -> str:
    """Return a model's name as a process elsewhere understands it.

    Another machine may have tileseg in another place, and another current folder.
    """
    return name if name in ("", *MODELS) else str(Path(name).absolute())
