"""What a configuration asks of the machine, against what is there: before an image is read."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec

from .config import RegistrationConfig
from .device import Device, choose_device, kernel_errors
from .encoder.bundle import find_bundle
from .encoder.checkpoints import is_checkpoint
from .encoder.engines import ENGINES, choose_engine
from .errors import ConfigError, DeviceError

#: Parameters that do nothing without an encoder.
OF_AN_ENCODER = (
    "encoder_depth",
    "token_grid",
    "slice_stride",
    "axis",
    "components",
    "mind_weight",
    "encoder_ct_window_hu",
    "encoder_normalisation",
)


@kernel_errors()
def choose_machine(config: RegistrationConfig) -> tuple[Device, str]:
    """The device of a configuration, and why; nothing that was asked for beside it goes unused.

    Raises:
        DeviceError: a device, or an engine, that was asked for by name and cannot be had.
        ConfigError: an engine without an encoder, or the GPU's memory limited for work on the CPU.
    """
    device, reason = choose_device(config.device, config.threads)
    on_cpu = device.kind == "cpu"
    if config.engine != "auto":
        name, engine = config.engine, ENGINES[config.engine]
        if engine.on_gpu and on_cpu and config.device == "auto":
            raise DeviceError(
                f"--engine {name} ({engine}) needs a GPU, and the device is {reason}. "
                "`dinoreg-rt doctor` shows what is missing; --engine auto takes what there is"
            )
        choose_engine(name, device)
        if config.encoder is None:
            raise ConfigError(
                f"--engine {name} runs an encoder, and none was given; add --encoder, or leave "
                "--engine out"
            )
        if missing := [module for module in engine.modules if not _importable(module)]:
            raise DeviceError(
                f"--engine {name} ({engine}): {missing[0]} is not installed; "
                f"pip install 'dinoreg-rt[{engine.extra}]'"
            )
    if config.gpu_memory_gb is not None and on_cpu:
        raise ConfigError(
            f"--gpu-memory {config.gpu_memory_gb:g}GB limits the memory of a GPU, and the device "
            f"is {reason}; --device cuda, or leave it out"
        )
    return device, reason


def check_encoder(config: RegistrationConfig) -> None:
    """Look whether the encoder is there; its files are read where it is opened.

    Raises:
        InputError: no bundle or checkpoint of that path or name.
    """
    if config.encoder is not None and not is_checkpoint(config.encoder):
        find_bundle(config.encoder)


def check_used(config: RegistrationConfig, given: Iterable[str]) -> None:
    """Without an encoder nothing of `given`, names of parameters, may be about one.

    A preset or a file may: they serve runs of both kinds.

    Raises:
        ConfigError: it would change nothing.
    """
    if config.encoder is not None:
        return
    if unused := sorted(set(OF_AN_ENCODER).intersection(given)):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigError(
            f"{options}: of an encoder, and none was given; add --encoder, or leave it out"
        )


def _importable(module: str) -> bool:
    """Whether it is there; importing it takes seconds."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return find_spec(module) is not None
