"""The config of a dual encoder that was trained with mm: its towers' options, all of them said."""

from transformers import PretrainedConfig


class DualEncoderConfig(PretrainedConfig):
    """image, text: options of the towers. logits: {"kind", "max_scale"}, or None for cosines."""

    model_type = "mm_dual_encoder"

    def __init__(
        self,
        image=None,
        text=None,
        embed_dim=None,
        image_projection="linear",
        text_projection="linear",
        logits=None,
        pad_token_id=None,
        **more,
    ):
        self.image, self.text, self.embed_dim = image, text, embed_dim
        self.image_projection, self.text_projection = image_projection, text_projection
        self.logits = logits
        super().__init__(pad_token_id=pad_token_id, **more)
