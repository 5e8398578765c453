import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.preprocess.draws import example_keys
from data.preprocess.parse import parse
from data.sources import BadExample
from data.sources.synthetic_media import mp4, wav
from mm.config import BadInput

GOLDEN = Path(__file__).parents[2] / "golden/media/mel.npz"
RATE = 16_000
ALL = (
    "|pad(0.1)|random_resized_crop(12, scale=(0.2, 1))|flip|cutout(0.4)"
    "|color_jitter(0.4, 0.4, 0.4, 0.1)|grayscale(0.3)|mix_channels(0.2, 0.5)"
)


def run(string, encoded, seed=0, ids=None, epoch=0):
    ids = np.arange(len(encoded)) if ids is None else ids
    ops = parse(string, where="config.input.preprocess")
    return ops.apply({"image": encoded}, example_keys(seed, ids, ids * 0 + epoch))


def greys(count, height=16, width=24, step=10):
    """Pictures that tell their number."""
    return [np.full((height, width, 3), step * i, np.uint8) for i in range(count)]


def numbers(clip, step=10):
    return np.round(clip.reshape(len(clip), -1).mean(1) / step).astype(int).tolist()


def gif(pictures, durations=100):
    buffer, frames = io.BytesIO(), [Image.fromarray(picture) for picture in pictures]
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def encoded(pictures, kind):
    """As the wheel of PyAV can: B-frames and key frames apart, in several containers."""
    kind, codec = kind.split("/")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size = "yuv420p", 7
        stream.codec_context.max_b_frames = 2
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def by_hand(clip):
    """All pictures, from the first to the last."""
    with av.open(io.BytesIO(clip)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def noisy(count, seed=0):
    """Pictures of which a codec has something to predict."""
    rng = np.random.default_rng(seed)
    base = rng.integers(60, 200, (48, 64, 3))
    return [np.roll(base + 2 * i, (i, 2 * i), (0, 1)).astype(np.uint8) for i in range(count)]


@pytest.mark.parametrize(
    "kind", ["mp4/libx264", "mp4/mpeg4", "webm/libvpx-vp9", "avi/mpeg4", "mpegts/libx264"]
)
@pytest.mark.parametrize("frames", [1, 4, 24])
def test_frames_are_those_in_the_middle_of_equal_parts(kind, frames):
    clip = encoded(noisy(24), kind)
    want = by_hand(clip)
    assert len(want) == 24
    places = ((np.arange(frames) + 0.5) * 24 / frames).astype(int)
    found = run(f"decode_video({frames})|resize(32)", [clip])["image"]
    resized = [Image.fromarray(want[i]).resize((32, 32), Image.BILINEAR) for i in places]
    np.testing.assert_array_equal(found[0], np.stack(resized))


def test_a_gif_is_a_clip_and_its_times_count():
    clip = gif(noisy(5), [100, 100, 600, 100, 100])
    found, image = (
        run("decode_video(5)|resize(64)", [clip])["image"][0],
        Image.open(io.BytesIO(clip)),
    )
    for frame, number in zip(found, (1, 2, 2, 2, 4), strict=True):
        image.seek(number)
        want = image.convert("RGB").resize((64, 64), Image.BILINEAR)
        np.testing.assert_array_equal(frame, want)


def test_a_window_is_in_the_middle_and_in_training_anywhere():
    clip = mp4(greys(20), 10)
    assert numbers(run("decode_video(4, seconds=0.8)|resize(8)", [clip])["image"][0]) == [
        7, 9, 11, 13,
    ]  # fmt: skip
    string = "decode_video(4, seconds=0.8, random=True)|resize(8)"
    seen = [numbers(x) for x in run(string, [clip] * 40)["image"]]
    assert all(a <= b for row in seen for a, b in zip(row, row[1:], strict=False))
    assert all(row[-1] - row[0] <= 8 for row in seen)
    assert min(row[0] for row in seen) <= 1 and max(row[-1] for row in seen) >= 18


def test_training_draws_an_instant_in_each_part():
    clip = mp4(greys(20), 10)
    string = "decode_video(4, random=True)|resize(8)"
    seen = np.array([numbers(x) for x in run(string, [clip] * 60)["image"]])
    for part in range(4):
        assert set(seen[:, part].tolist()) == set(range(5 * part, 5 * part + 5))
    again = np.array([numbers(x) for x in run(string, [clip] * 60, epoch=1)["image"]])
    assert (seen != again).any()


def test_a_short_clip_repeats_its_pictures_or_is_refused():
    clip = mp4(greys(3), 10)
    assert numbers(run("decode_video(6)|resize(8)", [clip])["image"][0]) == [0, 0, 1, 1, 2, 2]
    found = run("decode_video(3, seconds=9)|resize(8)", [clip])["image"]
    assert numbers(found[0]) == [0, 1, 2]
    with pytest.raises(BadExample, match="takes 0.30 seconds, expected 9.0") as error:
        run('decode_video(6, seconds=9, short="refuse")|resize(8)', [clip])
    assert error.value.reason == "clip is too short"


def test_all_frames_of_a_clip_have_one_box_and_one_colour():
    """A clip of one picture, again and again, is the same in every frame after every op."""
    stills = [mp4([picture] * 6, 10) for picture in noisy(8)]
    found = run("decode_video(3)" + ALL, stills)["image"]
    assert found.shape == (8, 3, 12, 12, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - found[:, :1]).max() <= 6  # of the codec, by contrast
    assert np.abs(found[0].astype(int) - found[1]).max() > 20


def test_ops_do_to_a_frame_what_they_do_to_a_picture():
    clip = gif(noisy(1) * 2)
    picture = run("decode_video(1)|resize(64)", [clip])["image"][0, 0]
    still = io.BytesIO()
    Image.open(io.BytesIO(clip)).convert("RGB").save(still, "PNG")
    found = run("decode_video(2)" + ALL, [clip])["image"][0, 1]
    np.testing.assert_array_equal(found, run("decode" + ALL, [still.getvalue()])["image"][0])
    assert picture.shape == (64, 64, 3)


def test_value_range_and_views_take_clips():
    clips = [mp4(noisy(8, seed), 10) for seed in range(3)]
    view = "view('one', 'random_resized_crop(12)|flip')"
    found = run(f"decode_video(4)|{view}|resize(16)|value_range(-1, 1)", clips)
    assert found["image"].shape == (3, 4, 16, 16, 3) and found["image"].dtype == np.float32
    assert found["image_one"].shape == (3, 4, 12, 12, 3)


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=3, deadline=None)
def test_a_clip_and_a_sound_are_the_same_to_the_bit_among_any_others(seed, data):
    some = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)))
    clips = [mp4(noisy(8 + i, i), 10) for i in range(5)]
    sounds = [wav(tone(500 * (i + 1), 0.2 + i / 10), RATE) for i in range(5)]
    for string, all_of in (
        ("decode_video(3, seconds=0.4, random=True)" + ALL, clips),
        ("decode_audio(0.3, rate=8000, random=True)|log_mel(20, rate=8000)", sounds),
    ):
        whole = run(string, all_of, seed)["image"]
        part = run(string, [all_of[i] for i in some], seed, ids=some)["image"]
        np.testing.assert_array_equal(part, whole[some])


