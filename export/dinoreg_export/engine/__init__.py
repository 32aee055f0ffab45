"""TensorRT engines, built from bundles."""
