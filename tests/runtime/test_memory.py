import jax

from mm.runtime import memory as module
from mm.runtime.memory import memory


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
