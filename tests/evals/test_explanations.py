"""Maps of patches: by hand, of every pool and fusion, and the tests of sanity."""

import functools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from scipy.stats import spearmanr

from data.input import open_input
from mm import registry
from mm.config import BadInput, load
from mm.evals.base import Model
from mm.evals.explanations import Explanations, correlation
from mm.evals.patch_maps import METHODS, _gradient, patch_maps, random_maps
from mm.models.attention import recording
from mm.objectives.combine import System
from mm.objectives.views import Views
from mm.program import build_program
from tests.evals.test_relevance import bar
from tests.evals.test_retrieval import _mesh
from tests.tiny import IMAGE, TEXT, TOWER

CONTRASTIVE = dict(contrastive=dict(name="contrastive", kind="softmax"))
MATCHING = CONTRASTIVE | dict(matching=dict(name="matching"))
WIDE = IMAGE | dict(image_size=(16, 32), depth=2)  # 2 x 4 patches: rows are not columns
POOLS = {
    "cls": dict(pool="cls", registers=3),
    "mean": dict(pool="mean"),
    "map": dict(pool="map", registers=1),
    "flatten": dict(pool="flatten", pool_dim=16),
}
FUSIONS = {
    "cross": dict(name="cross", **TOWER),
    "coattention": dict(name="coattention", **TOWER),
    "early": dict(name="early", cls_token=True, **TOWER),
    "resampler": dict(
        name="resampler", queries=3, **(TOWER | dict(depth=2))
    ),  # another kind of tokens
}


def system(image=WIDE, objectives=CONTRASTIVE, **model):
    spec = dict(image=image, text=TEXT, embed_dim=16) | model
    return System(spec, objectives, rngs=nnx.Rngs(0))


def batch(count=3):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 255, (count, 16, 32, 3)), jnp.uint8),
        "text": jnp.asarray(rng.integers(3, 60, (count, 7)), jnp.int32),
        "text_mask": jnp.arange(7)[None] < jnp.array([7, 3, 5])[:count, None],
    }


@functools.cache
def of_pool(pool):
    """A system with such a tower, and its maps."""
    built = system(WIDE | POOLS[pool])
    return built, see(built, patch_maps, batch())


def see(built, function, rows):
    def apply(rows):
        return function(built, Views(built.model, rows, None, training=False))

    return jax.tree.map(np.asarray, jax.jit(apply)(rows))


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_has_all_maps(pool):
    _, found = of_pool(pool)
    assert set(found) == set(METHODS)
    for name, maps in found.items():
        assert maps.shape == (3, 2, 4) and np.isfinite(maps).all(), name
        assert maps.reshape(3, -1).std(1).min() > 0, name
    assert (found["rollout"] >= 0).all() and found["rollout"].sum((1, 2)).max() <= 1.0001
    assert (found["gradient"] >= 0).all()


@pytest.mark.parametrize("name", FUSIONS)
def test_the_logit_of_matching_is_explained_through_a_fusion(name):
    built = system(objectives=MATCHING, fusion=FUSIONS[name])
    found = see(built, _gradient, batch())[:, -8:]
    assert found.shape == (3, 8) and (found >= 0).all() and found.max() > 0
    built.first("match").head.kernel[...] *= 2.0  # the logit, and so the gradient
    more = see(built, _gradient, batch())[:, -8:]
    assert np.allclose(found, more, rtol=1e-4) == (name == "resampler")


def raised(target, step=3e-3):
    """Of every attention, eq. 5 of Chefer et al. 2021, with gradients by central differences of the
    model as it is (float32); and whether it is of its own tokens. target(probes) -> value, weights.
    """
    _, recorded = target(())
    found = []
    for place, (weights, of_itself) in enumerate(recorded):

        def moved(number, sign, place=place):
            probes = [jnp.zeros_like(each.weights) for each in recorded]
            here = jnp.zeros(probes[place].size).at[number].set(sign * step)
            probes[place] = here.reshape(probes[place].shape)
            return target(probes)[0]

        numbers = jnp.arange(weights.size)
        up, down = (np.asarray(jax.lax.map(partial(moved, sign=s), numbers)) for s in (1, -1))
        gradient = (up.astype(float) - down).reshape(weights.shape) / (2 * step)
        found.append((np.maximum(np.asarray(weights) * gradient, 0)[0].mean(0), of_itself))
    return found


def test_the_gradient_map_of_a_class_token_is_its_row_of_relevance():
    built, rows = system(WIDE | POOLS["cls"]), batch(1)

    def similarity(probes):
        views = Views(built.model, rows, None, training=False)
        ztxt = views.text_embedding().z
        with recording(probes) as weights:
            zimg = views.image_embedding().z
        return (zimg * ztxt).sum(), weights

    expected = np.eye(12)  # a class token, three registers, eight patches
    for layer, _ in raised(similarity):
        expected = expected + layer @ expected
    [found] = see(built, patch_maps, rows)["gradient"]
    np.testing.assert_allclose(found.ravel(), expected[0, -8:], rtol=1e-2, atol=3e-5)


