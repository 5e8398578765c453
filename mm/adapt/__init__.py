"""config.adapt: what is added to a trained model to carry it to a task, one file a kind."""

from mm.adapt import adapter, image_prompt, lora, text_context
from mm.adapt.base import adapt, fold

__all__ = ["adapt", "adapter", "fold", "image_prompt", "lora", "text_context"]
