"""Ops on clips and sounds. A clip becomes a stack of frames, on which the ops on pictures work.

`decode_video(8)|random_resized_crop(112)|flip` writes `image` [b, 8, 112, 112, 3];
`decode_audio(seconds=5)|log_mel` writes `image` [b, 128, frames, 1], a picture of one channel. What
is encoded is decoded by FFmpeg (PyAV): MP4, WebM, GIF..., WAV, MP3, FLAC, Ogg, the sound of an MP4.
A source has its bytes in the field `image`, as those of a picture: of tables, image_key="video".
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.preprocess.image import Encoded
from data.profile import stage
from data.sources import BadExample
from mm import registry
from mm.config import BadInput, Positive, Scale

_NO_CLIP, _NO_SOUND = "clip cannot be decoded", "sound cannot be decoded"
# FFmpeg's names. Others may be lists of files to open: nobody's data shall read those of this host.
_FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "gif"),
    *("wav", "mp3", "flac", "ogg", "aac", "aiff", "au", "w64", "caf", "amr"),
)
_MIN_POWER = 1e-10


@registry.register("op", "decode_video")
def decode_video(
    *,
    frames: Positive,
    seconds: Scale | None = None,
    random: bool = False,
    short: Literal["repeat", "refuse"] = "repeat",
    key: str = "image",
) -> Op:
    """Starts `image` from the encoded clip in the field `key`: `frames` pictures, as RGB.

    The clip, or a window of `seconds` in its middle, is cut into `frames` parts of equal time; of
    each, the picture in its middle is taken. random: the window is anywhere, and so is the instant
    in each part (Wang et al. 2016, "Temporal segment networks", section 3.1). A clip of less than
    `seconds` is taken whole, or with short="refuse" a BadExample; where there are fewer pictures
    than `frames`, some are taken several times. Boxes and colours that follow are drawn once a
    clip.
    """
    if short == "refuse" and seconds is None:
        raise BadInput("short='refuse' needs seconds=, the time that a clip has to have")

    def apply(columns: Columns, draws: Draws) -> Columns:
        clips, count = columns[key], len(columns[key])
        places = np.full((frames + 1, count), 0.5, np.float32)
        if random:
            places = draws.uniform(frames + 1)
        choose = [_instants(row, seconds, short) for row in places.T.astype(np.float64)]
        with stage("decode"):
            return columns | {"image": Encoded([*map(_decode_clip, clips, choose)])}

    return Op(apply, reads=(key,))


@registry.register("op", "decode_audio")
def decode_audio(
    *,
    seconds: Scale,
    rate: Positive = 16_000,
    random: bool = False,
    short: Literal["pad", "refuse"] = "pad",
    key: str = "image",
) -> Op:
    """Writes `sound`, float32 [b, seconds x rate] in -1 .. 1, of the encoded sound in `key`.

    The mean of the channels, resampled to `rate` samples a second (`scipy.signal.resample_poly`).
    Of a longer sound the middle is taken, or with `random` any part; a shorter one is filled up
    with zeros, or with short="refuse" a BadExample.
    """
    size = round(seconds * rate)
    if size < 1:
        raise BadInput(f"seconds={seconds}, rate={rate}: is not one sample")

    def apply(columns: Columns, draws: Draws) -> Columns:
        places = draws.uniform(1)[0] if random else np.full(len(columns[key]), 0.5)
        found = np.zeros((len(columns[key]), size), np.float32)
        for row, encoded, place in zip(found, columns[key], places.tolist(), strict=True):
            with stage("decode"):
                samples, own = _decode_sound(encoded)
            _cut(row, samples, own, rate, place, short)
        return columns | {"sound": found}

    return Op(apply, reads=(key,))


@registry.register("op", "log_mel")
def log_mel(
    *,
    n_mels: Positive = 128,
    window: Scale = 0.025,
    hop: Scale = 0.01,
    rate: Positive = 16_000,
    low: float = 0.0,
    high: float | None = None,
    mean: float = -4.0,
    deviation: Scale = 4.0,
) -> Op:
    """Turns `sound` into `image`, float32 [b, n_mels, frames, 1]: its log-mel spectrogram.

    As in Whisper (Radford et al. 2022, section 2.2): the power of a Hann window's Fourier
    transform, of the sound mirrored at its ends, weighted by Slaney's triangles from `low` to
    `high` Hz (default: rate / 2); (log10(max(x, 1e-10)) - mean) / deviation, but without its floor,
    that depends on the loudest place. window, hop: seconds; frames is samples // (hop x rate). Row
    0 is the lowest mel. mean, deviation: of the log10; those of a data set make the results normal
    (AST, Gong et al. 2021, section 2.1).
    """
    length, step = round(window * rate), round(hop * rate)
    top = rate / 2 if high is None else high
    if min(length, step) < 2:
        raise BadInput(f"window={window}, hop={hop}: expected two samples at rate={rate} or more")
    if not 0 <= low < top <= rate / 2:
        raise BadInput(f"low={low}, high={high}: expected 0 <= low < high <= {rate / 2}")
    filters = mel_filters(n_mels, length, rate, low, top)
    if empty := int((filters.sum(1) == 0).sum()):
        raise BadInput(
            f"n_mels={n_mels}: {empty} of them lie between two frequencies of a window of "
            f"{length} samples; expected fewer mels or a longer window"
        )

    def apply(columns: Columns, draws: Draws) -> Columns:
        sounds = columns.get("sound")
        if not isinstance(sounds, np.ndarray):
            raise BadInput("belongs after decode_audio")
        if sounds.shape[1] <= length // 2:
            raise BadInput(
                f"the sounds have {sounds.shape[1]} samples; expected more than half a window, "
                f"{length // 2}"
            )
        # Each by itself: a sum's order of additions may depend on how many there are.
        powers = [_power(sound, length, step) @ filters.T for sound in sounds]
        mels = [np.log10(np.maximum(power, _MIN_POWER)) for power in powers]
        image = ((np.stack(mels).swapaxes(1, 2) - mean) / deviation).astype(np.float32)
        rest = {name: value for name, value in columns.items() if name != "sound"}
        return rest | {"image": image[..., None]}

    return Op(apply)


def mel_filters(
    n_mels: int, length: int, rate: int, low: float, high: float
) -> Float64[np.ndarray, "mels frequencies"]:
    """Slaney's triangles (Auditory Toolbox, 1998): neighbours in mel, each of area 1 in Hz."""
    edges = _hertz(np.linspace(*_mel(np.array([low, high])), n_mels + 2))
    frequencies = np.fft.rfftfreq(length, 1 / rate)
    slopes = (frequencies - edges[:, None]) / np.diff(edges, append=np.inf)[:, None]
    rising, falling = slopes[:-2], 1 - slopes[1:-1]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