def test_the_gradient_map_of_a_fusion_is_relevance_of_both_modalities():
    """Chefer et al. 2021, "Generic attention-model explainability", eqs. 6 to 11."""
    built = system(objectives=MATCHING, fusion=FUSIONS["cross"])
    rows, n, m = batch(1), 8, 7

    def logit(probes):
        views = Views(built.model, rows, None, training=False)
        with recording(probes) as weights:
            value = built.first("match").match(views).sum()
        return value, weights

    image, text, to_image = np.eye(n), np.eye(m), np.zeros((m, n))
    for layer, of_itself in raised(logit):
        if layer.shape == (n, n):
            image = image + layer @ image
        elif len(layer) == 1:
            continue  # the pool of the tower, which the fusion does not read
        elif of_itself:
            text, to_image = text + layer @ text, to_image + layer @ to_image
        else:  # nothing of an image looks at a text
            to_image = to_image + bar(text).T @ layer @ bar(image)
    expected = to_image.mean(0)  # of seven tokens, all of them there
    [found] = see(built, _gradient, rows)[:, -n:]
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=3e-5)


def test_the_similarity_of_a_mean_pool_is_that_of_each_token():
    built, maps = of_pool("mean")
    found = maps["similarity"]

    def tokens(built, views):
        return views.image().tokens, views.text_embedding().z

    x, ztxt = see(built, tokens, batch())
    z = x @ np.asarray(built.model.image_projection.kernel[...])
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    expected = np.einsum("bne,be->bn", z, ztxt).reshape(3, 2, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_similarity_of_a_flatten_pool_is_what_a_patch_adds():
    built, maps = of_pool("flatten")
    found = maps["similarity"]

    def without(built, views, place=None):
        image, tower = views.image(), built.model.image
        tokens = image.tokens
        if place is not None:
            tokens = tokens.at[:, place].set(tokens.mean(1))
        pooled = tower.flatten_pool(tokens)
        z = built.model.project("image", image._replace(pooled=pooled)).z
        return (z * views.text_embedding().z).sum(-1)

    whole = see(built, without, batch())
    for place in (0, 5):
        fall = whole - see(built, partial(without, place=place), batch())
        np.testing.assert_allclose(found.reshape(3, 8)[:, place], fall, atol=1e-6)


def test_random_weights_change_the_maps():
    """The sanity test of Adebayo et al. 2018."""
    built, maps = of_pool("map")
    randomized = see(built, random_maps, batch())
    for name in ("gradient", "similarity"):
        assert correlation(maps[name], randomized[name]) < 0.8
    again = see(built, patch_maps, batch())  # a copy was changed
    assert all(correlation(maps[name], again[name]) == pytest.approx(1) for name in METHODS)


def test_correlation_is_spearmans():
    maps, others = np.random.default_rng(0).integers(0, 5, (2, 4, 3, 3)).astype(float)
    pairs = zip(maps.reshape(4, -1), others.reshape(4, -1), strict=True)
    expected = np.mean([spearmanr(a, b).statistic for a, b in pairs])
    assert correlation(maps, others) == pytest.approx(expected)
    assert correlation(maps, np.ones_like(maps)) == 0


SPEC = dict(name="synthetic", num_examples=21, image_size=16)


def build(tokenizer, ops="decode|resize(16)|caption('label')", **keys):
    given = dict(source=SPEC, preprocess=f'{ops}|tokenize("{tokenizer}", 8)')
    opened = open_input(given, "config.evals.maps")
    spec = dict(name="explanations", batch_size=8) | keys
    given = dict(source=opened.source, preprocess=opened.preprocess)
    return registry.build("evaluator", spec, "config.evals.maps", **given)


def model(devices):
    built = system(IMAGE | dict(pool="map"))
    sharding = NamedSharding(_mesh(devices), PartitionSpec(("a", "b")))
    return Model(None, None, None, sharding, lambda function: partial(see, built, function))


def test_pictures_and_texts_that_are_asked_for_are_drawn(tokenizer, tmp_path):
    evaluator = build(tokenizer, ids=(3, 20), texts=("red circle", "square", "blue"))
    found = evaluator.run(model(1), tmp_path / "maps.png")
    assert set(found) == {f"{name}/random_correlation" for name in METHODS}
    sheet = Image.open(tmp_path / "maps.png")
    assert sheet.height > 6 * 144 > Image.open(tmp_path / "maps.png").width


def test_at_most_a_batch_is_explained_at_once(tokenizer):
    evaluator, sizes = build(tokenizer, count=5, batch_size=2), []

    def apply(function):
        def maps(batch):
            sizes.append(len(batch["image"]))
            return {name: batch["image"][..., 0] for name in METHODS}

        return maps

    sharding = NamedSharding(_mesh(1), PartitionSpec(("a", "b")))
    found = evaluator.run(Model(None, None, None, sharding, apply))
    assert sizes == [2] * 6 and found["gradient/random_correlation"] == pytest.approx(1)


def test_a_tower_that_does_not_attend_has_no_map_of_attention(tokenizer, capsys, tmp_path):
    built = system(IMAGE | dict(depth=0))
    sharding = NamedSharding(_mesh(1), PartitionSpec(("a", "b")))
    plain = Model(None, None, None, sharding, lambda function: partial(see, built, function))
    found = build(tokenizer, count=2).run(plain, tmp_path / "maps.png")
    assert set(found) == {"similarity/random_correlation"}
    assert "no map by rollout and gradient" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(ids=(2, 21)), r"ids: \[21\] are not in 0 .. 20"),
        (dict(methods=("rolout",)), "did you mean 'rollout'"),
        (dict(ops="caption('label')"), "needs the ops decode and caption"),
    ],
)
def test_mistakes_are_refused_when_it_is_built(tokenizer, keys, message):
    with pytest.raises(BadInput, match=message):
        build(tokenizer, **keys)


