"""Generate text from a clip: translation, captioning and transcription."""
