"""Parameters of the machine, the images and their initial alignment."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from ..choices import OrientationChoice

ModalityChoice = Literal["auto", "ct", "mr"]
#: Initial alignments by name; any other value of `initial` is a transform file.
INITIAL_METHODS = ("auto", "affine", "search", "none", "centre", "moments")
LinearModel = Literal["rigid", "similarity", "affine"]


class ImageParameters(BaseModel, defer_build=True):
    """The machine, the images and their initial alignment."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu or cuda:N; auto takes the first GPU, or the CPU if none is usable",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="number of CPU threads, limited to the CPUs that this process may use; 0: all",
    )
    gpu_memory_gb: float | None = Field(
        None,
        gt=0,
        le=1e4,
        description="limit on a registration's GPU memory; a low limit makes the search recompute "
        "its costs, keeps tokens in host memory and encodes fewer slices at once; default: all "
        "free memory",
    )
    initial: str = Field(
        "auto",
        min_length=1,
        description="initial alignment: auto, affine (ignores the headers), search (best shift and "
        "size only), none (as in the headers), centre, moments (centres of mass), or a transform "
        "file",
    )
    linear: LinearModel = Field(
        "affine",
        description="transform model that --initial auto and affine fit; that of --transform if it "
        "is linear",
    )
    orientation: OrientationChoice = Field(
        "auto",
        description="which placement of a NIfTI header counts where its sform and its qform "
        "differ: auto (the sform unless it is sheared), sform or qform",
    )
    body_mask: Literal["auto", "off"] = Field(
        "auto",
        description="auto: find the body and leave out the table and the air; off: use the whole "
        "image",
    )
    fixed_modality: ModalityChoice = Field(
        "auto",
        description="modality of the fixed image; auto takes the DICOM header's or decides by "
        "the histogram",
    )
    moving_modality: ModalityChoice = Field(
        "auto",
        description="modality of the moving image; auto takes the DICOM header's or decides by "
        "the histogram",
    )
    ct_window_hu: tuple[float, float] = Field(
        (-125.0, 225.0), description="intensity window to which CT values are clipped, in HU"
    )
    mr_percentile: float = Field(
        98.0, gt=50, le=100, description="percentile to which MR values are clipped"
    )
    working_megavoxels: float = Field(
        8.0,
        gt=0.001,
        le=1000,
        description="size limit of the working grid in million voxels; larger images are resampled",
    )
