"""Photos, the embedded ImageNet model, other people's models, and the cards that go with them.

A card (`ModelCard`) says how a model sees a photo and what its classes are called. The files under
``assets/`` need no network; where they come from and their licences stand in ``assets/README.md``.
"""

from .card import ModelCard, model_card
from .checkpoint import load_checkpoint, read_checkpoint
from .images import decode_image, embedded_photo, embedded_photos, find_images, load_image, read_ahead
from .models import load_model

__all__ = [
    "ModelCard",
    "decode_image",
    "embedded_photo",
    "embedded_photos",
    "find_images",
    "load_checkpoint",
    "load_image",
    "load_model",
    "model_card",
    "read_ahead",
    "read_checkpoint",
]
