"""Multiway fusion: attention is shared, each modality has its own MLP (VLMo, BEiT-3)."""

from collections.abc import Sequence
from functools import partial

from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mm import registry
from mm.models.encoder import Branch, EncoderSpec, flat
from mm.models.fusion.base import SIDES, Context, Flat, StreamFusion, Widths, each, join, of, part
from mm.models.keys import split


class MultiwayLayer(nnx.Module):
    """Self-attention over two streams with the same weights; norms and an MLP of each stream.

    shared: those are the same for both, too. With a `memory_width`, the first stream attends to the
    context's memory before its MLP.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        names: Sequence[str] = SIDES,
        *,
        shared: bool = False,
        memory_width: int | None = None,
        rngs: nnx.Rngs,
    ):
        own = partial(each, names=names, shared=shared)
        self.attention_branches = own(lambda: Branch(spec, rngs=rngs))
        self.attention, crosses = spec.make_attention(rngs), memory_width is not None
        self.cross_branch = Branch(spec, rngs=rngs) if crosses else None
        self.cross = spec.make_attention(rngs, memory_width) if crosses else None
        self.mlp_branches = own(lambda: Branch(spec, rngs=rngs))
        self.mlps = own(lambda: spec.make_mlp(rngs))
        self.names = tuple(names)

    def __call__(self, streams: Flat, context: Context) -> Flat:
        masks, drop_path, batch = context.masks, context.drop_path, context.batch
        keys, names, found = split(context.keys, 3), self.names, {}
        branches = [of(self.attention_branches, name) for name in names]
        read = [branch.read(streams[n]) for branch, n in zip(branches, names, strict=True)]
        x, mask = join([(x, masks[n]) for x, n in zip(read, names, strict=True)], batch)
        y = self.attention(flat(x), flat(x), mask, batch=batch).reshape(x.shape)
        made = part(y, [len(x) // batch for x in read])
        for name, branch, y, key in zip(names, branches, made, split(keys[0]), strict=True):
            x = branch.add(streams[name], flat(y), key, drop_path, batch=batch)
            found[name] = checkpoint_name(x, "middle")
        if self.cross is not None:
            memory = context.memory
            attend = partial(self.cross, memory=flat(memory.tokens), mask=memory.mask, batch=batch)
            x = self.cross_branch(found[names[0]], attend, keys[1], drop_path, batch=batch)
            found[names[0]] = checkpoint_name(x, "middle")
        for name, key in zip(names, split(keys[2]), strict=True):
            branch, mlp = of(self.mlp_branches, name), of(self.mlps, name)
            found[name] = branch(found[name], mlp, key, drop_path, batch=batch)
        return found


@registry.register("fusion", "multiway")
class Multiway(StreamFusion):
    """x + attention([norm_I(x_I); norm_T(x_T)]), then x_m + MLP_m(norm_m(x_m)) of each modality.

    The layers of BEiT-3 (Wang et al. 2023, section 2.1) without its norms inside of attention and
    MLP; its model is these over towers of depth 0. The keys are those of `StreamFusion`.
    """

    filled = True

    def layer(self, spec: EncoderSpec, widths: Widths, rngs: nnx.Rngs) -> MultiwayLayer:
        """A layer of both streams."""
        return MultiwayLayer(spec, rngs=rngs)
