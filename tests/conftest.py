"""Eight simulated CPU devices for every test, and array shapes checked against annotations."""

import gc
import os
import tempfile

# XLA reads these once, when JAX makes its first backend. Tests compile much and compute little:
# without the fusion emitters, a train step compiles in a bit more than half of the time, and as one
# module for LLVM instead of 32 in a fifth less.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # as main.py
# The same tiny programs are compiled again and again, by subprocesses too.
_cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Tracing makes many objects and few cycles: to look for them as often as by default, and then
# through all that JAX keeps, takes 7% of the time.
gc.set_threshold(50_000, 20, 100)

import hypothesis  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jaxtyping.install_import_hook(["mm.models", "mm.objectives", "mm.adapt"], "beartype.beartype")

hypothesis.settings.register_profile("shared", deadline=None, derandomize=True)
hypothesis.settings.load_profile("shared")

import mm  # noqa: E402, F401  (adds the flags of this jaxlib)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer.json for tests/tiny.py."""
    from data.tokenizers.train import train
    from tests.tiny import TEXTS

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train(TEXTS * 2, 64))
    return path


@pytest.fixture(scope="session")
def fresh_run(tokenizer, tmp_path_factory):
    """The workdir of a run of tests/tiny.py that was saved at step 2, before it learned anything.

    With what `mm.train` would have written beside. Read it, and leave it as it is.
    """
    import jax

    from data.input import manifest, open_input
    from mm.config import load, plain
    from mm.program import build_program
    from mm.runtime import workdir
    from mm.runtime.checkpoint import Checkpointer

    config = load(f"tests/tiny.py:tokenizer={tokenizer}")
    config.total_steps = 2
    program = build_program(config, jax.devices()[:1])
    opened = open_input(config.input, "config.input")
    said = {"version": mm.__version__, "config": plain(config)}
    said |= manifest(opened.source, opened.last)
    path = tmp_path_factory.mktemp("fresh_run")
    checkpointer = Checkpointer(path / "checkpoints")
    metrics = {"held_out/text_to_image/recall@1": 0.25}
    checkpointer.save(2, program.init(0), said, metrics)
    checkpointer.close()
    workdir.write_json(path / "config.json", plain(config))
    return path
