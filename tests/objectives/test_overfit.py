"""What an objective reaches on 32 examples that it sees again and again: its known optimum."""

import jax
import numpy as np
import pytest

from tests.test_program import program
from tests.tiny import IMAGE, TEXT

N = 32
FUSION = dict(name="cross", width=16, depth=1, num_heads=2)
AVERAGE = dict(name="average", decay=0.9)


def examples(a_program, **more):
    """Pictures of noise, each with words of its own."""
    rng = np.random.default_rng(0)
    values = {
        "image": rng.integers(0, 256, (N, 16, 16, 3)).astype(np.uint8),
        "text": rng.integers(1, 64, (N, 8)).astype(np.int32),
        "text_mask": np.ones((N, 8), bool),
        "group": np.arange(N, dtype=np.int32),
        "id": np.arange(N, dtype=np.uint32),
    } | more
    values = {name: x for name, x in values.items() if name in a_program.batch_spec}
    return jax.device_put(values, a_program.batch_sharding)


def overfit(spec, steps=200, image=IMAGE, text=TEXT, more=None, **changes):
    """The metrics of the last step."""
    a_program = program(
        devices=jax.devices()[:1], width=16, objectives={"o": spec}, global_batch_size=N,
        total_steps=steps, optimizer__learning_rate=3e-3, optimizer__weight_decay=0.0,
        model__image=dict(image), model__text=dict(text), **changes,
    )  # fmt: skip
    state, data = a_program.init(0), examples(a_program, **(more or {}))
    for _ in range(steps):
        state, metrics = a_program.train_step(state, data)
    return {name.removeprefix("o/"): float(x) for name, x in metrics.items()}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_contrastive_finds_every_pair(kind):
    found = overfit(dict(name="contrastive", kind=kind))
    assert found["image_to_text_accuracy"] == found["text_to_image_accuracy"] == 1
    assert found["loss"] < 0.1


def test_momentum_finds_every_pair_in_the_queue():
    spec = dict(name="momentum", queue_size=2 * N, alpha=0.2)
    found = overfit(spec, teacher=AVERAGE)
    assert found["image_to_text_accuracy"] == found["text_to_image_accuracy"] == 1
    assert found["teacher_hard_share"] > 0.9


def test_matching_tells_pairs_from_hard_negatives():
    found = overfit(dict(name="matching"), model__fusion=FUSION, steps=300)
    assert found["balanced_accuracy"] > 0.98 and found["loss"] < 0.1


def test_next_text_tells_what_follows():
    rng = np.random.default_rng(1)
    more = {}
    for name in ("text_first", "text_second"):
        more[name] = rng.integers(1, 64, (N, 4)).astype(np.int32)
        more[f"{name}_mask"] = np.ones((N, 4), bool)
    text = dict(TEXT, segments=2, depth=2, pool="mean")
    found = overfit(dict(name="next_text"), text=text, more=more, steps=400)
    assert found["balanced_accuracy"] > 0.98 and found["loss"] < 0.1


def taught():
    z = np.random.default_rng(2).standard_normal((2, N, 12)).astype(np.float32)
    return {"teacher_image": z[0], "teacher_text": z[1]}


def test_a_student_says_what_stored_outputs_say():
    spec = dict(
        name="response_distillation", source="batch", width=12, teacher_scale=5.0, scale=5.0
    )
    assert overfit(spec, more=taught())["loss"] < 0.02


def test_a_student_has_the_stored_features():
    spec = dict(name="feature_distillation", source="batch", width=12)
    found = overfit(spec, more=taught())
    assert found["image_cosine"] > 0.98 and found["text_cosine"] > 0.98


def test_hidden_patches_are_told_as_the_average_tells_them():
    """The loss falls to the entropy of the targets, which are neither one prototype nor all."""
    spec = dict(
        name="self_distillation", replace=0.5, prototypes=32, hidden=32, bottleneck=16,
        teacher_temperature=0.07,
    )  # fmt: skip
    found = overfit(spec, steps=300, image=dict(IMAGE, mask_token=True), teacher=AVERAGE)
    assert 0.05 < found["patch_entropy"] < 0.95 * np.log(32)
    assert found["patch_loss"] - found["patch_entropy"] < 0.3
