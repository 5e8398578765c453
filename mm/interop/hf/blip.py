"""BlipForImageTextRetrieval of transformers."""

from mm.interop.hf.blocks import BLIP_IMAGE
from mm.interop.tables import Table, blocks, norm, patches


def blip_image(depth: int, patch_size: int) -> Table:
    """The image tower of BLIP."""
    return (
        patches(
            "vision_model.embeddings.patch_embedding",
            "vision_model.embeddings.position_embedding",
            "vision_model.embeddings.class_embedding",
            size=patch_size,
            lead=1,
            cls_axes=3,
        )
        | blocks("vision_model.encoder.layers", "encoder/blocks", depth, BLIP_IMAGE)
        | norm("vision_model.post_layernorm", "encoder/final_norm")
    )
