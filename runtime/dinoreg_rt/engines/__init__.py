"""The engines that run an encoder's graph: ONNX Runtime, OpenVINO and TensorRT."""
