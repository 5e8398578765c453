"""What is known of a step before it runs: topologies, FLOPs, and what a compiler's text says."""
