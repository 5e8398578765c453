import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.generation import generate
from mm.models.keys import example_keys
from mm.models.logits import Logits
from mm.objectives import Views
from mm.objectives.captioning import Captioning
from mm.program import build_program
from tests.models.test_decoder import batch, model
from tests.tiny import TOWER, get_config

ROWS = 64


class Recorded(Views):
    """Says what the decoder was asked, and answers with given logits."""

    def decode(self, text, **how):
        self.how = how
        logits = np.random.default_rng(0).standard_normal((*self.batch["text"].shape, 64))
        return Logits(jnp.asarray(logits, jnp.float32), jnp.eye(64))


@functools.cache
def masking():
    return model(mask_token=True)


def objective(a_model=None, key="captioning", **changes):
    a_model = a_model or masking()
    built = registry.call(Captioning, changes, key, model=a_model, rngs=nnx.Rngs(0))
    built.key = key
    return built


def recorded(an_objective, seed=0, rows=slice(None), **changes):
    """The loss over given logits, and what was asked for."""
    arrays = {k: x[rows] for k, x in (batch(rows=ROWS) | changes).items()}
    views = Recorded(masking(), arrays, example_keys(jax.random.key(seed), ROWS)[rows])
    return an_objective(views, jax.random.key(0)), views


def reference(logits, targets, scored, smoothing):
    """In float64, a token after the other: mean loss, mean without smoothing, accuracy."""
    losses, plain, hits = [], [], []
    for row, place in zip(*np.nonzero(scored), strict=True):
        z = logits[row, place].astype(np.float64)
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        aim = np.full(len(z), smoothing / len(z))
        aim[targets[row, place]] += 1 - smoothing
        losses.append(-(aim * log_p).sum())
        plain.append(-log_p[targets[row, place]])
        hits.append(z.argmax() == targets[row, place])
    return np.mean(losses), np.mean(plain), np.mean(hits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", [{}, {"prefix": True}, {"parallel": 0.5, "prefix": True}])
def test_loss_and_metrics_equal_a_reference_in_numpy(mode, smoothing):
    loss, views = recorded(objective(label_smoothing=smoothing, **mode))
    scored = np.array(views.batch["text_mask"])
    if mode:  # of a prefix no token counts, but for examples that are hidden
        known = np.arange(8) < np.asarray(views.how["reach"])[:, None]
        hidden = np.asarray(views.how.get("hidden", np.zeros(ROWS, bool)))
        scored &= ~known | hidden[:, None]
    logits = np.asarray(views.decode("text").x)
    want, plain, accuracy = reference(logits, np.asarray(views.batch["text"]), scored, smoothing)
    np.testing.assert_allclose(loss.value, want, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["perplexity"], np.exp(plain), rtol=1e-4)
    np.testing.assert_allclose(loss.metrics["accuracy"], accuracy, rtol=1e-5)


def test_of_an_instruction_and_its_answer_the_answer_alone_is_scored():
    answer = np.arange(8) >= np.random.default_rng(1).integers(0, 8, (ROWS, 1))
    loss, views = recorded(objective(answers=True), text_answer=jnp.asarray(answer))
    scored = np.asarray(views.batch["text_mask"]) & answer
    logits = np.asarray(views.decode("text").x)
    want, _, accuracy = reference(logits, np.asarray(views.batch["text"]), scored, 0.0)
    np.testing.assert_allclose(loss.value, want, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["accuracy"], accuracy, rtol=1e-5)


def test_nothing_to_score_is_no_loss():
    nothing = jnp.zeros((ROWS, 8), bool)
    assert float(recorded(objective(), text_mask=nothing)[0].value) == 0


def test_padding_carries_no_loss():
    mask = batch(rows=ROWS)["text_mask"]
    text = jnp.where(mask, batch(rows=ROWS)["text"], 17)
    assert recorded(objective(), text=text)[0].value == recorded(objective())[0].value


def test_prefixes_are_of_every_length_but_the_whole():
    _, views = recorded(objective(prefix=True))
    reach, lengths = np.asarray(views.how["reach"]), np.asarray(views.batch["text_mask"]).sum(1)
    for length in (1, 3, 5):
        assert set(reach[lengths == length]) == set(range(length))
    assert reach[lengths == 8].max() == 7 and reach[lengths == 8].min() == 0


def test_the_share_that_is_hidden_is_drawn_row_by_row():
    _, views = recorded(objective(parallel=0.75))
    hidden, reach = (np.asarray(views.how[name]) for name in ("hidden", "reach"))
    assert 0.6 < hidden.mean() < 0.9
    np.testing.assert_array_equal(reach, np.where(hidden, 7, 0))
    part = recorded(objective(parallel=0.75), rows=slice(10, 20))[1].how["hidden"]
    np.testing.assert_array_equal(part, hidden[10:20])
    other = recorded(objective(parallel=0.75, key="another"))[1].how["hidden"]
    assert not np.array_equal(other, hidden)


def test_without_a_mode_the_decoder_is_causal():
    how = recorded(objective())[1].how
    assert "reach" not in how and "hidden" not in how


def test_in_parallel_no_text_reaches_the_logits():
    class Kept(Views):
        def decode(self, *args, **how):
            self.logits = super().decode(*args, **how)
            return self.logits

    @jax.jit
    def logits(text, mask):
        arrays = batch() | {"text": text, "text_mask": mask}
        keys = example_keys(jax.random.key(0), 4)
        views = Kept(masking(), arrays, keys, training=False)
        objective(parallel=1.0)(views, jax.random.key(0))
        return views.logits.whole()

    masks = batch()["text_mask"], jnp.roll(batch()["text_mask"], 1, 0)
    first, second = (logits(batch(i)["text"], mask) for i, mask in enumerate(masks))
    np.testing.assert_array_equal(first, second)


def test_towers_are_encoded_once_for_a_contrastive_loss_and_this():
    from mm.objectives.contrastive import Contrastive

    a_model = model(inputs="text_tower", embed_dim=8)
    views = Views(a_model, batch() | {"group": jnp.arange(4)}, None)
    losses = [Contrastive(kind="softmax", model=a_model, rngs=nnx.Rngs(0)), objective(a_model)]

    def step():
        return [loss(views, jax.random.key(0)).value for loss in losses]

    assert len(jax.eval_shape(step)) == 2 and len(views._encoded) == 2


def test_a_source_is_another_text_of_the_batch():
    a_model = model(memory="text")
    an_objective = objective(a_model, source="source")
    assert {read.name for read in an_objective.reads} >= {"text_source", "text_source_mask"}
    views = Views(a_model, batch(), None)
    found = jax.jit(lambda: an_objective(views, jax.random.key(0)).value)()
    want = jax.jit(
        lambda: Views(a_model, batch(), None).decode(source=an_objective.source).whole()
    )()
    text, mask = np.asarray(batch()["text"]), np.asarray(batch()["text_mask"])
    np.testing.assert_allclose(found, reference(np.asarray(want), text, mask, 0)[0], rtol=1e-5)


@pytest.mark.parametrize(
    "decoder, changes, message",
    [
        ({}, dict(parallel=1.5), "parallel=1.5: expected 0 to 1"),
        ({}, dict(parallel=0.5), "mask_token=True"),
        (dict(memory="text"), {}, "must not read 'clean'"),
        (dict(memory="fused"), dict(source="clean"), "must not read 'clean'"),
        ({}, dict(source="source"), "reads no text"),
        (dict(memory="none"), dict(image_keep=0.5), "has no image"),
        ({}, dict(answers=True, prefix=True), "leave out prefix"),
    ],
)
def test_what_cannot_work_is_refused(decoder, changes, message):
    with pytest.raises(BadInput, match=message):
        objective(model(**decoder), **changes)


def test_loss_and_gradients_on_a_mesh_are_those_of_one_device():
    config = get_config()
    tower = dict(width=64, num_heads=4, depth=1, dropout=0.1)
    config.model.text.update(causal=True, **tower)
    config.model.image = None
    decoder = dict(memory="none", inputs="shared_words", head="tied", mask_token=True, **tower)
    config.model.decoder = dict(name="transformer", **decoder)
    config.objectives = dict(captioning=dict(name="captioning", prefix=True, parallel=0.5))
    arrays = {k: np.asarray(v) for k, v in batch(rows=16).items()}
    arrays = {"text": arrays["text"], "text_mask": arrays["text_mask"]}
    arrays["id"] = np.arange(16, dtype=np.uint32)

    def run(sharding, devices=None):
        config.sharding = sharding
        program = build_program(config, devices)
        data = jax.device_put(arrays, program.batch_sharding)
        (loss, _), gradients = program.gradients(program.init(0), data)
        return float(loss), jax.device_get(gradients)

    loss, gradients = run(dict(mesh=dict(fsdp=4, tensor=2), rules="fsdp_tp"))
    want, reference = run(dict(mesh=dict(fsdp=1), rules="dp"), jax.devices()[:1])
    np.testing.assert_allclose(loss, want, rtol=1e-5)

    def close(a, b):
        assert np.linalg.norm(a - b) <= max(1e-5 * np.linalg.norm(b), 1e-6)

    jax.tree.map(close, gradients, reference)


def test_32_captions_are_learned_and_written():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 32)
    # The first words are few, so that the picture has to tell the rest.
    text = np.where(np.arange(8) < 2, rng.integers(3, 6, (32, 8)), rng.integers(3, 64, (32, 8)))
    text[np.arange(32), lengths - 1] = 2
    mask = np.arange(8) < lengths[:, None]
    arrays = {
        "image": jnp.asarray(rng.standard_normal((32, 16, 16, 3)), jnp.float32),
        "text": jnp.asarray(np.where(mask, text, 0), jnp.int32),
        "text_mask": jnp.asarray(mask),
    }
    a_model = model(fusion=None, inputs="text_tower", **dict(TOWER, width=32, depth=1))
    an_objective = objective(a_model)
    graphdef, params = nnx.split(a_model)
    optimizer, key = optax.adam(optax.cosine_decay_schedule(1e-2, 200)), jax.random.key(0)

    def loss(params):
        found = an_objective(Views(nnx.merge(graphdef, params), arrays, None), key)
        return found.value, found.metrics

    @jax.jit
    def train(params):
        def step(carry, _):
            params, moments = carry
            (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, updates), moments), (value, metrics)

        (params, _), log = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
        learned = nnx.merge(graphdef, params)
        memory = Views(learned, arrays, None).memory()
        shuffled = arrays | {"image": jnp.roll(arrays["image"], 1, 0)}
        control = an_objective(Views(learned, shuffled, None), key)
        return log, control, generate(learned, memory, end_id=2).ids

    (values, metrics), control, ids = jax.device_get(train(params))
    assert values[-1] < 0.05 < 3 < values[0] and metrics["accuracy"][-1] > 0.95
    assert metrics["perplexity"][0] > 30 and metrics["perplexity"][-1] < 1.06
    assert control.value > 1  # it is the picture that tells
    np.testing.assert_array_equal(ids, arrays["text"])
