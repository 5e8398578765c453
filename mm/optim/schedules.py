"""Learning-rate schedules: step -> factor in [0, 1] of the peak learning rate.

All warm up linearly over `warmup_steps` and may cool down linearly to zero over the last
`cooldown_steps` of `total_steps`.
"""

import jax.numpy as jnp
import optax

from mm import registry
from mm.config import BadInput


def _assemble(
    body: optax.Schedule, total_steps: int, warmup_steps: int, cooldown_steps: int
) -> optax.Schedule:
    if warmup_steps < 0 or cooldown_steps < 0 or warmup_steps + cooldown_steps > total_steps:
        raise BadInput(
            f"warmup_steps={warmup_steps} and cooldown_steps={cooldown_steps} do not fit into "
            f"total_steps={total_steps}"
        )

    def schedule(step):
        warmup = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        if cooldown_steps == 0:
            return warmup * body(step)
        return warmup * jnp.clip((total_steps - step) / cooldown_steps, 0.0, 1.0) * body(step)

    return schedule


@registry.register("schedule", "constant")
def constant(*, total_steps: int, warmup_steps: int = 0, cooldown_steps: int = 0):
    """1 between warm-up and cooldown (with a cooldown: WSD, Hu et al. 2024)."""
    return _assemble(lambda step: 1.0, total_steps, warmup_steps, cooldown_steps)


@registry.register("schedule", "cosine")
def cosine(*, total_steps: int, warmup_steps: int = 0, cooldown_steps: int = 0, final: float = 0.0):
    """Half a cosine from 1, at the end of warm-up, to `final` (Loshchilov and Hutter 2017)."""

    def body(step):
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        progress = jnp.clip(progress, 0.0, 1.0)
        return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    return _assemble(body, total_steps, warmup_steps, cooldown_steps)


@registry.register("schedule", "rsqrt")
def rsqrt(
    *, total_steps: int, warmup_steps: int = 0, cooldown_steps: int = 0, timescale: int = 10_000
):
    """1/sqrt(1 + (step - warmup) / timescale) with a cooldown (Zhai et al. 2022, section 3.5)."""

    def body(step):
        return (1.0 + jnp.maximum(step - warmup_steps, 0) / timescale) ** -0.5

    return _assemble(body, total_steps, warmup_steps, cooldown_steps)
