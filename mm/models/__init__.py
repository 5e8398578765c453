"""Models: image and text towers, and the model that joins them."""

from mm.models import multimodal, resnet, text, vit
from mm.models.encoder import Encoded

__all__ = ["Encoded", "multimodal", "resnet", "text", "vit"]
