"""The toy worlds: small files whose content, captions and answers are known exactly."""

from simple_multimodal.prepare.toy.sign_world import make_sign_world
from simple_multimodal.prepare.toy.world import make_toy_world

__all__ = ["make_sign_world", "make_toy_world"]
