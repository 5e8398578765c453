"""Models of open_clip: golden outputs, round trips to the bit, two places of a text, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mm.config import BadInput
from mm.interop import formats, open_clip
from mm.objectives.views import Views
from tests.interop import folders
from tests.interop.folders import OPEN_CLIP
from tests.interop.test_hf import system
from tests.models.golden import read


def assert_same(got, want):
    assert got.keys() == want.keys()
    for path, x in want.items():
        assert got[path].tobytes() == x.tobytes() and got[path].shape == x.shape, path


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_folder_of_open_clip_gives_the_outputs_that_it_gave_there(name, tmp_path):
    bundle = open_clip.read(str(folders.open_clip_folder(name, tmp_path)))
    assert bundle.manifest["unused"] == []
    golden, built = read(f"open_clip_{name}"), system(bundle)
    image, text = golden.input["image"].transpose(0, 2, 3, 1), golden.input["text"]
    batch = {"image": image, "text": text, "text_mask": text != 0}
    with jax.default_matmul_precision("highest"):
        views = Views(built.model, {key: jnp.asarray(x) for key, x in batch.items()}, None)
        zimg, ztxt = views.image_embedding().z, views.text_embedding().z
        objective = built.objectives["contrastive"]
        logits = jnp.exp(objective.log_scale[...]) * zimg @ ztxt.T
        logits += 0 if objective.bias is None else objective.bias[...]
    for key, got in dict(image=zimg, text=ztxt, logits=logits).items():
        error = np.abs(got - golden.output[key]).max()
        assert error <= 1e-5 * np.abs(golden.output[key]).max(), (key, error)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_ours_to_open_clip_to_ours_is_the_same_to_the_bit(name, tmp_path):
    given = folders.bundle(*OPEN_CLIP[name])
    open_clip.write(given, str(tmp_path))
    back = open_clip.read(str(tmp_path))
    assert_same(back.params, given.params)
    assert back.manifest["unused"] == []


def test_a_text_tower_under_its_own_name_is_read(tmp_path):
    given = folders.bundle(*OPEN_CLIP["clip"])
    open_clip.write(given, str(tmp_path))
    file = tmp_path / "open_clip_model.safetensors"
    text = ("token_", "positional", "transformer.", "ln_final", "text_projection")
    weights = {
        f"text.{name}" if name.startswith(text) else name: x for name, x in load_file(file).items()
    }
    assert "text.transformer.resblocks.1.attn.in_proj_weight" in weights
    save_file(weights, file)
    assert_same(open_clip.read(str(tmp_path)).params, given.params)


def test_how_pictures_are_read_travels(tmp_path):
    image = dict(
        size=[12, 12], resize=dict(mode="shortest", size=12, method="bicubic", antialias=True),
        crop=[12, 12], mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1],
    )  # fmt: skip
    given = folders.bundle(*OPEN_CLIP["clip"], image=image)
    open_clip.write(given, str(tmp_path))
    back = open_clip.read(str(tmp_path)).manifest
    assert back["image"] == image
    assert back["preprocess"] == (
        'decode|resize(12, mode="shortest", method="bicubic")|center_crop((12, 12))'
        "|normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))"
    )
    # The Hub's folders have transformers' file as well, which says the same or less.
    (tmp_path / "preprocessor_config.json").write_text('{"size": 24, "do_center_crop": false}')
    assert open_clip.read(str(tmp_path)).manifest["preprocess"] == back["preprocess"]
    padded = given._replace(manifest=given.manifest | {"image": image | {"pad": {"share": 0.1}}})
    with pytest.raises(BadInput, match="its transforms do not do .*pad="):
        open_clip.write(padded, str(tmp_path))


@pytest.mark.parametrize(
    "case, part, change, message",
    [
        ("clip", "image", dict(pool="map"), "image.pool='map' .open_clip: 'cls'"),
        ("clip", "text", dict(causal=False), "text.padding='masked' .open_clip: 'read'"),
        ("clip", "text", dict(activation="relu"), "text.activation='relu'"),
        ("clip", "image", dict(norm_placement="post"), "image.norm_placement='post'"),
    ],
)
def test_options_without_a_counterpart_are_listed(case, part, change, message, tmp_path):
    model, objectives = OPEN_CLIP[case]
    model = model | {part: model[part] | change}
    with pytest.raises(BadInput, match=message):
        open_clip.write(folders.bundle(model, objectives), str(tmp_path))


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("vision_cfg", dict(timm_model_name="vit_base"), "timm_model_name='vit_base' has no coun"),
        ("vision_cfg", dict(pool_type="avg"), "pool_type='avg' has no counterpart"),
        ("text_cfg", dict(hf_model_name="roberta"), "hf_model_name='roberta' has no counterpart"),
        ("text_cfg", dict(layers=3), "has no transformer.resblocks.2"),
        ("vision_cfg", dict(width="x"), "width='x': expected a number"),
    ],
)
def test_a_config_without_a_counterpart_is_refused(part, change, message, tmp_path):
    open_clip.write(folders.bundle(*OPEN_CLIP["clip"]), str(tmp_path))
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"][part].update(change)
    file.write_text(json.dumps(config))
    with pytest.raises(BadInput, match=message) as error:
        formats.read(f"open_clip:{tmp_path}", "x")
    assert "\n" not in str(error.value)
