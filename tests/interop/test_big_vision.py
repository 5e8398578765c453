"""Checkpoints of big_vision: names and shapes, both layouts of blocks, and what is refused."""

import uuid

import fsspec
import ml_dtypes
import numpy as np
import pytest

from mm.config import BadInput
from mm.interop import big_vision, formats, options
from mm.interop.tables import to_theirs
from tests.interop import folders
from tests.interop.folders import BIG_VISION, EXPRESSED


def theirs(name, scanned=False):
    """A bundle, and its arrays under their names."""
    bundle = folders.bundle(*BIG_VISION[name])
    table = big_vision.table(options.find(*BIG_VISION[name]), scanned)
    return bundle, to_theirs(bundle.params, table)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for path, x in want.items():
        assert got[path].tobytes() == x.tobytes() and got[path].shape == x.shape, path


def test_names_and_shapes_are_those_of_siglip():
    """As `two_towers` of big_vision makes them (its flax modules' own names)."""
    shapes = {name: x.shape for name, x in theirs("siglip")[1].items()}
    block = "img/Transformer/encoderblock_1"
    attention = "MultiHeadDotProductAttention_0"
    want = {
        "img/embedding/kernel": (4, 4, 3, 16),
        "img/pos_embedding": (1, 9, 16),
        f"{block}/LayerNorm_0/scale": (16,),
        f"{block}/{attention}/query/kernel": (16, 2, 8),
        f"{block}/{attention}/query/bias": (2, 8),
        f"{block}/{attention}/out/kernel": (2, 8, 16),
        f"{block}/{attention}/out/bias": (16,),
        f"{block}/MlpBlock_0/Dense_0/kernel": (16, 20),
        "img/Transformer/encoder_norm/bias": (16,),
        "img/MAPHead_0/probe": (1, 1, 16),
        f"img/MAPHead_0/{attention}/key/kernel": (16, 2, 8),
        "img/MAPHead_0/LayerNorm_0/scale": (16,),
        "img/MAPHead_0/MlpBlock_0/Dense_1/kernel": (20, 16),
        "txt/Embed_0/embedding": (24, 16),
        "txt/pos_embedding": (1, 6, 16),
        "txt/Encoder_0/encoderblock_0/MlpBlock_0/Dense_1/bias": (16,),
        "txt/Encoder_0/encoder_norm/scale": (16,),
        "txt/head/kernel": (16, 16),
        "txt/head/bias": (16,),
        "t": (1,),
        "b": (1,),
    }
    assert {name: shapes[name] for name in want} == want
    # Two towers of two blocks of 16 arrays, what is around each, t and b.
    assert len(shapes) == 2 * 2 * 16 + (3 + 2 + 15) + (2 + 2 + 2) + 2


@pytest.mark.parametrize("name", BIG_VISION)
def test_ours_to_big_vision_to_ours_is_the_same_to_the_bit(name, tmp_path):
    bundle = folders.bundle(*BIG_VISION[name])
    big_vision.write(bundle, str(tmp_path))
    for path in (tmp_path, tmp_path / "model.npz"):
        back = big_vision.read(str(path))
        assert_same(back.params, bundle.params)
        assert back.manifest["unused"] == []
        options.refuse_others(
            options.find(*BIG_VISION[name]), options.find(back.model, back.objectives), "big_vision"
        )


def test_of_a_whole_checkpoint_the_parameters_alone_are_read(tmp_path):
    """Its optimizer's state may hold what no array here is, such as moments without a type."""
    bundle, weights = theirs("siglip")
    arrays = {f"params/{name}": x for name, x in weights.items()}
    arrays["params/t"] = weights["t"].astype(ml_dtypes.bfloat16)
    arrays |= {"opt/0/mu/t": np.zeros(1, "V4"), "opt/0/nu/t": np.zeros(1, ml_dtypes.bfloat16)}
    np.savez(tmp_path / "a.npz", **arrays)
    want = bundle.params | {"objectives/contrastive/log_scale": arrays["params/t"].reshape(())}
    found = big_vision.read(str(tmp_path / "a.npz")).params
    assert_same(found, {path: x.astype(np.float32) for path, x in want.items()})


