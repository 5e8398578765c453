"""config.model_init of other libraries' models: what fits is taken, the rest said or refused."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mm.config import BadInput
from mm.interop import hf
from mm.model_init import read_parameters
from mm.optim.paths import flatten
from mm.program import build_program
from tests import tiny
from tests.interop import folders
from tests.interop.folders import EXPRESSED


def program(name, image=None, text=None, objectives=None, **changes):
    """Of a model that a class of transformers expresses, with changes."""
    config = tiny.get_config()
    model, own, _ = EXPRESSED[name]
    model = dict(model, **changes)
    for part, keys in (("image", image), ("text", text)):
        if part in model:
            model[part] = model[part] | (keys or {})
    with config.unlocked():
        config.model, config.objectives = model, objectives or own
        config.sharding = dict(mesh={"fsdp": 2}, rules="fsdp")
    return build_program(config, jax.devices()[:2])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The path of a CLIPModel, and what was written there."""
    folder = tmp_path_factory.mktemp("clip")
    bundle = folders.bundle(*EXPRESSED["clip"][:2])
    hf.write(bundle, str(folder))
    return f"hf:{folder}", bundle


def read(clip, a_program, **keys):
    tree, saved = read_parameters(path=clip[0], program=a_program, **keys)
    return flatten(tree), saved


def test_all_parameters_of_a_foreign_model_are_taken_and_placed(clip, capsys):
    ours = program("clip")
    found, saved = read(clip, ours)
    for name, want in flatten(ours.state.params).items():
        np.testing.assert_array_equal(found[name], clip[1].params[name])
        assert found[name].sharding == want.sharding
    assert f"{len(found)} of {len(found)} parameters are those of {clip[0]}\n" == (
        capsys.readouterr().out
    )
    assert saved["tokenizer"]["ids_after"] == [23]


def test_positions_of_another_grid_are_resampled_and_those_of_longer_texts_cut(clip, capsys):
    ours = program("clip", dict(image_size=(16, 8)), dict(length=4))
    found, _ = read(clip, ours)
    table = clip[1].params["model/image/position_embedding"].reshape(3, 3, 16)
    want = jax.image.resize(table, (4, 2, 16), "cubic").reshape(8, 16)
    np.testing.assert_allclose(found["model/image/position_embedding"], want, rtol=1e-6)
    cut = clip[1].params["model/text/position_embedding"][:4]
    np.testing.assert_array_equal(found["model/text/position_embedding"], cut)
    said = capsys.readouterr().out
    assert "of another size: model/image/position_embedding [9, 16] resampled to [8, 16]" in said
    assert "of another size: model/text/position_embedding [6, 16] cut to [4, 16]" in said


def test_the_scale_comes_along_under_the_name_that_the_objective_has(clip):
    objectives = dict(pairs=dict(name="contrastive", kind="softmax"))
    found, _ = read(clip, program("clip", objectives=objectives))
    want = clip[1].params["objectives/contrastive/log_scale"]
    np.testing.assert_array_equal(found["objectives/pairs/log_scale"], want)


def test_what_a_foreign_file_lacks_may_stay_as_it_is_drawn(clip, tmp_path, capsys):
    shutil.copytree(clip[0].removeprefix("hf:"), tmp_path / "lacking")
    file = tmp_path / "lacking" / "model.safetensors"
    weights = load_file(file)
    del weights["text_projection.weight"]
    del weights["vision_model.encoder.layers.1.mlp.fc1.bias"]  # of a stack the whole is lacking
    save_file(weights, file, metadata={"format": "pt"})
    lacking, ours = (f"hf:{tmp_path}/lacking", clip[1]), program("clip")
    absent = ["model/image/encoder/blocks/mlp/up/bias", "model/text_projection/kernel"]
    said = "does not have .*mlp/up/bias .missing., .*text_projection/kernel .missing.; allow_miss"
    with pytest.raises(BadInput, match=said):
        read(lacking, ours)
    found, _ = read(lacking, ours, allow_missing=(".*/mlp/up/bias", ".*/text_projection/.*"))
    assert clip[1].params.keys() - found.keys() == set(absent)
    out = capsys.readouterr().out
    assert all(f"fresh, as allow_missing says: {path} (missing)" in out for path in absent)


def test_what_is_missing_reshaped_or_left_over_is_listed_and_refused(clip):
    objectives = dict(contrastive=dict(name="contrastive", kind="sigmoid"))
    ours = program("clip", dict(pre_norm=False), dict(mlp_dim=32), objectives)
    missing = r"does not have .*mlp/down/kernel \(is \[2, 20, 16\], expected \[2, 32, 16\]\)"
    unused = "has more than ours: model/image/pre_norm/bias, model/image/pre_norm/scale"
    with pytest.raises(BadInput, match=f"{missing}.*bias .missing.*{unused}") as error:
        read(clip, ours)
    assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match=rf"{clip[0]} {unused}"):
        read(clip, ours, allow_missing=(".*/mlp/.*", "objectives/.*"))


def test_what_patterns_allow_stays_fresh_or_is_left_out_and_is_said(clip, capsys):
    objectives = dict(contrastive=dict(name="contrastive", kind="sigmoid"))
    ours = program("clip", dict(pre_norm=False), None, objectives)
    found, _ = read(
        clip, ours, allow_missing=("objectives/contrastive/bias",), allow_unused=(".*/pre_norm/.*",)
    )
    fresh = {name for name in flatten(ours.state.params) if name not in found}
    assert fresh == {"objectives/contrastive/bias"}
    said = capsys.readouterr().out
    assert "fresh, as allow_missing says: objectives/contrastive/bias (missing)" in said
    assert "left out, as allow_unused says: model/image/pre_norm/scale" in said


def test_one_tower_of_two_is_asked_for_by_a_pattern(clip):
    image = dict(pre_norm=True, stem=dict(name="linear", bias=False))
    objectives = dict(mae=dict(name="mae", decoder=folders.TOWER | dict(depth=1)))
    ours = program("vit", image, objectives=objectives)
    found, saved = read(clip, ours, parameters=("model/image/.*",))
    assert saved == {}
    assert {name for name in found} == {n for n in clip[1].params if n.startswith("model/image/")}


def test_another_function_of_the_same_shapes_is_said(clip, capsys):
    read(clip, program("clip", dict(activation="gelu")))
    said = capsys.readouterr().out
    assert 'was another: image.activation (given "gelu", found "quick_gelu")' in said


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(step=3), "step=3: is of a run, path='hf:.*' is none"),
        (dict(path="hf:/nowhere"), "/nowhere/config.json: cannot be read"),
        (dict(path="hff:/nowhere"), "no format 'hff'; did you mean 'hf'"),
        (dict(allow_missing=("[",)), "is no list of regular expressions"),
    ],
)
def test_what_cannot_be_is_refused(keys, message, clip):
    ours = program("clip", objectives=dict(contrastive=dict(name="contrastive", kind="sigmoid")))
    with pytest.raises(BadInput, match=message):
        read_parameters(**{"path": clip[0]} | keys, program=ours)
