"""Masks as bytes: blocks, overviews, shard files, the frame of a COG."""
