"""What runs an encoder's graph: ONNX Runtime, OpenVINO and TensorRT."""