# Slaney's mel: linear to 1000 Hz (15 mel), then 27 mel for each factor of 6.4.
_BREAK_HERTZ, _BREAK_MEL, _STEP = 1000.0, 15.0, np.log(6.4) / 27


def _mel(hertz: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    above = _BREAK_MEL + np.log(np.maximum(hertz, _BREAK_HERTZ) / _BREAK_HERTZ) / _STEP
    return np.where(hertz < _BREAK_HERTZ, hertz * _BREAK_MEL / _BREAK_HERTZ, above)


def _hertz(mel: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    above = _BREAK_HERTZ * np.exp(_STEP * np.maximum(mel - _BREAK_MEL, 0))
    return np.where(mel < _BREAK_MEL, mel * _BREAK_HERTZ / _BREAK_MEL, above)


def _power(
    sound: Float32[np.ndarray, " samples"], length: int, step: int
) -> Float[np.ndarray, "frames frequencies"]:
    padded = np.pad(sound.astype(np.float64), length // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, length)[::step]
    windows = windows[: len(sound) // step]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    return np.abs(np.fft.rfft(windows * hann)) ** 2


Chosen = Callable[[float], np.ndarray]  # a clip's seconds -> instants in it, growing


def _instants(places: np.ndarray, seconds: float | None, short: str) -> Chosen:
    """places: where the window is, and then the instant in each part; all in 0 .. 1."""

    def choose(duration: float) -> np.ndarray:
        if short == "refuse" and duration < seconds:
            raise BadExample(
                f"the clip takes {duration:.2f} seconds, expected {seconds} at least",
                "clip is too short",
            )
        window = duration if seconds is None else min(seconds, duration)
        parts = len(places) - 1
        inside = (np.arange(parts) + places[1:]) / parts
        return places[0] * (duration - window) + inside * window

    return choose


def _decode_clip(encoded: bytes, choose: Chosen) -> UInt8[np.ndarray, "t h w 3"]:
    """The pictures that are shown at these instants."""
    with _opened(encoded, "video") as stream:
        packets = [p for p in stream.container.demux(stream) if p.pts is not None]
        times = np.array(sorted(p.pts for p in packets if not p.is_discard))
        if not len(times):
            raise BadExample("the clip has no pictures", _NO_CLIP)
        end = max(p.pts + (p.duration or 0) for p in packets)
        instants = choose(float((end - times[0]) * stream.time_base))
        # To a thousandth of a tick: where parts meet is no matter of a float's last bit.
        instants = times[0] + np.round(instants / float(stream.time_base), 3)
        shown = times[np.maximum(np.searchsorted(times, instants, side="right") - 1, 0)]
        found = _decode_at(stream.codec_context, packets, sorted(set(shown.tolist())))
    return np.stack([found[time] for time in shown.tolist()])


def _decode_at(decoder: Any, packets: Sequence[Any], times: Sequence[int]) -> dict[int, np.ndarray]:
    """The pictures shown at `times`, which grow.

    Decoding goes on at the last key frame before each, so that little is decoded in vain.
    """
    found: dict[int, np.ndarray] = {}
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    rest, position = list(times), 0
    while rest:
        if position > len(packets):
            raise BadExample("the clip is damaged or cut off", _NO_CLIP)
        start = max((i for i in keys if packets[i].pts <= rest[0]), default=0)
        if start > position:
            decoder.flush_buffers()
            position = start
        for frame in decoder.decode(packets[position] if position < len(packets) else None):
            if frame.is_corrupt:
                raise BadExample("the clip is damaged", _NO_CLIP)
            while rest and frame.pts is not None and frame.pts >= rest[0]:
                found[rest.pop(0)] = _upright(frame)
        position += 1
    return found


def _upright(frame: Any) -> UInt8[np.ndarray, "h w 3"]:
    """As it is to be seen: phones write what their sensor saw, and how it is turned."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def _decode_sound(encoded: bytes) -> tuple[Float32[np.ndarray, " n"], int]:
    """The mean of the channels, and how many samples a second has."""
    with _opened(encoded, "audio") as stream:
        frames = [*stream.container.decode(stream)]
    rates = sorted({frame.sample_rate for frame in frames})
    if len(rates) != 1:
        raise BadExample(f"the sound has {rates} samples a second, expected one rate", _NO_SOUND)
    return np.concatenate([_mono(frame) for frame in frames]), rates[0]


def _mono(frame: Any) -> Float32[np.ndarray, " n"]:
    """In -1 .. 1, whatever FFmpeg decoded it to."""
    samples = frame.to_ndarray()  # [channels, n], or [1, n x channels] side by side
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind != "f":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / half - (samples.dtype.kind == "u")
    return samples.mean(axis=0, dtype=np.float64).astype(np.float32)


@contextlib.contextmanager
def _opened(encoded: bytes, kind: Literal["video", "audio"]) -> Iterator[Any]:
    """The first stream of that kind. What fails inside is a BadExample."""
    import av  # a hundred megabytes, which only those load who need them

    what, reason = ("clip", _NO_CLIP) if kind == "video" else ("sound", _NO_SOUND)
    try:
        options = {"format_whitelist": ",".join(_FORMATS)}
        file = io.BytesIO(encoded)
        with av.open(file, options=options, metadata_errors="replace") as container:
            streams = getattr(container.streams, kind)
            if not streams:
                raise BadExample(f"the file has no {kind}", reason)
            streams[0].codec_context.thread_count = 1  # the loader's workers are the threads
            yield streams[0]
    except av.error.FFmpegError as error:
        raise BadExample(
            f"a {what} of {len(encoded):,} bytes that begins with {encoded[:8]!r} cannot be "
            f"decoded ({error.strerror})",
            reason,
        ) from error


def _cut(
    into: Float32[np.ndarray, " size"],
    samples: Float32[np.ndarray, " n"],
    own: int,
    rate: int,
    place: float,
    short: str,
) -> None:
    """Writes the part of a sound of `own` samples a second that `place`, 0 .. 1, says."""
    if short == "refuse" and len(samples) * rate < len(into) * own:
        raise BadExample(
            f"the sound takes {len(samples) / own:.2f} seconds, expected {len(into) / rate}",
            "sound is too short",
        )
    wanted = math.ceil(len(into) * own / rate)
    first = round(place * max(0, len(samples) - wanted))
    part = samples[first : first + wanted]
    if own != rate and len(part):
        import scipy.signal  # slow to load

        part = scipy.signal.resample_poly(part, rate, own)
    part = part[: len(into)]
    into[: len(part)] = part
