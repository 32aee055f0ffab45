"""Code shared by the export, which builds TensorRT engines, and the runtime, which runs them."""

#: Batch sizes of an engine, each with kernels of its own: one slice, and as many as a registration
#: encodes at once if memory allows. Not yet tuned on a GPU.
DEFAULT_BATCHES = (1, 8)
