"""Scenes and labels to a model; and models of other libraries."""
