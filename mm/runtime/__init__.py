"""What a run needs around its steps: checkpoints, metrics, progress, signals, processes, files."""
