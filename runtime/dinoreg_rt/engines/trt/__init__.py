"""What the export (which builds TensorRT engines) and the runtime (which runs them) share."""

#: Slices that an engine encodes at once, each with kernels of its own: one, and as many as a
#: registration takes where memory allows. Not yet tuned on a GPU.
DEFAULT_BATCHES = (1, 8)
