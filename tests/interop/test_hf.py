"""Models of transformers read and written: golden outputs, round trips to the bit, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tokenizers
from data.tokenizers import same_ids
from mm.config import BadInput
from mm.interop import formats, hf, options
from mm.interop.hf.tokenizer_files import read_tokenizer
from mm.objectives.combine import System
from mm.objectives.views import Views
from mm.optim.paths import map_paths
from tests.interop import folders
from tests.interop.folders import DUAL_ENCODERS, EXPRESSED
from tests.models.golden import read


def system(bundle):
    """The model and its objectives with the bundle's parameters."""
    make = lambda: System(bundle.model, bundle.objectives, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, like, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    params = map_paths(lambda path, _: jnp.asarray(bundle.params[path]), nnx.to_pure_dict(like))
    return nnx.merge(graphdef, params, rest)


def outputs(name, built, inputs):
    """What the golden file has, of our model."""
    image = inputs["image"].transpose(0, 2, 3, 1) if "image" in inputs else None
    model = built.model
    if name in ("clip", "siglip"):
        batch = dict(image=image, text=inputs["text"], text_mask=inputs.get("text_mask"))
        if name == "siglip":
            batch["text_mask"] = inputs["text"] != 0  # that it reads padding the model knows
        views = Views(model, batch | {"group": jnp.arange(3)}, None)
        zimg, ztxt = views.image_embedding().z, views.text_embedding().z
        objective = built.objectives["contrastive"]
        logits = jnp.exp(objective.log_scale[...]) * zimg @ ztxt.T
        if objective.bias is not None:
            logits = logits + objective.bias[...]
        return dict(image=zimg, text=ztxt, logits=logits)
    if name == "bert":
        encoded = model.encode_text(
            inputs["text"], mask=inputs["text_mask"], segments=inputs["segments"]
        )
        head = built.objectives["masked_text"].head
        logits = head(encoded.tokens, model.text.embedding[...]).whole()
        return dict(tokens=encoded.tokens, logits=logits)
    if name == "blip":
        batch = dict(image=image, text=inputs["text"], text_mask=inputs["text_mask"])
        views = Views(model, batch, None)
        cosines = views.image_embedding().z @ views.text_embedding().z.T
        matches = built.objectives["matching"].head(views.fuse().pooled)
        return dict(cosines=cosines, matches=matches)
    return dict(tokens=model.encode_image(image).tokens)


@pytest.mark.parametrize("name", ["vit", "clip", "siglip", "bert", "blip"])
def test_a_folder_of_transformers_gives_the_outputs_that_it_gave_there(name, tmp_path):
    bundle = hf.read(str(folders.golden_folder(name, tmp_path)))
    golden = read(name)
    assert bundle.manifest["unused"] == []
    assert all(x.dtype == np.float32 for x in bundle.params.values())
    with jax.default_matmul_precision("highest"):
        found = outputs(name, system(bundle), {k: jnp.asarray(x) for k, x in golden.input.items()})
    for key, got in found.items():
        error = np.abs(got - golden.output[key]).max()
        assert error <= 1e-5 * np.abs(golden.output[key]).max(), (key, error)


def test_a_masked_autoencoder_is_read_with_its_decoder(tmp_path):
    bundle = hf.read(str(folders.golden_folder("vit_mae", tmp_path)))
    built, golden = system(bundle), read("vit_mae")
    kept = np.argsort(golden.input["noise"], axis=1)[:, :4]
    with jax.default_matmul_precision("highest"):
        tokens = jnp.asarray(golden.output["tokens"])
        pixels = built.objectives["mae"].decode(tokens, jnp.asarray(kept), (4, 4))
    # The file's fixed positions are rounded to half precision, ours are not.
    np.testing.assert_allclose(pixels, golden.output["pixels"], atol=2e-3)
    assert bundle.objectives["mae"]["ratio"] == 0.75


@pytest.mark.parametrize("name", EXPRESSED)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_ours_to_hf_to_ours_is_the_same_to_the_bit(name, seed, tmp_path_factory):
    model, objectives, architecture = EXPRESSED[name]
    folder = tmp_path_factory.mktemp(name)
    given = folders.bundle(model, objectives, seed)
    hf.write(given, str(folder))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [architecture]
    back = hf.read(str(folder))
    assert back.params.keys() == given.params.keys() and back.manifest["unused"] == []
    for path, want in given.params.items():
        assert back.params[path].shape == want.shape, path
        assert back.params[path].tobytes() == want.tobytes(), path


@pytest.mark.parametrize("name", DUAL_ENCODERS)
def test_a_dual_encoder_with_code_of_its_own_is_read_back_without_it(name, tmp_path):
    given = folders.bundle(*DUAL_ENCODERS[name], seed=1)
    hf.write(given, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DualEncoderModel"]
    for file in config["auto_map"].values():
        code = tmp_path / f"{file.split('.')[0]}.py"
        code.write_text("raise SystemExit('code of a checkpoint was run')")
    back = hf.read(str(tmp_path))
    assert back.params.keys() == given.params.keys() and back.manifest["unused"] == []
    for path, want in given.params.items():
        assert back.params[path].shape == want.shape, path
        assert back.params[path].tobytes() == want.tobytes(), path
    text = jnp.asarray(np.random.default_rng(0).integers(1, 24, (2, 6)))
    mask, size = jnp.arange(6) < jnp.array([[6], [3]]), given.model["image"]["image_size"]
    image = jnp.ones((2, *((size, size) if isinstance(size, int) else size), 3))
    batch = dict(image=image, text=text, text_mask=mask)
    for tower in ("image", "text"):
        found = [
            getattr(Views(system(x).model, batch, None), f"{tower}_embedding")().z
            for x in (given, back)
        ]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "part, keys, message",
    [
        ("image", dict(window=1), "image.window=1"),
        ("image", dict(position="rotary", num_heads=4), "image.position='rotary'"),
        ("text", dict(mask_token=True), "text.mask_token=True"),
        ("embed_dim", None, "embed_dim=None"),
    ],
)
def test_what_that_code_does_not_have_is_refused_by_name(part, keys, message, tmp_path):
    model, objectives = DUAL_ENCODERS["flip"]
    change = keys if keys is None else model[part] | keys
    objectives = {} if keys is None else objectives
    bundle = folders.bundle(model | {part: change}, objectives)
    with pytest.raises(BadInput, match=message):
        hf.write(bundle, str(tmp_path))


def test_a_tokenizer_and_how_pictures_are_read_travel(tokenizer, tmp_path):
    text = tokenizer.read_text()
    own = tokenizers.Tokenizer(text, 6, tokenizers.Settings(pad_id=1))
    image = dict(
        size=[12, 12], crop=None, mean=[0.5] * 3, std=[0.5] * 3,
        resize=dict(mode="squash", size=[12, 12], method="bilinear", antialias=True),
    )  # fmt: skip
    model, objectives = DUAL_ENCODERS["quickstart"]
    model = model | {"text": model["text"] | {"vocab_size": 64}}
    given = folders.bundle(model, objectives, image=image, text=own.manifest())
    hf.write(given._replace(tokenizer_json=own.json), str(tmp_path))
    back = hf.read(str(tmp_path))
    assert back.manifest["image"] == image
    theirs = tokenizers.Tokenizer(back.tokenizer_json, 6)
    texts = ["red circle", "a [PAD] grey square of many words that is too long", ""]
    for got, want in zip(theirs.encode(texts), own.encode(texts), strict=True):
        np.testing.assert_array_equal(got, want)
    assert same_ids(back.manifest["text"], own.manifest())
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["model_max_length"] == 6 and written["pad_token"] == "[UNK]"
    again = hf.read(str(tmp_path))
    assert again.manifest["text"]["sha256"] == back.manifest["text"]["sha256"]


@pytest.mark.parametrize(
    "name, inputs", [("clip", ["input_ids", "attention_mask"]), ("siglip", ["input_ids"])]
)
def test_a_mask_is_given_to_classes_that_do_not_read_padding(name, inputs, tokenizer, tmp_path):
    given = folders.bundle(*EXPRESSED[name][:2])
    hf.write(given._replace(tokenizer_json=tokenizer.read_text()), str(tmp_path))
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["model_input_names"] == inputs


def test_pictures_are_read_as_a_processor_of_transformers_5_says(tmp_path):
    image = dict(
        size=[12, 12], crop=None, mean=[0.5] * 3, std=[0.5] * 3,
        resize=dict(mode="squash", size=[12, 12], method="bilinear", antialias=True),
    )  # fmt: skip
    hf.write(folders.bundle(*DUAL_ENCODERS["quickstart"], image=image), str(tmp_path))
    alone = tmp_path / "preprocessor_config.json"
    nested = {"image_processor": json.loads(alone.read_text()), "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    alone.unlink()
    assert hf.read(str(tmp_path)).manifest["image"] == image


# Of each file what is in it, a text, and its ids by hand.
_PIECES = [*"acr", "r</w>", "ca", "car</w>", "!", "<|startoftext|>", "<|endoftext|>"]
OLD = {
    "clip": (
        {
            "vocab.json": json.dumps({piece: i for i, piece in enumerate(_PIECES)}),
            "merges.txt": "#version: 0.2\nc a\nca r</w>\n",
        },
        "CAR  ar",
        [7, 5, 0, 3, 8, 8],
    ),
    "bert": (
        {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\n##s\n[MASK]\n"},
        "Reds, red",
        [2, 4, 5, 1, 4, 3],
    ),
    "bert with capitals": (
        {
            "vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\nRed\n##s\n[MASK]\n",
            "tokenizer_config.json": json.dumps({"do_lower_case": False}),
        },
        "Reds red",
        [2, 4, 5, 1, 3, 0],
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_vocabularies_of_before_tokenizer_json_are_read(name, tmp_path):
    written, text, ids = OLD[name]
    for file, content in written.items():
        (tmp_path / file).write_text(content)
    found = tokenizers.Tokenizer(read_tokenizer(str(tmp_path), {"length": 6}), 6)
    assert found.encode([text])[0][0].tolist() == ids


@pytest.mark.parametrize(
    "files, message",
    [
        ({"vocab.json": '{"a": 0}'}, "the vocab.json of another model than CLIP; write its"),
        (OLD["clip"][0] | {"merges.txt": "x y\n"}, "a merges.txt that do not agree"),
        ({"vocab.txt": "red\n"}, r"has no \[CLS\] in vocab.txt"),
        ({"tokenizer.json": "{"}, "the tokenizer Expecting property name"),
    ],
)
def test_vocabularies_of_others_are_refused_in_one_line(files, message, tmp_path):
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(BadInput, match=message) as error:
        read_tokenizer(str(tmp_path), {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [dict(pad={"share": 0.1}), dict(also=["grayscale"])])
def test_pictures_that_their_processors_do_not_make_are_refused(change, tmp_path):
    image = dict(size=[12, 12], crop=None, resize=None, mean=[0.5] * 3, std=[0.5] * 3) | change
    given = folders.bundle(*DUAL_ENCODERS["quickstart"], image=image)
    with pytest.raises(BadInput, match=f"have no {next(iter(change))}="):
        hf.write(given, str(tmp_path))


def test_a_scale_beyond_its_limit_is_written_as_it_works(tmp_path):
    given = folders.bundle(*EXPRESSED["clip"][:2])
    given.params["objectives/contrastive/log_scale"] = np.float32(6.0)
    hf.write(given, str(tmp_path))
    found = hf.read(str(tmp_path)).params["objectives/contrastive/log_scale"]
    np.testing.assert_allclose(np.exp(found), 100, rtol=1e-6)


def test_a_class_token_of_minus_zero_keeps_its_sign(tmp_path):
    given = folders.bundle(*EXPRESSED["clip"][:2])
    given.params["model/image/cls"][:] = -0.0
    hf.write(given, str(tmp_path))
    assert np.signbit(hf.read(str(tmp_path)).params["model/image/cls"]).all()


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("clip", ("image", dict(registers=2)), "image.registers=2 .CLIPModel: 0"),
        ("clip", ("image", dict(norm="rms_norm")), "image.norm='rms_norm'"),
        ("clip", ("text", dict(causal=False)), "text.causal=False .CLIPModel: True"),
        ("clip", ("text", dict(activation="silu", depth=1)), None),
        ("siglip", ("text", dict(padding="masked")), "text.padding='masked' .SiglipModel: 'read'"),
        ("siglip", ("image", dict(image_size=(12, 16))), r"image.image_size=\[12, 16\]"),
        ("bert", ("text", dict(segments=0, norm_placement="pre")), "text.norm_placement='pre'"),
        ("vit", ("image", dict(layer_scale=0.1)), "image.layer_scale=0.1"),
    ],
)
def test_options_without_a_counterpart_are_listed(name, change, message):
    model, objectives, architecture = EXPRESSED[name]
    part, keys = change
    model = model | {part: model[part] | keys}
    (family,) = [f for f in hf.FAMILIES if architecture in (f.name, *f.names)]
    found = options.find(model, objectives)
    if message is None:
        assert hf.their_config(family, found, folders.FACTS)
        return
    with pytest.raises(BadInput, match=message) as error:
        hf.their_config(family, found, folders.FACTS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, where, change, message",
    [
        ("clip", "vision_config", dict(hidden_act="mish"), "hidden_act='mish': expected one of"),
        ("siglip", "vision_config", dict(vision_use_head=False), "vision_use_head=False has no"),
        ("vit", None, dict(qkv_bias=False), "qkv_bias=False has no counterpart"),
        ("vit", None, dict(hidden_size="16"), "hidden_size='16': expected a number"),
        ("vit", None, dict(num_hidden_layers=10**9), "num_hidden_layers=1000000000: expected a"),
        ("vit", None, dict(hidden_size=32), r"has other shapes than its config says: .*\[16\]"),
        ("bert", None, dict(position_embedding_type="relative_key"), "position_embedding_type="),
        ("bert", None, dict(model_type="roberta", architectures=["RobertaModel"]), "RobertaModel"),
        ("clip", "text_config", dict(num_hidden_layers=3), "has no text_model.encoder.layers.2"),
    ],
)
def test_a_config_that_has_no_counterpart_here_is_refused(name, where, change, message, tmp_path):
    folder = folders.golden_folder(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (config if where is None else config[where]).update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=message) as error:
        formats.read(f"hf:{folder}", "x")
    assert "\n" not in str(error.value)


def test_what_the_class_has_and_we_have_not_is_listed(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = folders.golden_folder("vit", tmp_path)
    weights = {f"vit.{name}": x for name, x in load_file(folder / "model.safetensors").items()}
    weights["classifier.weight"] = np.zeros((3, 16), np.float32)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["ViTForImageClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    assert hf.read(str(folder)).manifest["unused"] == ["classifier.weight"]


def test_an_old_clip_pools_at_the_largest_id_whatever_its_config_says(tmp_path):
    folder = folders.golden_folder("clip", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    bundle = hf.read(str(folder))
    assert bundle.manifest["text"]["ids_after"] == [23]
    hf.write(bundle, str(tmp_path / "new"))
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written["text_config"]["eos_token_id"] == 23


def test_parts_with_an_index_are_one_model(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = folders.golden_folder("vit", tmp_path)
    want = hf.read(str(folder))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, parts = sorted(weights), ("model-1.safetensors", "model-2.safetensors")
    listed = {name: parts[i % 2] for i, name in enumerate(names)}
    for part in parts:
        save_file({n: weights[n] for n in names if listed[n] == part}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    got = hf.read(str(folder))
    for path, x in want.params.items():
        np.testing.assert_array_equal(got.params[path], x)
    index.write_text(json.dumps({"weight_map": listed | {names[0]: "../model-1.safetensors"}}))
    with pytest.raises(BadInput, match=r"names '../model-1.safetensors'; expected a .safetensors"):
        hf.read(str(folder))
