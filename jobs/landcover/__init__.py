"""Land-cover models: what they learn from, and how good they are found to be."""
