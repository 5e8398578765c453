"""Makes mel.npz with librosa: power, then mel, of the sound that tests/.../test_media.py makes.

pip install librosa==0.11.0 && python tests/golden/media/make.py
"""

from pathlib import Path

import librosa
import numpy as np

RATE = 16_000
CASES = {  # name -> (n_mels, samples of a window, of a hop, lowest and highest Hz)
    "whisper": (80, 400, 160, 0, RATE / 2),
    "narrow": (40, 512, 200, 60, 7000),
}


def sound() -> np.ndarray:
    """A third of a second: a tone that rises from 100 to 6,000 Hz, in noise."""
    time = np.arange(RATE // 3) / RATE
    tone = np.sin(2 * np.pi * (100 * time + 5900 * 1.5 * time**2))
    return (0.5 * tone + 0.01 * np.random.default_rng(0).standard_normal(len(time))).astype("f4")


def main() -> None:
    found = {}
    for name, (n_mels, length, hop, low, high) in CASES.items():
        found[name] = librosa.feature.melspectrogram(
            y=sound().astype(np.float64), sr=RATE, n_fft=length, hop_length=hop, n_mels=n_mels,
            fmin=low, fmax=high, pad_mode="reflect",
        ).astype(np.float32)  # fmt: skip
    np.savez_compressed(Path(__file__).with_name("mel.npz"), sound=sound(), **found)


if __name__ == "__main__":
    main()
