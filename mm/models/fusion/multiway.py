"""Multiway fusion: attention is shared, each modality has its own MLP (VLMo, BEiT-3)."""

from functools import partial

from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mm import registry
from mm.models.block import Attention, Branch, EncoderSpec, Mlp
from mm.models.encoder import flat
from mm.models.fusion.base import Context, Flat, StreamFusion, each, join, of, part


@registry.register("fusion", "multiway")
class Multiway(StreamFusion):
    """x + attention([norm_I(x_I); norm_T(x_T)]), then x_m + MLP_m(norm_m(x_m)) of each modality.

    The layers of BEiT-3 (Wang et al. 2023, section 2.1) without its norms inside of attention and
    MLP; its model is these over towers of depth 0. The keys are those of `StreamFusion`.
    """

    filled = True
    shared, crosses = False, False  # one set of norms and MLPs; a memory for the first stream

    def layer(self, spec: EncoderSpec, model: nnx.Module, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """Attention of both streams with the same weights; norms and an MLP of each stream."""
        own = partial(each, names=self.names, shared=self.shared)
        branch = partial(Branch, spec, rngs=rngs)
        parts = dict(attention_branches=own(branch), attention=Attention(spec, rngs=rngs))
        if self.crosses:
            width = model.image.width
            parts |= dict(cross_branch=branch(), cross=Attention(spec, width, rngs=rngs))
        return parts | dict(mlp_branches=own(branch), mlps=own(lambda: Mlp(spec, rngs=rngs)))

    def step(self, layer: nnx.Dict, streams: Flat, context: Context) -> Flat:
        """Attention over both; the first stream may attend to the context's memory; MLPs."""
        masks, batch, draws = context.masks, context.draw.batch, context.draw.split(3)
        names, found = self.names, {}
        branches = [of(layer.attention_branches, name) for name in names]
        read = [branch.read(streams[n]) for branch, n in zip(branches, names, strict=True)]
        x, mask = join([(x, masks[n]) for x, n in zip(read, names, strict=True)], batch)
        tokens = flat(x)
        y = layer.attention(tokens, tokens, mask, batch=batch).reshape(x.shape)
        made = part(y, [len(x) // batch for x in read])
        for name, branch, y, draw in zip(names, branches, made, draws[0].split(), strict=True):
            found[name] = checkpoint_name(branch.add(streams[name], flat(y), draw), "middle")
        if self.crosses:
            memory, first = context.memory, names[0]
            attend = partial(layer.cross, memory=flat(memory.tokens), mask=memory.mask, batch=batch)
            x = layer.cross_branch(found[first], attend, draws[1])
            found[first] = checkpoint_name(x, "middle")
        for name, draw in zip(names, draws[2].split(), strict=True):
            branch, mlp = of(layer.mlp_branches, name), of(layer.mlps, name)
            found[name] = branch(found[name], mlp, draw)
        return found
