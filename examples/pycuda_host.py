"""Register in the CUDA context and page-locked buffers of a host program, through PyCUDA.

Here PyCUDA plays the host; in a C++ program with an embedded Python the context is already current
and the buffers come as addresses. Needs a CUDA device, CuPy and PyCUDA.

python pycuda_host.py FIXED MOVING
"""

import sys

import numpy as np
import pycuda.driver as cuda
import SimpleITK as sitk

import dinoreg_rt
from dinoreg_rt.device.pycuda_context import AdoptedContext, host_buffer

if len(sys.argv) != 3:
    sys.exit("usage: python pycuda_host.py FIXED MOVING")

# What the host does: its device's primary context (in C++ cuDevicePrimaryCtxRetain and
# cuCtxPushCurrent, or the CUDA runtime API), and page-locked memory for two images and a
# displacement. A context of cuCtxCreate would be refused.
cuda.init()
host_context = cuda.Device(0).retain_primary_context()
host_context.push()
images = [sitk.ReadImage(path, sitk.sitkFloat32) for path in sys.argv[1:]]
shapes = [image.GetSize()[::-1] for image in images]
memory = [cuda.pagelocked_empty(shape, np.float32) for shape in (*shapes, (*shapes[0], 3))]
for voxels, image in zip(memory, images, strict=False):
    voxels[...] = sitk.GetArrayViewFromImage(image)
fixed_address, moving_address, result_address = (part.ctypes.data for part in memory)

# What an embedded Python makes of it.
grids = [
    dinoreg_rt.Geometry(
        shape, image.GetSpacing(), image.GetOrigin(), np.array(image.GetDirection()).reshape(3, 3)
    )
    for shape, image in zip(shapes, images, strict=True)
]
with AdoptedContext.current() as context:
    config = dinoreg_rt.RegistrationConfig(device=context.device, initial="moments")
    into = dinoreg_rt.Placement(displacement=host_buffer(result_address, (*shapes[0], 3)))
    with dinoreg_rt.Registrar(config, cuda_context=context.entered) as registrar:
        future = registrar.submit(
            (host_buffer(fixed_address, shapes[0]), grids[0]),
            (host_buffer(moving_address, shapes[1]), grids[1]),
            placement=into,
        )
        result = future.result()  # the worker thread entered the host's context and left it

length_mm = np.linalg.norm(memory[2], axis=-1)  # the host finds the vectors in its own memory
print(f"{length_mm.mean():.2f} mm on average, {result.quality.folded_percent:.3f} % folded")
host_context.pop()
