"""The toy world: small H.264/AAC clips whose frames, audio, captions and answers are known exactly."""

from simple_multimodal.prepare.toy.world import make_toy_world

__all__ = ["make_toy_world"]
