"""What everything stands on: words, values and small tools; no toolkit."""
