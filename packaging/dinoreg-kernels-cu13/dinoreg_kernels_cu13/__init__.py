"""libdinoreg with CUDA kernels, for `dinoreg_kernels`, which loads it from this folder."""
