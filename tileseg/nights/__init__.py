"""Many scenes, night after night."""
