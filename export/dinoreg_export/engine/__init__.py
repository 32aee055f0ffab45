"""Building TensorRT engines from bundles."""
