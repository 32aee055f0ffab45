"""Code shared by the export, which builds TensorRT engines, and the runtime, which runs them."""

#: Batch sizes of an engine, each with kernels of its own: as many slices as a registration encodes
#: at once, and fewer for the last ones and for little memory. Not yet tuned on a GPU.
DEFAULT_BATCHES = (1, 2, 4, 8)
