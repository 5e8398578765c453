import io

import numpy as np
import pytest
from PIL import Image

from data.preprocess.draws import example_keys
from data.preprocess.parse import parse
from mm.config import BadInput

VIEW = "random_resized_crop(12, scale=(0.2, 1))|flip|color_jitter(0.4)"
TWO = f"decode|view('one', '{VIEW}')|view('two', '{VIEW}')|resize(16)"


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8))


def run(string, images, seed=0, ids=None, epoch=0):
    ids = np.arange(len(images)) if ids is None else ids
    keys = example_keys(seed, ids, ids * 0 + epoch)
    return parse(string, where="config.input.preprocess").apply({"image": images}, keys)


def test_views_stand_beside_the_clean_picture():
    images = pictures(6)
    found = run(TWO, images)
    assert found.keys() == {"image", "image_one", "image_two"}
    np.testing.assert_array_equal(found["image"], np.stack(images))
    for name in ("image_one", "image_two"):
        assert found[name].shape == (6, 12, 12, 3) and found[name].dtype == np.uint8


def test_the_two_views_and_the_epochs_draw_other_numbers():
    images = pictures(6)
    found, later = run(TWO, images), run(TWO, images, epoch=1)
    for i in range(6):
        assert not np.array_equal(found["image_one"][i], found["image_two"][i])
        assert not np.array_equal(found["image_one"][i], later["image_one"][i])
    again = run(TWO, images)
    np.testing.assert_array_equal(found["image_one"], again["image_one"])
    np.testing.assert_array_equal(found["image_two"], again["image_two"])


def test_a_view_depends_on_no_neighbour():
    images, some = pictures(8), np.array([5, 2])
    whole, part = run(TWO, images), run(TWO, [images[i] for i in some], ids=some)
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][some])


def test_a_view_leaves_the_draws_of_the_clean_picture_alone():
    clean = "random_resized_crop(12)|flip"
    plain, beside = (run(f"decode|{view}{clean}", pictures(6)) for view in ("", f"{TWO[7:-11]}|"))
    assert beside.keys() == {"image", "image_one", "image_two"}
    np.testing.assert_array_equal(beside["image"], plain["image"])


def test_a_view_goes_through_its_ops():
    images = pictures(3)
    found = run("decode|pad(0.5)|view('small', 'resize(8)|value_range(-1, 1)')|resize(16)", images)
    small = run("decode|pad(0.5)|resize(8)|value_range(-1, 1)", images)["image"]
    np.testing.assert_array_equal(found["image_small"], small)


def test_a_picture_is_decoded_once_for_all_views(monkeypatch):
    import data.preprocess.image as ops

    encoded, calls, decode = [], [], ops.decode_picture
    for image in pictures(3):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    monkeypatch.setattr(ops, "decode_picture", lambda x: calls.append(x) or decode(x))
    found = run(TWO, encoded)
    assert len(calls) == 3
    np.testing.assert_array_equal(found["image_one"], run(TWO, pictures(3))["image_one"])


@pytest.mark.parametrize(
    "string, message",
    [
        ("decode|view('one', 'flipp')|resize(4)", r"view\('one', 'flipp'\).*did you mean 'flip'"),
        ("decode|view('one', 'resize(0)')", "size=0: expected at least 1"),
        ("decode|view('a b', 'resize(4)')", "name='a b': expected letters"),
        ("decode|view('one', 'decode|resize(4)')", "reads fields; expected ops on a picture"),
        ("decode|view('one', '')", "cannot read"),
    ],
)
def test_mistakes_are_told_where_they_stand(string, message):
    with pytest.raises(BadInput, match=message) as error:
        parse(string, where="config.input.preprocess")
    assert str(error.value).startswith("config.input.preprocess")


@pytest.mark.parametrize(
    "string, message",
    [
        ("decode|resize(16)|view('one', 'resize(4)')", "belongs after decode, before resize"),
        ("decode|view('one', 'flip')|resize(4)", "belongs after resize or random_resized_crop"),
        ("decode|view('one', 'pad(0.1)')|resize(4)", "is not yet numbers"),
    ],
)
def test_an_order_that_cannot_work_is_refused(string, message):
    with pytest.raises(BadInput, match=message):
        run(string, pictures(1))
