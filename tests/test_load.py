"""mm as a library: what `load` takes, and that it embeds as training did."""

import io
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import mm
from data.input import open_input
from data.loader import eval_batches
from data.sources import open_source
from mm.config import BadInput, load
from mm.evals.pool import embedded, pool_rows
from mm.evaluate import restored
from mm.export import export
from mm.interop import npz
from mm.program import build_program

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(fresh_run):
    return mm.load(fresh_run)


@pytest.fixture(scope="module")
def records():
    """Twenty pictures and their names, those of the evaluation."""
    spec = dict(name="synthetic", num_examples=20, image_size=16, seed=1)
    found = open_source(spec, "x").read(np.arange(20), ["image", "label"])
    return [record["image"] for record in found], [record["label"] for record in found]


def test_it_embeds_as_the_program_does(fresh_run, model, records):
    program = build_program(load(str(fresh_run / "config.json")))
    state, _ = restored(program, str(fresh_run), "latest")
    source, ops, _ = open_input(program.recipe.evals["held_out"], "x")
    batches = eval_batches(source, ops, batch_size=16, sharding=program.batch_sharding)
    pool = pool_rows(embedded(lambda batch: program.embed(state, batch)), batches, program.mesh)
    zimg, ztxt = pool["zimg"], pool["ztxt"]
    images, texts = records
    np.testing.assert_allclose(model.embed_image(images), zimg, atol=1e-6)
    np.testing.assert_allclose(model.embed_text(texts), ztxt, atol=1e-6)


@pytest.mark.parametrize("format", ["npz", "stablehlo"])
def test_an_export_embeds_as_the_run_it_is_of(fresh_run, model, records, tmp_path, format):
    export(str(fresh_run), format=format, output=str(tmp_path / "a"))
    exported = mm.load(tmp_path / "a")
    images, texts = records
    np.testing.assert_array_equal(exported.embed_image(images), model.embed_image(images))
    np.testing.assert_array_equal(exported.embed_text(texts), model.embed_text(texts))
    assert exported.logit_scale == model.logit_scale == pytest.approx(10)
    assert exported.logit_bias == -10


def test_embeddings_have_length_one_and_do_not_depend_on_their_neighbours(model, records):
    images, texts = records
    zimg, ztxt = model.embed_image(images), model.embed_text(texts)
    assert zimg.shape == ztxt.shape == (20, 16) and zimg.dtype == ztxt.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.embed_image(images[7:8]), zimg[7:8], atol=1e-6)
    np.testing.assert_allclose(model.embed_text(texts[3:12]), ztxt[3:12], atol=1e-6)
    np.testing.assert_allclose(model.similarity(images, texts), zimg @ ztxt.T, atol=1e-6)


def test_a_picture_may_come_in_any_form(model, records, tmp_path):
    encoded = records[0][0]
    (tmp_path / "a.png").write_bytes(encoded)
    opened = Image.open(io.BytesIO(encoded))
    forms = [encoded, str(tmp_path / "a.png"), tmp_path / "a.png", opened, np.asarray(opened)]
    found = model.embed_image(forms)
    for row in found[1:]:
        np.testing.assert_array_equal(row, found[0])


def test_a_pil_picture_is_on_white_where_it_is_transparent(model):
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    white, red = (Image.new("RGB", (16, 16), color) for color in ("white", "red"))
    found = model.embed_image([clear, white, red])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_nothing_gives_no_rows(model):
    assert model.embed_image([]).shape == (0, 16) == model.embed_text([]).shape


def test_few_programs_are_compiled_whatever_the_sizes(model, records):
    for rows in (1, 2, 3, 5, 8, 9, 17, 20):
        model.embed_text(records[1][:rows])
    assert model._text._cache_size() <= 3


def test_other_ops_may_be_given(fresh_run, model, records):
    ops = "decode|resize(16)|value_range(-1, 1)"
    pictures = mm.load(fresh_run, preprocess=ops)
    images, texts = records
    np.testing.assert_array_equal(pictures.embed_image(images), model.embed_image(images))
    with pytest.raises(BadInput, match="embed_text: this model has no text tower, or no tokenizer"):
        pictures.embed_text(texts)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.embed_image("a.png"), "embed_image: expected a list, got 'a.png'; put it in"),
        (lambda m: m.embed_image([b"", b"x"]), "embed_image: image 0: a picture of 0 bytes"),
        (lambda m: m.embed_image(["none.png"]), "embed_image: image 0: none.png: cannot be read"),
        (lambda m: m.embed_image([np.zeros((4, 4))]), "image 0 is float64[4, 4]; expected a path"),
        (lambda m: m.embed_image([Image.new("F", (4, 4))]), "image 0 has mode F; expected 8 bits"),
        (lambda m: m.embed_text("red"), "embed_text: expected a list, got 'red'; put it in [...]"),
        (lambda m: m.embed_text(["red", None]), "embed_text: text 1 is NoneType, expected a str"),
    ],
)
def test_what_cannot_be_embedded_is_said_in_one_line(model, call, message):
    with pytest.raises(BadInput) as raised:
        call(model)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_the_place_of_a_broken_picture_is_that_in_the_whole_list(model, records):
    images = records[0] * 4
    images[70] = images[70][:40]
    with pytest.raises(BadInput, match="^embed_image: image 70: a picture of 40 bytes"):
        model.embed_image(images)


