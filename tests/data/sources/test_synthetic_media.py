import io
import wave

import numpy as np
import pytest

from data.preprocess.draws import example_keys
from data.preprocess.parse import parse
from data.sources import open_source
from mm.config import BadInput


def opened(name, **kwargs):
    return open_source({"name": name, "num_examples": 12} | kwargs, "source")


@pytest.mark.parametrize("name", ["synthetic_video", "synthetic_audio"])
def test_an_example_is_a_function_of_seed_and_id(name):
    ids = np.array([7, 0, 7])
    first, again = opened(name).read(ids), opened(name).read(ids)
    assert first == again and first[0] == first[2]
    assert first[0] != opened(name, seed=1).read(ids)[0]
    assert opened(name).read(ids, ["caption"]) == [{"caption": x["caption"]} for x in first]


def test_a_shape_moves_as_its_caption_says():
    source = opened("synthetic_video", image_size=32)
    for record in source.read(np.arange(12)):
        ops = parse("decode_video(2)|resize(32)", where="ops")
        clip = ops.apply({"image": [record["image"]]}, example_keys(0, np.zeros(1), np.zeros(1)))
        inside = clip["image"][0].min(-1) < 180  # the ground is white
        first, last = (np.argwhere(frame).mean(0) for frame in inside)
        way = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
        move = (last - first) / np.abs(last - first).max()
        np.testing.assert_allclose(move, way[record["caption"].split()[-1]], atol=0.2)


def test_a_tone_is_as_high_as_its_caption_says():
    hertz = {}
    for record in opened("synthetic_audio", num_examples=40).read(np.arange(40)):
        with wave.open(io.BytesIO(record["image"])) as file:
            assert file.getframerate() == 16_000 and file.getnframes() == 24_000
            sound = np.frombuffer(file.readframes(24_000), "<i2")
        _, pitch, slope, _ = record["caption"].split()
        if slope == "steady":
            spectrum = np.abs(np.fft.rfft(sound))
            hertz.setdefault(pitch, []).append(spectrum.argmax() / 1.5)
    for pitch, middle in (("low", 250), ("middle", 700), ("high", 2000)):
        assert all(0.89 * middle < found < 1.11 * middle for found in hertz[pitch])


def test_an_impossible_size_is_refused():
    with pytest.raises(BadInput, match="image_size=15"):
        opened("synthetic_video", image_size=15)
    with pytest.raises(BadInput, match="is not one sample"):
        opened("synthetic_audio", seconds=1e-6)
