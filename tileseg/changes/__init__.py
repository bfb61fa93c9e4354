"""What became of each class between two masks."""
