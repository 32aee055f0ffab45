"""From an encoder checkpoint to an ONNX bundle and an engine; comes with the encoder."""
