"""Recognise which labels apply to a clip, from text, audio and video."""
