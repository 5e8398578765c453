"""Runs that begin with another's weights and add to them."""

import jax
import numpy as np
import pytest

from mm import load as load_model
from mm.config import BadInput, load
from mm.export import export
from mm.interop import npz
from mm.model_init import read_parameters
from mm.optim.paths import flatten
from mm.program import build_program
from mm.train import train
from tests import runs

LORA = dict(name="lora", at=(".*/(query|value|up)", "model/text_projection"), rank=2)
ADAPTER = dict(name="adapter", at=("model/image/.*",), size=4)


def recipe(tokenizer, init, **adapt):
    config = load(f"tests/tiny.py:tokenizer={tokenizer}")
    with config.unlocked():
        config.adapt, config.model_init = adapt, init if isinstance(init, dict) else str(init)
        config.total_steps, config.checkpoint.every_steps = 2, 2
        config.optimizer.weight_decay = 0.0
    return config


@pytest.fixture(scope="module")
def lora(tokenizer, fresh_run, tmp_path_factory):
    """A run of two steps on `fresh_run`."""
    workdir = tmp_path_factory.mktemp("lora")
    assert train(recipe(tokenizer, fresh_run, lora=LORA), str(workdir)) == 0
    return workdir


def test_all_but_what_was_added_is_bit_identical_after_training(lora, fresh_run):
    before, after = runs.parameters(fresh_run), runs.parameters(lora)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split("'")[1] for name in changed} == {"objectives"}
    added = after.keys() - before.keys()
    assert added and all("['lora']" in name for name in added)
    assert any(after[name].any() for name in added if "['b']" in name)


def test_frozen_parameters_have_no_moments_in_the_checkpoint(lora, fresh_run, tokenizer):
    program = build_program(recipe(tokenizer, fresh_run, lora=LORA), jax.devices()[:1])
    held = [name for name in flatten(program.state.opt_state) if "/mu/" in name]
    own = flatten(program.state.params).keys() - program.frozen
    assert {name.split("/mu/")[1] for name in held} == own
    assert {name for name in own if name.startswith("model/")} == program.added
    saved = (next((lora / "checkpoints").glob("2")) / "state" / "_METADATA").read_text()
    assert "lora" in saved and saved.count("'mu'") == len(held)


def test_a_run_goes_on_from_its_own_checkpoint(lora, tokenizer, fresh_run, capsys):
    assert train(recipe(tokenizer, fresh_run, lora=LORA), str(lora)) == 0
    assert "continuing from the checkpoint of step 2" in capsys.readouterr().out


def test_an_export_has_merged_weights_and_embeds_the_same(lora, tmp_path):
    program_of = build_program(load(str(lora / "config.json")), jax.devices()[:1])
    from mm.evaluate import restored

    state, _ = restored(program_of, str(lora), "latest")
    rng = np.random.default_rng(0)
    texts = ["red circle", "blue diamond"]
    images = list(rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8))
    assert export(str(lora), format="npz", output=str(tmp_path / "npz")) == 0
    bundle = npz.read(str(tmp_path / "npz"))
    assert bundle.adapt == {} and not [name for name in bundle.params if "lora" in name]
    model = load_model(tmp_path / "npz")
    batch = {name: np.zeros((16, *x.shape[1:]), x.dtype) for name, x in
             program_of.batch_spec.items()}  # fmt: skip
    tokens = model._feeding.texts(texts)
    for name, rows in zip(("image", "text", "text_mask"),
                          (model._feeding.images(images), *tokens), strict=True):  # fmt: skip
        batch[name] = np.concatenate([rows, np.repeat(rows[:1], 14, 0)])
    zimg, ztxt = program_of.embed(state, jax.device_put(batch, program_of.batch_sharding))
    np.testing.assert_allclose(model.embed_image(images), zimg[:2], atol=1e-5)
    np.testing.assert_allclose(model.embed_text(texts), ztxt[:2], atol=1e-5)


def test_what_cannot_be_merged_is_kept_by_our_format_and_refused_by_others(
    tokenizer, fresh_run, tmp_path
):
    config = recipe(tokenizer, fresh_run, small=ADAPTER)
    assert train(config, str(tmp_path / "run")) == 0
    with pytest.raises(BadInput, match="--format=hf: has no place for .*adapter.* expected one of"):
        export(str(tmp_path / "run"), format="hf", output=str(tmp_path / "hf"))
    assert export(str(tmp_path / "run"), format="npz", output=str(tmp_path / "npz")) == 0
    found, want = (
        load_model(tmp_path / name).embed_text(["red circle"]) for name in ("npz", "run")
    )
    np.testing.assert_array_equal(found, want)
    assert npz.read(str(tmp_path / "npz")).adapt["small"]["name"] == "adapter"


def test_weights_of_another_adaptation_are_refused(lora, tokenizer, fresh_run):
    for adapt in ({}, {"lora": LORA | dict(alpha=3.0)}):
        program = build_program(recipe(tokenizer, lora, **adapt), jax.devices()[:1])
        with pytest.raises(
            BadInput, match="was trained with another config.adapt: .*lora.* export"
        ):
            read_parameters(path=str(lora), program=program)


def test_a_run_of_no_steps_evaluates_and_saves_what_it_begins_with(tokenizer, fresh_run, tmp_path):
    soup = dict(soup=[str(fresh_run)] * 2, weights=(0.25, 0.75))
    config = recipe(tokenizer, soup)
    config.total_steps = config.optimizer.schedule.warmup_steps = 0
    assert train(config, str(tmp_path)) == 0
    before, after = runs.parameters(fresh_run), runs.parameters(tmp_path)
    for name, x in before.items():
        np.testing.assert_allclose(after[name], x, rtol=1e-6, err_msg=name)
    assert "held_out/text_to_image/recall@1" in (tmp_path / "results.json").read_text()


def test_products_are_not_averaged_by_their_factors(lora, tokenizer, fresh_run):
    program = build_program(recipe(tokenizer, lora, lora=LORA), jax.devices()[:1])
    with pytest.raises(BadInput, match="soup: .* take its export"):
        read_parameters(soup=(str(lora), str(lora)), program=program)


def test_a_step_with_lora_takes_no_memory_for_gradients_of_the_rest(tokenizer, fresh_run):
    def memory(**adapt):
        config = recipe(tokenizer, fresh_run, **adapt)
        config.model.text.vocab_size, config.model.text.width = 8192, 64
        config.objectives.contrastive.kind = "softmax"
        program = build_program(config, jax.devices()[:1])
        compiled = program.train_step.lower(program.state, program.batch_spec).compile()
        sizes = {name: 4 * leaf.size for name, leaf in flatten(program.state.params).items()}
        return compiled.memory_analysis(), sum(sizes[name] for name in program.frozen)

    (full, _), (little, frozen) = memory(), memory(lora=LORA)
    moments = full.argument_size_in_bytes - little.argument_size_in_bytes
    assert moments > 1.9 * frozen
    assert full.temp_size_in_bytes - little.temp_size_in_bytes > 0.9 * frozen
