"""Checks that the machine can meet a configuration's demands, before an image is read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from ..bundle.checkpoints import check_weights, is_checkpoint
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

#: Parameters that have no effect without an encoder.
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


#: Parameters of the search and the refinement of a field, and of the initial alignment's model.
OF_A_FIELD = (
    "linear",
    "search_spacing_mm",
    "search_radius_mm",
    "search_levels",
    "search_trust_cost",
    "cost_smoothing",
    "field_smoothing",
    "coupling",
    "search_memory_mb",
    "inverse_consistency_rounds",
    "iterations",
    "learning_rate_mm",
    "adam_epsilon",
    "smoothing_mm",
    "smoothness",
    "fold_penalty",
    "fold_margin",
)


def check_demands(config: RegistrationConfig) -> Device:
    """Check the machine, then the encoder, and return the device.

    Raises:
        DinoregError: see `choose_machine` and `check_encoder`.
    """
    device, _ = choose_machine(config)
    check_encoder(config, device)
    return device


def check_encoder(config: RegistrationConfig, device: Device) -> None:
    """Check the configured encoder against its manifest; files are hashed when it is opened.

    Raises:
        InputError: the bundle does not exist, this version cannot read it, or the folder of a
            checkpoint has no weights.
        ConfigError: there are more components than channels, the bundle has no graph for the
            requested tokens, or the engine does not run the bundle's precision.
        DeviceError: the engine is not installed, or was not built for this bundle.
    """
    if config.encoder is None:
        return
    if is_checkpoint(config.encoder):
        check_weights(config.encoder)  # the rest is checked by the export
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
    elif name != "auto" or device.kind == "cpu":  # on a GPU the choice needs a graph
        _check_installed(choose_engine(name, device, bundle)[0])


def _check_built(bundle: Bundle, graphs: Sequence[Graph], flavour: Flavour, device: Device) -> None:
    """Check that at least one engine exists; the images determine later which graph is used."""
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
    """Choose the device of a configuration, and return it with the reason.

    Raises:
        DeviceError: a device or an engine was named that cannot be used.
        ConfigError: an engine was named without an encoder, or the GPU's memory limited for work on
            the CPU: these would have no effect.
    """
    device, reason = choose_device(config.device, config.threads)
    on_cpu = device.kind == "cpu"
    if config.engine != "auto":
        name, engine = config.engine, ENGINES[config.engine]
        if engine.on_gpu and on_cpu and config.device == "auto":
            raise DeviceError(
                f"--engine {name} ({engine}) needs a GPU, and the device is {reason}. "
                "`dinoreg-rt doctor` shows what is missing; --engine auto takes what is available"
            )
        choose_engine(name, device)
        if config.encoder is None:
            raise ConfigError(
                f"--engine {name} runs an encoder, and no encoder was given; add --encoder or omit "
                "--engine"
            )
        _check_installed(name)
    if config.gpu_memory_gb is not None and on_cpu:
        raise ConfigError(
            f"--gpu-memory {config.gpu_memory_gb:g}GB limits the memory of a GPU, and the device "
            f"is {reason}; use --device cuda or omit --gpu-memory"
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
    """Check that every parameter in `given` has an effect on the run.

    Presets and files may set further parameters, because they serve runs of several kinds.

    Raises:
        ConfigError: a parameter would have no effect.
        InputError: the encoder does not exist.
    """
    names = set(given)
    if config.linear_transform is not None:
        _check_all_used(names, OF_A_FIELD, f"with --transform {config.transform}", "omit them")
    if config.encoder is not None:
        _check_used_by_encoder(config, config.encoder, names)
    else:
        advice = "add --encoder or omit them"
        _check_all_used(names, OF_AN_ENCODER, "without an encoder", advice)


def _check_all_used(given: set[str], unused: Sequence[str], when: str, advice: str) -> None:
    """Check that none of the `given` parameters is among the unused ones."""
    if found := sorted(given.intersection(unused)):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in found)
        raise ConfigError(f"{when} these have no effect: {options}; {advice}")


def _check_used_by_encoder(config: RegistrationConfig, encoder: str, given: set[str]) -> None:
    """Check that every parameter in `given` has an effect with this encoder."""
    if "encoder_depth" in given and not is_checkpoint(encoder):
        raise ConfigError(
            "--encoder-depth chooses the layer that is exported from a checkpoint, and "
            f"{find_bundle(encoder)} is a bundle, which keeps the layers it has; omit it, or "
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
    """Return whether MIND-SSC's weight has an effect, if only on whether features are joined."""
    open_choice = config.search_features is None or config.refinement_features is None
    return open_choice or "joined" in config.feature_sets


def _importable(module: str) -> bool:
    """Return whether a module is installed, without importing it, which may take seconds."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return find_spec(module) is not None
