"""The encoders as ONNX graphs."""