def test_broken_pictures_are_left_out_or_told_before_training(tmp_path, tokenizer):
    Image.new("RGB", (16, 16)).save(tmp_path / "whole.png")
    names = ("whole.png", "missing.png", "whole.png")
    lines = [json.dumps({"image": name, "caption": "red"}) for name in names]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    given = dict(
        source=dict(name="jsonl", path=str(tmp_path / "pairs.jsonl")),
        preprocess=f'decode|resize(16)|caption("caption")|tokenize("{tokenizer}", 8)',
    )
    opened = open_input(given, "test")
    opened = dict(source=opened.source, preprocess=opened.preprocess, batch_size=8)
    assert len(Explanations(**opened, count=3).records) == 2
    with pytest.raises(BadInput, match="missing.png"):
        Explanations(**opened, ids=(0, 1))


def test_a_model_without_patches_is_refused(tokenizer):
    with pytest.raises(BadInput, match="has no patches of a picture; take vit"):
        build(tokenizer).check(dict(image=dict(name="resnet")))


COLOURS = np.array([[230, 40, 40], [40, 200, 60], [50, 80, 230], [240, 220, 50], [200, 60, 220]])


def scenes(count, objects, seed):
    """Noise with squares of different colours, each on a patch; text: the first one's colour."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 170, (count, 32, 32, 3)).astype(np.uint8)
    places = np.stack([rng.permutation(16)[:objects] for _ in range(count)])
    colours = np.stack([rng.permutation(len(COLOURS))[:objects] for _ in range(count)])
    for i, j in np.ndindex(count, objects):
        row, column = 8 * np.array(divmod(places[i, j], 4))
        image[i, row : row + 8, column : column + 8] = COLOURS[colours[i, j]]
    text = np.zeros((count, 8), np.int32)
    text[:, 0], text[:, 1] = 10 + colours[:, 0], 2
    mask = np.tile(np.arange(8) < 2, (count, 1))
    rows = dict(image=image, text=text, text_mask=mask, group=colours[:, 0].astype(np.int32))
    return rows | {"id": np.arange(count, dtype=np.uint32)}, places


@pytest.mark.slow
def test_a_pasted_object_attracts_the_maps_of_its_text(tokenizer):
    config = load(f"tests/tiny.py:tokenizer={tokenizer}")
    with config.unlocked():
        config.global_batch_size, config.total_steps = 64, 200
        config.objectives = CONTRASTIVE
        for tower in ("image", "text"):
            config.model[tower].update(width=32, depth=1, dropout=0.0)
        config.model.image.update(image_size=32, pool="map")
        config.optimizer.learning_rate = 3e-3
    program = build_program(config, jax.devices()[:1])
    state = program.init(0)
    for step in range(200):
        state, _ = program.train_step(state, scenes(64, 1, step)[0])
    rows, places = scenes(200, 2, 1000)
    maps, randomized = (
        {k: np.asarray(x) for k, x in program.apply(look)(state, rows).items()}
        for look in (patch_maps, random_maps)
    )
    for name in METHODS:
        assert correlation(maps[name], randomized[name]) < 0.3, name
    for name in ("gradient", "similarity"):
        flat = maps[name].reshape(200, 16)
        named, other = (np.take_along_axis(flat, places[:, [i]], 1)[:, 0] for i in (0, 1))
        best = (flat.argmax(1) == places[:, 0]).mean()
        assert best > 0.4 and (named > other).mean() > 0.85, name  # chance: 1 / 16 and 1 / 2
