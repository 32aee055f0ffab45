"""Schema of the JSON file next to each engine: its validity and its verification."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...bundle.manifest import FileName, Sha256
from .agreement import Agreement
from .library import Flavour

SCHEMA_VERSION: Literal[1] = 1

#: Precisions for linear layers only, after a calibration; the rest of such an engine is fp16.
EightBits = Literal["fp8", "int8"]
EnginePrecision = Literal["fp32", "fp16", "bf16", "fp8", "int8"]
EIGHT_BITS: tuple[EightBits, ...] = get_args(EightBits)

#: Names of the flavours on the command line.
BACKENDS: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
#: The fields of `EngineKey` and their names in messages.
FIELD_NAMES = {
    "model_sha256": "model",
    "flavour": "library",
    "library_version": "library version",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "driver": "driver",
    "height": "input height",
    "width": "input width",
    "batches": "batch sizes",
    "precision": "precision",
    "calibration": "calibration",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gpu(_Frozen):
    """The GPU and driver on which an engine was built and verified."""

    gpu: str = Field(min_length=1)
    compute_capability: str = Field(pattern=r"^\d+\.\d+$")
    driver: str = Field(min_length=1)


class EngineKey(_Frozen):
    """Everything that an engine depends on; engines with different keys are different.

    Attributes:
        model_sha256: `Manifest.hash` of the bundle, which covers weights, graphs and preprocessing.
        batches: batch sizes of the optimisation profiles, ascending.
        calibration: sha256 of the scales of an 8-bit engine; None for all others.
    """

    model_sha256: Sha256
    flavour: Flavour
    library_version: str = Field(min_length=1)
    gpu: str = Field(min_length=1)
    compute_capability: str = Field(pattern=r"^\d+\.\d+$")
    driver: str = Field(min_length=1)
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    batches: tuple[int, ...] = Field(min_length=1)
    precision: EnginePrecision
    calibration: Sha256 | None = None

    def digest(self) -> str:
        """Return sixteen hexadecimal digits that identify the key in a file name."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def differences(self, other: EngineKey) -> list[str]:
        """Describe the fields that differ, as ``field: this value, wanted other value``."""
        return [
            f"{text}: {_brief(getattr(self, name))}, wanted {_brief(getattr(other, name))}"
            for name, text in FIELD_NAMES.items()
            if getattr(self, name) != getattr(other, name)
        ]


class Calibration(_Frozen):
    """The scales of an 8-bit engine: their origin, and their effect without TensorRT.

    Attributes:
        scales_sha256: sha256 of all scales of inputs and weights.
        images: number of the user's images; their names are not kept.
        slices: number of slices of these images whose activations were measured.
        verification: agreement with float32 of the graph with these scales, both on ONNX Runtime's
            CPU.
    """

    scales_sha256: Sha256
    images: int = Field(gt=0)
    slices: int = Field(gt=0)
    verification: Agreement


class EngineRecord(_Frozen):
    """The record of an engine, which is only written after a verification on the GPU itself.

    Attributes:
        model: name of the encoder, for messages.
        file: name of the engine's file, in the same folder.
        verification: agreement of a probe batch's tokens with ONNX Runtime on the CPU in float32;
            for an 8-bit engine the batch includes slices of the user's images.
        calibration: calibration of an 8-bit engine; None for all others.
        memory_bytes: device memory of one execution context, as the loaded engine states it; None
            in older records.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    key: EngineKey
    model: str = Field(min_length=1)
    file: FileName
    size_bytes: int = Field(gt=0)
    sha256: Sha256
    verification: Agreement
    calibration: Calibration | None = None
    builder: str
    memory_bytes: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        scales = None if self.calibration is None else self.calibration.scales_sha256
        if self.key.calibration != scales or (self.key.precision in EIGHT_BITS) == (scales is None):
            raise ValueError("an 8-bit engine, and no other, has a calibration")
        return self


def build_command(
    bundle: Path,
    flavour: Flavour,
    precision: EnginePrecision | None = None,
    batches: Sequence[int] = (),
) -> str:
    """Return the command line that builds an engine, for messages."""
    words = ["dinoreg-rt export engine", shlex.quote(str(bundle))]
    words.append(f"--backend {BACKENDS[flavour]}")
    if precision:
        words.append(f"--precision {precision}")
    if precision in EIGHT_BITS:
        words.append("--calibration IMAGE")
    if batches:
        words.append(f"--batch {','.join(map(str, batches))}")
    return " ".join(words)


def _brief(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    text = str(value)
    return text[:12] if len(text) == 64 else text
