"""Conversion of encoder checkpoints into ONNX bundles and TensorRT engines."""
