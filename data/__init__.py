"""Data: sources, order, preprocessing, loading, and builders of data sets."""

import os

# TensorFlow only reads and prepares data here. Its start-up messages would hide ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
