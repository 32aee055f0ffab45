"""What the export (which builds TensorRT engines) and the runtime (which runs them) share."""
