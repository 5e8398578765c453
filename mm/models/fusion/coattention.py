"""Co-attention: two streams, each with cross-attention to the other (ViLBERT, LXMERT)."""

from functools import partial
from typing import Annotated, Any

from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mm import registry
from mm.models.block import Attention, Block, Branch, EncoderSpec, Mlp, Reads
from mm.models.fusion.base import OTHER, SIDES, Context, Flat, StreamFusion, each, of


@registry.register("fusion", "coattention")
class CoAttention(StreamFusion):
    """Layers of cross-attention in both directions, then self-attention and an MLP of each stream.

    Both directions read what the layer is given. `cross_mlp` puts another MLP after the
    cross-attention, for ViLBERT's co-attention and Transformer layers in turn (Lu et al. 2019,
    section 3.1). With cross_mlp=False and shared_cross=True, one cross-attention and norm for both
    directions, it is LXMERT's cross-modality encoder (Tan and Bansal 2019, section 2.2). Both have
    norm_placement="post". The other keys are those of `StreamFusion`.
    """

    filled = True

    def __init__(
        self,
        *,
        shared_cross: bool = False,
        cross_mlp: bool = True,
        **rest: Annotated[Any, StreamFusion],
    ):
        self.shared_cross, self.cross_mlp = shared_cross, cross_mlp
        super().__init__(**rest)

    def layer(self, spec: EncoderSpec, model: nnx.Module, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """Cross-attention both ways and a block of each stream."""
        own = partial(each, names=SIDES, shared=self.shared_cross)
        branch = partial(Branch, spec, rngs=rngs)
        parts = dict(cross_branches=own(branch), crosses=own(lambda: Attention(spec, rngs=rngs)))
        if self.cross_mlp:
            parts |= dict(mlp_branches=own(branch), mlps=own(lambda: Mlp(spec, rngs=rngs)))
        return parts | dict(blocks=each(lambda: Block(spec, rngs=rngs), SIDES))

    def step(self, layer: nnx.Dict, streams: Flat, context: Context) -> Flat:
        """Cross-attention both ways, of what the layer is given, then a block of each stream."""
        masks = context.masks
        read = {name: of(layer.cross_branches, name).read(streams[name]) for name in SIDES}
        found = {}
        for name, draw in zip(SIDES, context.draw.split(), strict=True):
            other, draws = OTHER[name], draw.split(3)
            attend = of(layer.crosses, name)
            attend = partial(attend, memory=read[other], mask=masks[other], batch=draw.batch)
            branch = of(layer.cross_branches, name)
            x = checkpoint_name(branch(streams[name], attend, draws[0]), "middle")
            if self.cross_mlp:
                branch, mlp = of(layer.mlp_branches, name), of(layer.mlps, name)
                x = checkpoint_name(branch(x, mlp, draws[1]), "middle")
            found[name] = layer.blocks[name](x, Reads(masks[name]), draws[2])
        return found
