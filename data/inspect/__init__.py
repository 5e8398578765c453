"""Shows what is in a source: `python -m data.inspect pairs.jsonl`."""
