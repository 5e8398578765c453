"""Image-text pretraining in JAX. Submodules are imported where they are used.

from mm import load
model = load("workdirs/quickstart")  # or an export, or FORMAT:PATH
model.embed_image(["photo.jpg"]) @ model.embed_text(["a red apple"]).T
"""

import os
from importlib import metadata
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`mm.load`, imported when it is asked for: importing mm alone stays cheap."""
    if name == "load":
        from mm.library import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _avoid_cpu_miscompiles() -> None:
    """Turns off XLA's YNN fusions on the CPU, which miscompute some programs in jaxlib 0.10.

    jax issues 39103 and 40412. XLA reads the variable when the first backend is made, so this has
    to run before; a jaxlib that does not know the flag would abort: hence the check of the version.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if metadata.version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=".strip()


_avoid_cpu_miscompiles()
