"""Transformers opens what we write, and its outputs are ours.

Torch is an extra, in an environment of its own, with the pins of requirements-torch.txt:

  python -m tests.interop.torch_models FOLDER
  MM_TORCH_MODELS=FOLDER that/python -m pytest -p no:cacheprovider --noconftest \\
    tests/interop/test_torch.py
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
transformers = pytest.importorskip("transformers", reason="the torch extra is not installed")

FOLDER = Path(os.environ.get("MM_TORCH_MODELS", "/nowhere"))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="write the models first: python -m tests.interop.torch_models"
)
CLASSES = {
    "clip": "CLIPModel", "siglip": "SiglipModel", "vit": "ViTModel", "vit_pooler": "ViTModel",
    "mae_encoder": "ViTMAEModel", "mae": "ViTMAEForPreTraining", "bert": "BertForMaskedLM",
    "bert_pooler": "BertModel", "blip": "BlipForImageTextRetrieval",
    "dual_encoder_quickstart": None, "dual_encoder_siglip": None, "dual_encoder_flip": None,
    "dual_encoder_bert": None,
}  # fmt: skip


def opened(name):
    """The model from its folder alone; nothing may be missing, left over or of another shape."""
    kind = CLASSES[name]
    if kind is None:
        load = transformers.AutoModel.from_pretrained
        return load(FOLDER / name, trust_remote_code=True).eval()
    load = getattr(transformers, kind).from_pretrained
    model, info = load(FOLDER / name, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


WITH_PICTURES = [name for name in CLASSES if not name.startswith("bert")]
WITH_TEXTS = [name for name in CLASSES if not name.startswith(("vit", "mae"))]
TOWERS = [name for name in WITH_PICTURES if name in WITH_TEXTS and name != "blip"]


def expected(name):
    return np.load(FOLDER / name / "expected.npz", allow_pickle=False)


def from_folder(kind, name):
    return getattr(transformers, kind).from_pretrained(FOLDER / name, trust_remote_code=True)


def check_pixels(name, processor):
    """Of noise. Where ours resizes and cuts in one step, one of 255 levels may be rounded."""
    known = expected(name)
    pictures = [Image.fromarray(known[f"picture/{i}"]) for i in range(3)]
    found = processor(images=pictures, return_tensors="np")["pixel_values"]
    std = getattr(processor, "image_processor", processor).image_std
    levels = 255 * np.array(std)[:, None, None] * np.abs(found - known["made_input/image"])
    most, share = (1, 0.03) if name in ("clip", "mae") else (0, 0)
    assert levels.max() < most + 0.01 and (levels > 0.01).mean() <= share


def words_of(name, processor):
    texts = expected(name)["texts"].tolist()
    return processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")


def check_words(name, processor):
    known, found = expected(name), words_of(name, processor)
    np.testing.assert_array_equal(found["input_ids"], known["made_input/text"])
    if "attention_mask" in found:
        np.testing.assert_array_equal(found["attention_mask"], known["made_input/text_mask"])


def outputs(name, model, given):
    """As `tests.interop.torch_models` calls them."""
    pixels, ids, mask = (given.get(key) for key in ("image", "text", "text_mask"))
    if name.startswith(("clip", "siglip", "dual_encoder")):
        inputs = dict(pixel_values=pixels, input_ids=ids)
        if name != "siglip":  # its processor gives no mask: padding is read
            inputs["attention_mask"] = mask.long()
        out = model(**inputs)
        return dict(image=out.image_embeds, text=out.text_embeds, logits=out.logits_per_image)
    if name == "bert":
        return dict(logits=model(input_ids=ids, attention_mask=mask.long()).logits)
    if name == "bert_pooler":
        out = model(input_ids=ids, attention_mask=mask.long())
        return dict(tokens=out.last_hidden_state, pooled=out.pooler_output)
    if name.startswith("mae"):
        tower = getattr(model, "vit", model)
        tower.config.mask_ratio = 0.0  # all patches, in the order of the noise
        order = torch.arange(9.0).expand(len(pixels), -1)
        tokens = tower(pixel_values=pixels, noise=order).last_hidden_state
        return dict(tokens=tokens, pooled=tokens[:, 0])
    if name == "blip":
        both = dict(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
        return dict(
            cosines=model(**both, use_itm_head=False).itm_score,
            matches=model(**both, use_itm_head=True).itm_score,
        )
    out = model(pixel_values=pixels)
    return dict(tokens=out.last_hidden_state, pooled=out.pooler_output)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_are_the_same(name):
    known = expected(name)
    given = {k[6:]: torch.tensor(known[k]) for k in known if k.startswith("input/")}
    with torch.no_grad():
        found = outputs(name, opened(name), given)
    assert {f"output/{key}" for key in found} == {k for k in known if k.startswith("output/")}
    for key, got in found.items():
        want = known[f"output/{key}"]
        error = np.abs(got.numpy() - want).max()
        assert error <= 1e-5 * np.abs(want).max(), (key, error)


@pytest.mark.parametrize("name", WITH_PICTURES)
def test_the_image_processor_gives_the_pixels_that_ours_give(name):
    check_pixels(name, from_folder("AutoImageProcessor", name))


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_the_tokenizer_gives_the_ids_that_ours_gives(name):
    check_words(name, from_folder("AutoTokenizer", name))


@pytest.mark.parametrize("name", ["clip", "blip"])
def test_the_processor_of_a_class_that_has_one_does_both(name):
    processor = from_folder("AutoProcessor", name)
    assert type(processor).__name__ == {"clip": "CLIPProcessor", "blip": "BlipProcessor"}[name]
    check_pixels(name, processor)
    check_words(name, processor)


@pytest.mark.parametrize("name", TOWERS)
def test_what_the_tokenizer_gives_is_what_the_model_wants(name):
    known = expected(name)
    pixels = torch.tensor(known["made_input/image"])
    with torch.no_grad():
        out = opened(name)(
            pixel_values=pixels, **words_of(name, from_folder("AutoTokenizer", name))
        )
    for key, got in dict(image=out.image_embeds, text=out.text_embeds).items():
        np.testing.assert_allclose(got, known[f"made_output/{key}"], atol=1e-5, err_msg=key)
