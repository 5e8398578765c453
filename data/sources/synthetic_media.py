"""Clips and sounds made up from their number: for tests and to try things, no file needed."""

import io
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.sources import Feature, Source
from data.sources.synthetic import COLORS, SHAPES, Made, draw
from mm import registry
from mm.config import BadInput, Positive, Scale

_MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_PITCHES = {"low": 250.0, "middle": 700.0, "high": 2000.0}  # Hz
_SLOPES = {"falling": -0.5, "steady": 0.0, "rising": 0.5}  # octaves a second
_VOICES = {"soft": (1.0,), "rough": (1.0, 0.0, 1 / 3, 0.0, 1 / 5)}  # of the overtones
_FEATURES = {"image": Feature("bytes"), "caption": Feature("text")}


@registry.register("source", "synthetic_video")
def synthetic_video(
    *,
    num_examples: Positive,
    image_size: Positive = 64,
    frames: Positive = 16,
    rate: Positive = 8,
    seed: int = 0,
) -> Source:
    """Coloured shapes that move: `image` (MP4, `rate` pictures a second) and `caption`.

    "red circle moves left": a clip in which no single picture tells the whole caption.
    """
    if image_size < 16 or image_size % 2:
        raise BadInput(f"image_size={image_size}: expected an even number, at least 16")

    def make(rng: np.random.Generator, keys: Sequence[str]) -> dict[str, Any]:
        color, shape, move = rng.choice([*COLORS]), rng.choice(SHAPES), rng.choice([*_MOVES])

        def encode() -> bytes:
            radius, middle = rng.uniform(0.15, 0.25), rng.uniform(0.45, 0.55, 2)
            way = np.linspace(-0.25, 0.25, frames)[:, None] * _MOVES[move]
            noise = rng.integers(-15, 16, (image_size, image_size, 3))
            pictures = [draw(image_size, color, shape, middle + at, radius, noise) for at in way]
            return mp4(pictures, rate)

        caption = f"{color} {shape} moves {move}"
        return {"caption": caption} | ({"image": encode()} if "image" in keys else {})

    return Made(_FEATURES, num_examples, seed, make)


@registry.register("source", "synthetic_audio")
def synthetic_audio(
    *, num_examples: Positive, seconds: Scale = 1.5, rate: Positive = 16_000, seed: int = 0
) -> Source:
    """Tones in noise: `image` (WAV, one channel, 16 bits) and `caption`, "soft low rising tone"."""
    if round(seconds * rate) < 1:
        raise BadInput(f"seconds={seconds}, rate={rate}: is not one sample")

    def make(rng: np.random.Generator, keys: Sequence[str]) -> dict[str, Any]:
        voice, pitch, slope = (rng.choice([*kind]) for kind in (_VOICES, _PITCHES, _SLOPES))

        def encode() -> bytes:
            time = np.arange(round(seconds * rate)) / rate
            hertz = _PITCHES[pitch] * rng.uniform(0.9, 1.1) * 2 ** (_SLOPES[slope] * time)
            phase = 2 * np.pi * np.cumsum(hertz) / rate + rng.uniform(0, 2 * np.pi)
            parts = [share * np.sin((i + 1) * phase) for i, share in enumerate(_VOICES[voice])]
            sound = rng.uniform(0.2, 0.5) * sum(parts) + 0.01 * rng.standard_normal(len(time))
            return wav(sound, rate)

        caption = f"{voice} {pitch} {slope} tone"
        return {"caption": caption} | ({"image": encode()} if "image" in keys else {})

    return Made(_FEATURES, num_examples, seed, make)


def mp4(pictures: Sequence[np.ndarray], rate: int, key_every: int = 12) -> bytes:
    """Pictures, uint8 [h, w, 3], as MPEG-4, which every FFmpeg writes; the same to the byte."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"qmin": "2", "qmax": "2"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size = "yuv420p", key_every
        stream.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def wav(sound: np.ndarray, rate: int) -> bytes:
    """Samples [n] or [n, channels] in -1 .. 1 as 16 bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
