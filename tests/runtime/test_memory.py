import jax
import jax.numpy as jnp

from mm.runtime import memory as module
from mm.runtime.memory import memory, step_memory


def test_the_memory_of_the_host_is_that_of_this_process():
    found = memory()
    assert 0.01 < found["memory/host"] < 1000  # GiB: what these tests load is more than 10 MiB


def test_of_devices_the_fullest_is_told(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak, "bytes_limit": 16 << 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(1 << 30), Device(3 << 30)])
    found = memory()
    assert found["memory/device_peak"] == 3 and found["memory/device_limit"] == 16


def test_a_device_that_tells_nothing_is_left_out():
    assert not [key for key in module.memory() if "device" in key]  # CPUs do not


def test_of_a_step_new_parameters_in_the_place_of_the_old_count_once():
    step = jax.jit(lambda state, x: (state + 1, x * 2), donate_argnums=0)
    state, x = (jax.ShapeDtypeStruct((size,), jnp.float32) for size in (1 << 18, 1 << 10))
    mib = 1024 * step_memory(step.lower(state, x))["memory/step"]
    assert 1 < mib < 1.1


def test_asking_what_a_step_takes_does_not_compile_it_again():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    step, state = jax.jit(lambda x: x * 3, donate_argnums=0), jnp.zeros(8)
    step(state)
    before = len(compiled)
    assert before and step_memory(step.lower(jax.ShapeDtypeStruct((8,), jnp.float32)))
    assert len(compiled) == before