def test_a_clip_is_seen_as_its_phone_was_held():
    clip = bytearray(encoded(noisy(4), "mp4/libx264"))
    upright = by_hand(bytes(clip))
    matrix = clip.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2: of a version 0 header
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise
    clip[matrix : matrix + 36] = turned
    found = run("decode_video(4)|resize(32)", [bytes(clip)])["image"][0]
    for frame, picture in zip(found, upright, strict=True):
        want = Image.fromarray(np.rot90(picture, -1)).resize((32, 32), Image.BILINEAR)
        np.testing.assert_array_equal(frame, want)


BAD = {
    "nothing": b"",
    "text": b"hello, this is a text" * 20,
    "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    "list": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    "half": mp4(greys(4), 10)[:300],
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_clip_and_no_sound_is_a_bad_example(name):
    for string, reason in (
        ("decode_video(2)|resize(8)", "clip cannot be decoded"),
        ("decode_audio(1)|log_mel", "sound cannot be decoded"),
    ):
        with pytest.raises(BadExample) as error:
            run(string, [BAD[name]])
        assert error.value.reason == reason


def test_a_clip_without_sound_and_a_sound_without_clip_are_bad_examples():
    with pytest.raises(BadExample, match="the file has no audio"):
        run("decode_audio(1)|log_mel", [mp4(greys(2), 10)])
    with pytest.raises(BadExample, match="the file has no video"):
        run("decode_video(2)|resize(8)", [wav(tone(440, 0.1), RATE)])


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=60))
@settings(max_examples=30, deadline=None)
def test_damage_is_a_bad_example_or_goes_unseen(place, damage):
    """Nothing else may come out of bytes that are wrong."""
    for good, string in (
        (mp4(noisy(6), 10), "decode_video(3)|resize(8)"),
        (wav(tone(440, 0.1), RATE), "decode_audio(0.1)|log_mel"),
    ):
        place %= len(good)
        bad = (good[:place] + damage + good[place + len(damage) :])[: len(good)]
        try:
            run(string, [bad])
        except BadExample as error:
            assert error.reason.endswith("cannot be decoded")


