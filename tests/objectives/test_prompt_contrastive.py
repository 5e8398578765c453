import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.objectives import Views
from mm.objectives.prompt_contrastive import PromptContrastive
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def test_the_loss_is_supcon_over_all_prompts_of_the_batch(model):
    rng, group = np.random.default_rng(0), np.array([0, 1, 0])
    batch = {"group": jnp.asarray(group, jnp.int32)}
    for name in ("one", "two"):
        batch[f"text_{name}"] = jnp.asarray(rng.integers(1, 64, (3, 8)), jnp.int32)
        batch[f"text_{name}_mask"] = jnp.ones((3, 8), bool)
    objective = PromptContrastive(temperature=0.2, model=model, rngs=nnx.Rngs(0))
    views = Views(model, batch, None, training=False)
    found = float(objective(views, jax.random.key(0)).value)
    z = np.concatenate([views.text_embedding(x).z for x in ("one", "two")]).astype(np.float64)
    classes, logits = np.tile(group, 2), z @ z.T / 0.2
    losses = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        same = [j for j in others if classes[j] == classes[i]]
        whole = np.log(np.exp(logits[i, others]).sum())
        losses.append(np.mean([whole - logits[i, j] for j in same]))
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize("views", [("one",), ("one", "one")])
def test_one_prompt_alone_is_refused(model, views):
    with pytest.raises(BadInput, match="expected several names, each another"):
        PromptContrastive(views=views, model=model, rngs=nnx.Rngs(0))
