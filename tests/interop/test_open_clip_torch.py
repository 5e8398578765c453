"""open_clip opens what we write, and its outputs are ours.

In an environment of its own, with the pins of requirements-open-clip.txt (torch needs the
torchvision of its own version, which that of requirements-torch.txt has not):

  python -m tests.interop.torch_models FOLDER
  MM_TORCH_MODELS=FOLDER that/python -m pytest -p no:cacheprovider --noconftest \\
    tests/interop/test_open_clip_torch.py
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the open_clip extra is not installed")
open_clip = pytest.importorskip("open_clip", reason="the open_clip extra is not installed")

FOLDER = Path(os.environ.get("MM_TORCH_MODELS", "/nowhere"))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="write the models first: python -m tests.interop.torch_models"
)


NAMES = ["clip", "siglip_text", "end_mark"]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_same(name):
    folder = FOLDER / f"open_clip_{name}"
    expected = np.load(folder / "expected.npz", allow_pickle=False)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image, text = (torch.tensor(expected[f"input/{key}"]) for key in ("image", "text"))
    with torch.no_grad():
        zimg, ztxt, *_ = model.eval()(image, text)
        logits = model.get_logits(image, text)[0]
    for key, got in (("image", zimg), ("text", ztxt), ("logits", logits)):
        want = expected[f"output/{key}"]
        error = np.abs(got.numpy() - want).max()
        assert error <= 1e-5 * np.abs(want).max(), (key, error)


@pytest.mark.parametrize("name", NAMES)
def test_its_transforms_and_tokenizer_give_what_ours_give(name):
    folder = f"local-dir:{FOLDER}/open_clip_{name}"
    expected = np.load(FOLDER / f"open_clip_{name}" / "expected.npz", allow_pickle=False)
    _, _, transform = open_clip.create_model_and_transforms(folder)
    found = [transform(Image.fromarray(expected[f"picture/{i}"])) for i in range(3)]
    want = expected["made_input/image"]
    np.testing.assert_allclose(np.stack(found), want, atol=1e-6)
    ids = open_clip.get_tokenizer(folder)(expected["texts"].tolist())
    np.testing.assert_array_equal(ids, expected["made_input/text"])