def tone(hertz, seconds, rate=RATE, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def sound(encoded, string):
    return run(string, [encoded])["sound"][0]


def test_a_sound_is_its_samples():
    samples = np.random.default_rng(0).uniform(-1, 1, 1600)
    found = sound(wav(samples, RATE), "decode_audio(0.1)")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, samples, atol=2 / 32767)


def test_channels_are_averaged():
    left, right = np.random.default_rng(0).uniform(-1, 1, (2, 1600))
    found = sound(wav(np.stack([left, right], 1), RATE), "decode_audio(0.1)")
    np.testing.assert_allclose(found, (left + right) / 2, atol=2 / 32767)


@pytest.mark.parametrize("own", [8000, 22_050, 44_100, 48_000])
def test_a_tone_at_another_rate_is_the_same_tone(own):
    found = sound(wav(tone(440, 0.5, own), own), "decode_audio(0.5)")
    want = tone(440, 0.5)
    np.testing.assert_allclose(found[400:-400], want[400:-400], atol=5e-3)


@pytest.mark.parametrize("kind, codec, off", [
    ("flac", "flac", 1e-4), ("mp3", "libmp3lame", 0.05), ("ogg", "libopus", 0.05),
    ("mp4", "aac", 0.05), ("wav", "pcm_u8", 0.02), ("wav", "pcm_f32le", 1e-6),
])  # fmt: skip
def test_sounds_of_other_formats_are_decoded(kind, codec, off):
    """Codecs delay: what counts is what the tone is, not where."""
    buffer, samples = io.BytesIO(), tone(440, 1.0).astype(np.float32)
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = sound(buffer.getvalue(), "decode_audio(0.5)")
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert abs(spectrum.argmax() - 220) <= 1  # 440 Hz in half a second
    assert abs(np.sqrt(2 * np.mean(found**2)) - 0.5) < max(off, 1e-3)


def test_a_part_is_taken_of_a_long_sound_and_zeros_follow_a_short_one():
    ramp = np.arange(8000) / 16_000
    np.testing.assert_allclose(
        sound(wav(ramp, RATE), "decode_audio(0.1)"), ramp[3200:4800], atol=1e-4
    )
    short = sound(wav(ramp[:100] + 0.1, RATE), "decode_audio(0.1)")
    assert (short[:100] > 0.05).all() and not short[100:].any() and len(short) == 1600
    found = run("decode_audio(0.1, random=True)", [wav(ramp, RATE)] * 50)["sound"]
    starts = found[:, 0] * 16_000
    assert starts.min() < 1000 and starts.max() > 5400
    with pytest.raises(BadExample, match="takes 0.01 seconds, expected 0.1") as error:
        sound(wav(ramp[:100], RATE), 'decode_audio(0.1, short="refuse")')
    assert error.value.reason == "sound is too short"


@pytest.mark.parametrize("name, ops", [
    ("whisper", "log_mel(80, mean=0, deviation=1)"),
    ("narrow", "log_mel(40, 0.032, 0.0125, low=60, high=7000, mean=0, deviation=1)"),
])  # fmt: skip
def test_log_mel_is_that_of_librosa(name, ops):
    golden = np.load(GOLDEN)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(golden["sound"][None], format="flt", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = run(f"decode_audio({len(golden['sound']) / RATE})|{ops}", [buffer.getvalue()])
    assert found.keys() == {"image"}
    want = np.log10(np.maximum(golden[name], 1e-10))
    found = found["image"][0, :, :, 0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want[:, : found.shape[1]], atol=2e-5)
    assert found.shape[1] in (want.shape[1], want.shape[1] - 1)


def test_log_mel_is_normalised_and_silence_has_a_floor():
    silent = wav(np.zeros(RATE), RATE)
    found = run("decode_audio(1)|log_mel", [silent])["image"]
    assert found.shape == (1, 128, 100, 1)
    np.testing.assert_array_equal(found, np.full_like(found, (-10 + 4) / 4))


@pytest.mark.parametrize("string, message", [
    ("decode_video(0)", "expected at least 1"),
    ('decode_video(2, short="refuse")', "short='refuse' needs seconds="),
    ("decode_audio(0.00001)", "is not one sample"),
    ("decode_audio(1)|log_mel(500)", "of them lie between two frequencies"),
    ("decode_audio(1)|log_mel(low=9000)", "expected 0 <= low < high <= 8000"),
    ("decode_audio(1)|log_mel(hop=0.00001)", "expected two samples"),
    ("decode_audio(0.01)|log_mel", "expected more than half a window"),
    ("decode|log_mel", "belongs after decode_audio"),
    ("decode_video(2)", "'image' is not yet numbers"),
])  # fmt: skip
def test_what_cannot_work_is_refused(string, message):
    with pytest.raises(BadInput, match=message):
        run(string, [wav(tone(440, 1), RATE) if "audio" in string else mp4(greys(2), 10)])
