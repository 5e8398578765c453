"""Examples on their way to the model: sources, their order, preprocessing, batches. No models."""
