"""Pallas kernels for TPUs. They know arrays, and nothing of the models that call them."""
