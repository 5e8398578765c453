"""Eight simulated CPU devices for every test, and array shapes checked against annotations."""

import os

# XLA reads these once, when JAX makes its first backend. Tests compile much and compute little.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook(["mm.models", "mm.objectives"], "beartype.beartype")

import mm  # noqa: E402, F401  (adds the flags of this jaxlib)
