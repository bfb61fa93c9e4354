"""What is made of shards: rasters, pictures, pages, STAC Items."""
