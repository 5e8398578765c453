"""Stand-ins for the devices of TPU pods: where they are is all that a mesh asks of them."""

import dataclasses
import itertools

KINDS = {"v5e": "TPU v5 lite", "v5p": "TPU v5p"}


@dataclasses.dataclass(frozen=True, order=True)
class Chip:
    id: int
    coords: tuple[int, int, int]
    device_kind: str
    slice_index: int = 0
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0

    @property
    def client(self):
        return None


def devices(pod: str, slices: int = 1) -> list[Chip]:
    """Those of a topology such as "v5e:16x16", so many times."""
    generation, _, shape = pod.partition(":")
    sizes = [int(size) for size in shape.split("x")]
    places = list(itertools.product(*map(range, [*sizes, 1][:3])))
    return [
        Chip(index * len(places) + i, place, KINDS[generation], index)
        for index in range(slices)
        for i, place in enumerate(places)
    ]
