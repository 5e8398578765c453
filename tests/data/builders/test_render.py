import io

import numpy as np
import pytest
from PIL import Image

from data.builders.render import SIZE, png, svg
from data.sources import BadExample

LEFT_HALF = {"body": '<path fill="red" d="M0 0h8v16h-8z"/>', "width": 16, "height": 16}
RED, WHITE = [255, 0, 0], [255, 255, 255]


def pixels(icon):
    with Image.open(io.BytesIO(png(svg(icon), "x"))) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def test_icon_fills_the_canvas_on_white():
    drawn = pixels(LEFT_HALF)
    assert drawn.shape == (SIZE, SIZE, 3)
    assert (drawn[:, : SIZE // 2] == RED).all() and (drawn[:, SIZE // 2 :] == WHITE).all()


def test_icon_that_is_not_square_is_centred_not_stretched():
    drawn = pixels({"body": '<path d="M0 0h16v8h-16z"/>', "width": 16, "height": 8})
    assert (drawn[:16] == 255).all() and (drawn[16:48] == 0).all() and (drawn[48:] == 255).all()


def test_view_box_starts_at_left_and_top():
    moved = {**LEFT_HALF, "body": '<path fill="red" d="M-4 7h8v16h-8z"/>', "left": -4, "top": 7}
    assert (pixels(moved) == pixels(LEFT_HALF)).all()


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        ({"hFlip": True}, lambda image: image[:, ::-1]),
        ({"vFlip": True}, lambda image: image[::-1]),
        ({"rotate": 1}, lambda image: np.rot90(image, -1)),
        ({"rotate": 2}, lambda image: np.rot90(image, 2)),
        ({"rotate": 3}, lambda image: np.rot90(image, 1)),
        ({"hFlip": True, "rotate": 1}, lambda image: np.rot90(image[:, ::-1], -1)),
    ],
)
def test_moves_of_an_alias_are_made(move, expected):
    corner = {"body": '<path d="M2 1h6v3h-6z"/>', "left": 1, "width": 16, "height": 16}
    assert (pixels({**corner, **move}) == expected(pixels(corner))).all()


def test_quarter_turn_of_a_wide_icon_makes_it_high():
    wide = {"body": '<path d="M0 0h16v8h-16z"/>', "width": 16, "height": 8}
    assert (pixels({**wide, "rotate": 1}) == np.rot90(pixels(wide))).all()


def test_same_icon_gives_the_same_bytes():
    assert png(svg(LEFT_HALF), "x") == png(svg(LEFT_HALF), "x")


def test_damaged_picture_is_named():
    with pytest.raises(BadExample, match="noto/1f600"):
        png("<svg", "noto/1f600")
