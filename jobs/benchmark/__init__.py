"""What `jobs/bench.py` measures, part by part; each part gives rows."""
