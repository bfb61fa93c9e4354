"""Polygons of masks: traced shard by shard, joined, simplified, written."""