def test_a_device_may_be_given_as_a_platform(fresh_run, model, records):
    for device in ("cpu", jax.devices()[1]):
        found = mm.load(fresh_run, device=device)
        np.testing.assert_array_equal(found.embed_text(records[1]), model.embed_text(records[1]))
    (placed,) = found._params["model/text/embedding"].devices()
    assert placed == jax.devices()[1]


def test_the_manifest_says_the_same_wherever_a_model_is_from(fresh_run, model, tmp_path):
    assert model.manifest["format"] == "run"
    for format in ("npz", "hf"):
        export(str(fresh_run), format=format, output=str(tmp_path / format))
        found = mm.load(tmp_path / format).manifest
        assert found["format"] == format and model.manifest.keys() <= found.keys()
        for key in ("step", "parameters", "logits", "image", "metrics", "source"):
            assert found[key] == model.manifest[key], key
        assert found["text"]["ids_sha256"] == model.manifest["text"]["ids_sha256"]


@pytest.mark.parametrize(
    "path, given, message",
    [
        ("{run}", {"step": 7}, "no checkpoint of step 7"),
        ("{run}", {"weights": "average"}, "keeps no average"),
        ("{empty}", {}, "is no model that is known"),
        (
            "saved_model:{empty}",
            {},
            "saved_model: only goes out, as programs for others to run; take the run",
        ),
        ("npz:{empty}", {}, "config.json: cannot be read"),
        ("{run}", {"step": "last"}, "step=last: expected a number, latest or best"),
        ("{run}", {"device": "cpuu"}, "device='cpuu': expected one of jax.devices(), or a platfo"),
        ("{run}", {"device": 3}, "device=3: expected one of jax.devices(), or a platform that"),
        (
            "{run}",
            {"preprocess": "decode|resize(32)"},
            "preprocess: makes pictures of [32, 32, 3], the model reads [16, 16, 3]; give ops",
        ),
        (
            "{run}",
            {"preprocess": "caption('label')|tokenize('tokenizer.json', 6)"},
            "preprocess: makes texts of [6], the model reads [8]",
        ),
        ("{export}", {"step": 2}, "step and weights go with the workdir of a run"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(fresh_run, tmp_path, path, given, message):
    (tmp_path / "empty").mkdir()
    export(str(fresh_run), output=str(tmp_path / "export"))
    places = {"run": fresh_run, "empty": tmp_path / "empty", "export": tmp_path / "export"}
    with pytest.raises(BadInput) as raised:
        mm.load(path.format(**places), **given)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert "--" not in str(raised.value)  # nobody gave a flag


def test_weights_that_were_changed_are_refused(fresh_run, tmp_path):
    export(str(fresh_run), output=str(tmp_path / "a"))
    path = tmp_path / "a" / "weights.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput):  # by the checksums of the archive, or by the manifest's
        mm.load(tmp_path / "a")


def test_weights_of_another_model_are_refused(fresh_run, tmp_path):
    export(str(fresh_run), output=str(tmp_path / "a"))
    bundle = npz.read(str(tmp_path / "a"))
    wider = bundle.model | {"embed_dim": 32}
    (tmp_path / "b").mkdir()
    npz.write(bundle._replace(model=wider), str(tmp_path / "b"))
    (tmp_path / "b" / "manifest.json").write_bytes((tmp_path / "a" / "manifest.json").read_bytes())
    with pytest.raises(BadInput, match="2 parameters of the towers have another shape"):
        mm.load(tmp_path / "b")


def test_a_model_of_pictures_alone_embeds_pictures(fresh_run, records, tmp_path):
    export(str(fresh_run), output=str(tmp_path / "a"))
    bundle = npz.read(str(tmp_path / "a"))
    alone = {"image": bundle.model["image"]}
    (tmp_path / "b").mkdir()
    npz.write(bundle._replace(model=alone, objectives={}), str(tmp_path / "b"))
    (tmp_path / "b" / "manifest.json").write_bytes((tmp_path / "a" / "manifest.json").read_bytes())
    model = mm.load(tmp_path / "b")
    found = model.embed_image(records[0])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    with pytest.raises(BadInput, match="embed_text: this model has no text tower"):
        model.embed_text(["red"])
    with pytest.raises(BadInput, match="similarity: this model has no embed_dim"):
        model.similarity(records[0], ["red"])


def test_importing_mm_imports_nothing_heavy():
    script = (
        "import sys, mm; print([m for m in ('jax', 'numpy', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = mm.lod
