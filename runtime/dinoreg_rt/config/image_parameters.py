"""Parameters of the machine, the images and their initial alignment."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

ModalityChoice = Literal["auto", "ct", "mr"]
LinearModel = Literal["rigid", "similarity", "affine"]


class ImageParameters(BaseModel):
    """Where a registration runs, what its images are and how they are brought together."""

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu or cuda:N"
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads; 0, and more than that, takes all CPUs that this process may use",
    )
    gpu_memory_gb: float | None = Field(
        None,
        gt=0,
        le=1e4,
        description="most that a registration may take of a GPU's memory; decides whether the "
        "search keeps its costs, where tokens are kept and how many slices are encoded at once; "
        "default: what is free",
    )
    initial: str = Field(
        "auto",
        min_length=1,
        description="initial alignment: auto, search, affine, none, centre, moments, or a "
        "transform file",
    )
    linear: LinearModel = Field(
        "affine", description="model of the initial alignment that auto and affine fit"
    )
    body_mask: Literal["auto", "off"] = Field(
        "auto", description="auto: only the body counts, without the table and the air; or off"
    )
    fixed_modality: ModalityChoice = Field(
        "auto", description="what the fixed image is; auto tells it by its values"
    )
    moving_modality: ModalityChoice = Field(
        "auto", description="what the moving image is; auto tells it by its values"
    )
    ct_window_hu: tuple[float, float] = Field(
        (-125.0, 225.0), description="CT values below and above are clipped"
    )
    mr_percentile: float = Field(
        98.0, gt=50, le=100, description="MR values above this percentile are clipped"
    )
    working_megavoxels: float = Field(
        8.0,
        gt=0.001,
        le=1000,
        description="finer images are resampled to at most so many million voxels",
    )
