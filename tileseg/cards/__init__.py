"""What a model eats and what its numbers mean, as STAC."""
