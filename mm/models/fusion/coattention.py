"""Co-attention: two streams, each with cross-attention to the other (ViLBERT, LXMERT)."""

from functools import partial
from typing import Annotated, Any

from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mm import registry
from mm.models.encoder import Block, Branch, EncoderSpec, Reads
from mm.models.fusion.base import OTHER, SIDES, Context, Flat, StreamFusion, Widths, each, of
from mm.models.keys import split


class CoLayer(nnx.Module):
    """Cross-attention both ways, of what the layer is given, then a block of each stream."""

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        shared_cross: bool = False,
        cross_mlp: bool = False,
        rngs: nnx.Rngs,
    ):
        own = partial(each, names=SIDES, shared=shared_cross)
        self.cross_branches = own(lambda: Branch(spec, rngs=rngs))
        self.crosses = own(lambda: spec.make_attention(rngs))
        self.mlp_branches = own(lambda: Branch(spec, rngs=rngs)) if cross_mlp else None
        self.mlps = own(lambda: spec.make_mlp(rngs)) if cross_mlp else None
        self.blocks = each(lambda: Block(spec, rngs=rngs), SIDES)

    def __call__(self, streams: Flat, context: Context) -> Flat:
        masks, drop_path, batch = context.masks, context.drop_path, context.batch
        read = {name: of(self.cross_branches, name).read(streams[name]) for name in SIDES}
        found = {}
        for name, keys in zip(SIDES, split(context.keys), strict=True):
            other, keys = OTHER[name], split(keys, 3)
            attend = of(self.crosses, name)
            attend = partial(attend, memory=read[other], mask=masks[other], batch=batch)
            branch = of(self.cross_branches, name)
            x = branch(streams[name], attend, keys[0], drop_path, batch=batch)
            x = checkpoint_name(x, "middle")
            if self.mlps is not None:
                branch, mlp = of(self.mlp_branches, name), of(self.mlps, name)
                x = checkpoint_name(branch(x, mlp, keys[1], drop_path, batch=batch), "middle")
            block, reads = self.blocks[name], Reads(masks[name])
            found[name] = block(x, reads, keys[2], drop_path, batch=batch)
        return found


@registry.register("fusion", "coattention")
class CoAttention(StreamFusion):
    """Layers of cross-attention in both directions, then self-attention and an MLP of each stream.

    Both directions read what the layer is given. `cross_mlp` puts another MLP after the
    cross-attention, for ViLBERT's co-attention and Transformer layers in turn (Lu et al. 2019,
    section 3.1). With cross_mlp=False and shared_cross=True, one cross-attention and norm for both
    directions, it is LXMERT's cross-modality encoder (Tan and Bansal 2019, section 2.2). Both have
    norm_placement="post". The other keys are those of `StreamFusion`.
    """

    def __init__(
        self,
        *,
        shared_cross: bool = False,
        cross_mlp: bool = True,
        **rest: Annotated[Any, StreamFusion],
    ):
        self.shared_cross, self.cross_mlp = shared_cross, cross_mlp
        super().__init__(**rest)

    filled = True

    def layer(self, spec: EncoderSpec, widths: Widths, rngs: nnx.Rngs) -> CoLayer:
        """A layer of both streams."""
        how = dict(shared_cross=self.shared_cross, cross_mlp=self.cross_mlp)
        return CoLayer(spec, **how, rngs=rngs)
