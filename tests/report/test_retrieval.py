import numpy as np
from PIL import Image, ImageFont

from mm.report.retrieval import best_columns, draw, wrapped


def test_the_best_come_first_and_nan_last():
    scores = np.array([[0.1, np.nan, 0.9, 0.5, 0.3, 0.2]])
    assert best_columns(scores).tolist() == [[2, 3, 4, 5, 0]]


def test_the_right_picture_is_framed_green_and_others_are_not():
    pool = [Image.new("RGB", (8, 8), (10 * i, 0, 0)) for i in range(6)]
    scores = np.array([[6, 5, 4, 3, 2, 1]], float)
    for own, green in ((2, 1), (5, 0)):  # third of those shown; not among them
        sheet = np.asarray(draw(["a caption"], pool, scores, [own], "title"))
        found = (sheet == (0x2E, 0x9E, 0x4F)).all(-1).any()
        assert found == bool(green)


def test_long_captions_are_broken_between_words():
    font = ImageFont.load_default(size=15)
    lines = wrapped("woman running facing right with a very long name", font, 120)
    assert len(lines) > 1 and " ".join(lines).startswith("woman running facing")
    assert all(font.getlength(line) <= 120 for line in lines)
