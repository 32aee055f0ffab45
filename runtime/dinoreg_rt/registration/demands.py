"""What a configuration asks of the machine, against what is there: before an image is read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from ..bundle.checkpoints import is_checkpoint
from ..bundle.manifest import Graph
from ..bundle.opened import Bundle, find_bundle, find_named
from ..config.parameters import RegistrationConfig
from ..device.choice import Device, choose_device, kernel_errors
from ..engines.open import ENGINES
from ..engines.selection import choose_engine
from ..errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from ..engines.trt.library import Flavour

#: Engines that are built for one bundle, GPU and driver.
_BUILT = ("tensorrt", "tensorrt-rtx")

#: Parameters that do nothing without an encoder.
OF_AN_ENCODER = (
    "encoder_depth",
    "token_grid",
    "slice_padding",
    "slice_scale",
    "slice_stride",
    "slice_spacing_mm",
    "axis",
    "components",
    "layers",
    "token_centre",
    "token_scale",
    "token_smoothing_mm",
    "position_components",
    "mind_weight",
    "encoder_ct_window_hu",
    "encoder_normalisation",
)


def check_demands(config: RegistrationConfig) -> Device:
    """What can be known to be missing before an image is read: the machine, then the encoder.

    Raises:
        DinoregError: as of `choose_machine` and `check_encoder`.
    """
    device, _ = choose_machine(config)
    check_encoder(config, device)
    return device


def check_encoder(config: RegistrationConfig, device: Device) -> None:
    """The encoder of a configuration by its manifest; its files are hashed when it is opened.

    Raises:
        InputError: no such bundle, or one that this version cannot read.
        ConfigError: more components than channels, no graph for the tokens asked for, or an engine
            without the bundle's precision.
        DeviceError: an engine that is not installed, or was not built for it.
    """
    if config.encoder is None or is_checkpoint(config.encoder):  # the export will look at it
        return
    bundle = find_named(config.encoder)
    bundle.check_components(config.components, bundle.layers(config.layers))
    graphs: Sequence[Graph] = bundle.manifest.graphs
    if config.token_grid is not None or config.slice_padding:
        padding = config.slice_padding
        found = [bundle.graph_for(config.token_grid, aspect, padding)[0] for aspect in (0.5, 2.0)]
        graphs = graphs if config.token_grid is None else found
    name = config.engine
    if name in _BUILT:
        _check_built(bundle, graphs, cast("Flavour", name), device)
    elif name != "auto" or device.kind == "cpu":  # on a GPU the graph takes part in the choice
        _check_installed(choose_engine(name, device, bundle)[0])


def _check_built(bundle: Bundle, graphs: Sequence[Graph], flavour: Flavour, device: Device) -> None:
    """Which graph it will be, the images decide: one engine at least must be there."""
    from ..engines.cache import engine_record

    problems = []
    for graph in graphs:
        try:
            engine_record(bundle, graph, flavour, device.index)
        except DeviceError as error:
            problems.append(error)
        else:
            return
    raise problems[0]


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
        _check_installed(name)
    if config.gpu_memory_gb is not None and on_cpu:
        raise ConfigError(
            f"--gpu-memory {config.gpu_memory_gb:g}GB limits the memory of a GPU, and the device "
            f"is {reason}; --device cuda, or leave it out"
        )
    return device, reason


def _check_installed(name: str) -> None:
    engine = ENGINES[name]
    if missing := [module for module in engine.modules if not _importable(module)]:
        raise DeviceError(
            f"--engine {name} ({engine}): {missing[0]} is not installed; "
            f"pip install 'dinoreg-rt[{engine.extra}]'"
        )


def check_used(config: RegistrationConfig, given: Iterable[str]) -> None:
    """Nothing of `given`, names of parameters, may be about something that the run does not do.

    A preset or a file may: they serve runs of several kinds.

    Raises:
        ConfigError: it would change nothing.
        InputError: there is no such encoder.
    """
    names = set(given)
    if config.encoder is not None:
        _check_used_by_encoder(config, config.encoder, names)
    elif unused := sorted(names.intersection(OF_AN_ENCODER)):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigError(
            f"{options}: of an encoder, and none was given; add --encoder, or leave it out"
        )


def _check_used_by_encoder(config: RegistrationConfig, encoder: str, given: set[str]) -> None:
    if "encoder_depth" in given and not is_checkpoint(encoder):
        raise ConfigError(
            "--encoder-depth chooses the layer that is exported from a checkpoint, and "
            f"{find_bundle(encoder)} is a bundle, which keeps the layers it has; leave it out, or "
            "choose among those layers with --layers"
        )
    if "mind_weight" in given and not _may_join(config):
        raise ConfigError(
            "--mind-weight is the weight of MIND-SSC where it is joined with the encoder, and no "
            "stage joins them; leave it out, or give --search-features or --refinement-features "
            "with joined"
        )
    if "token_smoothing_mm" in given and config.token_centre != "smooth":
        raise ConfigError(
            "--token-smoothing-mm is the smoothing of --token-centre smooth, and the configuration "
            f"has --token-centre {config.token_centre}; leave one of them out"
        )
    if "slice_scale" in given and config.slice_scale == "body" and config.body_mask == "off":
        raise ConfigError(
            "--slice-scale body crops slices to the body, which --body-mask off does not look for; "
            "leave --body-mask out, or give --slice-scale common"
        )


def _may_join(config: RegistrationConfig) -> bool:
    """Whether the weight of MIND-SSC decides anything: also whether an open choice is to join."""
    open_choice = config.search_features is None or config.refinement_features is None
    return open_choice or "joined" in config.feature_sets


def _importable(module: str) -> bool:
    """Whether it is there; importing it takes seconds."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return find_spec(module) is not None
