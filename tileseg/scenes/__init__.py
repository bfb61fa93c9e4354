"""Scenes: opening files safely, putting them together, reading them in strips."""
