"""Writing bundles: ONNX files, manifest and licence, whole or not at all."""
