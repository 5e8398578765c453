"""Every fusion with every objective that reads one; a set that covers all, on three meshes."""

import itertools

import jax
import numpy as np
import pytest

from configs.menu import FUSIONS, LABEL, OBJECTIVES, get_config, preprocess, resize
from mm import registry
from mm.config import BadInput
from mm.program import build_program
from tests.test_program import error

SIZES = dict(
    width=16, depth=2, num_heads=2, mlp_dim=32, vocab_size=64, length=8, embed_dim=16,
    image_size=16, patch_size=4, queue_size=64, num_codes=16, prototypes=16, hidden=32, out=16,
    bottleneck=8, queries=4, view_size=16, global_batch_size=16, cell_width=8, num_examples=32,
)  # fmt: skip
FUSED_TEXT = {
    "early", "hierarchical", "cross", "coattention", "bottleneck", "resampler", "multiway",
}  # fmt: skip
FUSED_IMAGE = FUSED_TEXT - {"cross", "resampler"} | {"cross_image", "guided"}
ANY = set(FUSIONS) - {"none"}
# The objectives that read a fusion, and those whose tokens each needs.
READS = {
    "matching": ANY,
    "masked_text_fused": FUSED_TEXT,
    "mae_fused": FUSED_IMAGE,
    "beit_fused": FUSED_IMAGE,
    "classes_fused": ANY,
}
PAIRS = list(itertools.product(sorted(ANY), READS))
REST = [name for name in OBJECTIVES if name not in READS]
MESHES = {
    "dp": ("dp", dict(replica=2, fsdp=4)),
    "fsdp x tensor": ("fsdp_tp", dict(fsdp=4, tensor=2)),
}


def build(fusion, names, rules="dp", mesh=None, devices=None):
    config = get_config(f"fusion={fusion},objectives={'+'.join(names)}")
    with config.unlocked():
        resize(config, SIZES, {})
        config.sharding = dict(mesh=mesh or dict(fsdp=-1), rules=rules)
    return build_program(config, devices or jax.devices()[:1])


def test_every_fusion_is_on_the_menu():
    assert {spec["name"] for spec in FUSIONS.values() if spec} == set(registry.names("fusion"))


def test_every_objective_that_emoji_can_teach_is_on_the_menu():
    numbers = {"regression"}  # its data set has none
    found = {spec["name"] for spec in OBJECTIVES.values()}
    assert found == set(registry.names("objective")) - numbers


def test_classes_are_numbered_between_the_ops_whose_fields_have_the_same_names():
    names = [op.partition("(")[0] for op in preprocess(["classes"], "flip", LABEL).split("|")]
    assert names == ["decode", "flip", "caption", "tokenize", "label", "group"]


@pytest.mark.parametrize("fusion", sorted(ANY))
def test_a_fusion_goes_with_every_objective_that_can_read_it(fusion):
    a_program = build(fusion, [name for name, fusions in READS.items() if fusion in fusions])
    (loss, _), gradients = jax.eval_shape(
        a_program.gradients, a_program.state, a_program.batch_spec
    )
    assert loss.shape == ()
    assert jax.tree.map(np.shape, gradients) == jax.tree.map(np.shape, a_program.state.params)


@pytest.mark.parametrize("fusion, name", [pair for pair in PAIRS if pair[0] not in READS[pair[1]]])
def test_a_pair_that_makes_no_sense_is_refused_with_the_reason(fusion, name):
    with pytest.raises(BadInput, match=f"objectives.{name}: .*needs (text|image) tokens that have"):
        build(fusion, [name])


@pytest.mark.parametrize("name", sorted(READS))
def test_what_reads_a_fusion_is_refused_without_one(name):
    with pytest.raises(BadInput, match=f"objectives.{name}: .*needs config.model.fusion"):
        build("none", [name])


def test_a_fusion_that_no_objective_reads_is_refused():
    with pytest.raises(BadInput, match="config.model.fusion: no objective reads it"):
        build("cross", ["contrastive", "captioning"])


def batch(a_program, seed=0):
    """Random arrays of the shapes that a step reads; some rows have few words."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 9, (16, 1))
    values = {}
    for name, spec in a_program.batch_spec.items():
        if name.startswith("image"):
            values[name] = rng.integers(0, 256, spec.shape).astype(np.uint8)
        elif name.endswith("_mask"):
            values[name] = np.arange(spec.shape[1]) < lengths
        elif name == "text_words":
            words = np.arange(spec.shape[1]) // 2
            values[name] = np.where(np.arange(spec.shape[1]) < lengths - 1, words, -1)
        elif name == "label":
            values[name] = np.arange(16) % 8
        elif name in ("group", "id"):
            values[name] = np.minimum(np.arange(16), 13)
        else:
            values[name] = rng.integers(1, 60, spec.shape)
        values[name] = values[name].astype(spec.dtype)
    return jax.device_put(values, a_program.batch_sharding)


# Every fusion and every objective once.
COVER = {
    "early": ["mae_fused", "masked_text_fused", "matching", "contrastive"],
    "concatenate": ["matching", "sigmoid", "text_views"],
    "sum": ["matching", "cycle", "adversarial"],
    "gated": ["matching", "response", "classes_fused"],
    "bilinear": ["matching", "feature", "tied"],
    "weighted": ["matching", "next_text", "prompts"],
    "hierarchical": ["masked_text_fused", "beit_fused"],
    "cross": ["momentum", "matching", "masked_text_fused"],
    "cross_image": ["beit_fused", "simclr"],
    "coattention": ["mae_fused", "masked_text_fused", "masked_text"],
    "guided": ["beit_fused", "beit_learned"],
    "bottleneck": ["masked_text_fused", "captioning"],
    "resampler": ["matching", "masked_text_fused", "prefix"],
    "multiway": ["beit_fused", "masked_text_fused", "beit", "mae"],
    "none": ["parallel", "self_distillation", "classes"],
}
# The others take minutes each: programs of several objectives, compiled for three meshes.
QUICK = ("cross",)


def test_the_covering_set_covers():
    assert set(COVER) == set(FUSIONS)
    assert set(itertools.chain(*COVER.values())) == set(OBJECTIVES)


def check_meshes(fusion, names):
    """A step's loss, and the norm of its gradient, do not depend on the mesh."""

    def step(*mesh):
        a_program = build(fusion, names, *mesh)
        state, metrics = a_program.train_step(a_program.init(0), batch(a_program))
        assert np.isfinite(metrics["update_norm"]) and int(state.step) == 1
        return metrics

    want = step()
    for rules, mesh in MESHES.values():
        found = step(rules, mesh, jax.devices())
        assert error(found["loss"], want["loss"]) < 1
        assert error(found["gradient_norm"], want["gradient_norm"]) < 10


@pytest.mark.parametrize(
    "fusion",
    [pytest.param(f, marks=() if f in QUICK else pytest.mark.matrix) for f in COVER],
)
def test_steps_on_meshes_have_the_loss_of_one_device(fusion):
    check_meshes(fusion, COVER[fusion])


@pytest.mark.matrix
@pytest.mark.parametrize("fusion, name", [pair for pair in PAIRS if pair[0] in READS[pair[1]]])
def test_every_pair_steps_on_meshes_as_on_one_device(fusion, name):
    check_meshes(fusion, [name])