def test_the_tokenizer_that_we_write_beside_it_is_read(tmp_path):
    given = folders.bundle(*BIG_VISION["siglip"])._replace(tokenizer_json="{}")
    big_vision.write(given, str(tmp_path))
    assert big_vision.read(str(tmp_path)).tokenizer_json == "{}"


def test_a_checkpoint_in_an_object_store_is_read(tmp_path):
    bundle = folders.bundle(*BIG_VISION["vit_map"])
    big_vision.write(bundle, str(tmp_path))
    far = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(f"{tmp_path}/model.npz", f"{far}/model.npz")
    for path in (far, f"{far}/model.npz"):
        assert_same(big_vision.read(path).params, bundle.params)


def test_blocks_that_were_scanned_are_read(tmp_path):
    bundle, weights = theirs("siglip", scanned=True)
    assert weights["txt/Encoder_0/encoderblock/LayerNorm_0/scale"].shape == (2, 16)
    np.savez(tmp_path / "a.npz", **{f"params/{name}": x for name, x in weights.items()})
    assert_same(big_vision.read(str(tmp_path / "a.npz")).params, bundle.params)


def test_an_old_vit_with_a_position_of_its_class_token_is_read(tmp_path):
    bundle, weights = theirs("vit_cls")
    old = {}
    for name, x in weights.items():
        name = name.replace("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
        name = name.replace("LayerNorm_1", "LayerNorm_2").replace("MlpBlock_0", "MlpBlock_3")
        old[name] = x
    positions = np.concatenate([np.ones((1, 1, 16), np.float32), old.pop("pos_embedding")], axis=1)
    old["Transformer/posembed_input/pos_embedding"] = positions
    old["head/kernel"] = np.zeros((16, 3), np.float32)
    np.savez(tmp_path / "a.npz", **old)
    back = big_vision.read(str(tmp_path / "a.npz"))
    assert back.manifest["unused"] == ["head/kernel"]
    want = bundle.params | {"model/image/cls": bundle.params["model/image/cls"] + 1}
    assert_same(back.params, want)


def test_the_state_of_an_optimizer_is_left_alone(tmp_path):
    _, weights = theirs("vit_gap")
    arrays = {f"params/{name}": x for name, x in weights.items()}
    np.savez(tmp_path / "a.npz", **arrays | {"opt/0/mu": np.zeros(3)})
    assert big_vision.read(str(tmp_path / "a.npz")).manifest["unused"] == []


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("clip", {}, "image.pre_norm=True .big_vision: False., image.stem.bias=False"),
        ("siglip", dict(activation="relu"), "image.activation='relu' .big_vision: 'gelu_tanh'"),
        (
            "siglip",
            dict(image_size=(12, 16)),
            r"image.image_size=\[12, 16\] .big_vision: \[16, 16\]",
        ),
        ("mae_encoder", {}, "position='learned'"),
    ],
)
def test_what_has_no_counterpart_is_refused(name, change, message, tmp_path):
    model, objectives, _ = EXPRESSED[name]
    model = model | {"image": model["image"] | change}
    with pytest.raises(BadInput, match=message):
        big_vision.write(folders.bundle(model, objectives), str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("pos_embedding"), "is no model of big_vision that we know .'pos_embed"),
        (lambda w: w.pop("Transformer/encoder_norm/bias"), "has no Transformer/encoder_norm/bias"),
        (lambda w: w.update({"embedding/bias": np.zeros(3)}), r"embedding/bias is .3,., expected"),
        (lambda w: w.update({"x": np.array([{}], object)}), "object"),
    ],
)
def test_a_file_that_is_damaged_or_something_else_is_refused(change, message, tmp_path):
    _, weights = theirs("vit_gap")
    change(weights)
    np.savez(tmp_path / "a.npz", **weights)
    with pytest.raises(BadInput, match=message) as error:
        formats.read(f"big_vision:{tmp_path}/a.npz", "x")
    assert "\n" not in str(error.value)
