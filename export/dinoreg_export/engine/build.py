"""Building of one serialised TensorRT engine (a "plan") from an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoreg_rt.engines.trt.library import Library
from dinoreg_rt.errors import ConfigError, DeviceError, InputError
from dinoreg_rt.io.staging import whole_file

INPUT = "pixels"
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class BuildOptions:
    """Settings for building an engine.

    Attributes:
        batches: slices per batch, one optimisation profile for each.
        workspace_bytes: most scratch memory that a layer may use.
        timing_cache: file of kernel timings, read and written; None measures them again.
        compute_capability: capability, such as 8.9, that TensorRT-RTX compiles for without a GPU;
            None means the GPU of this machine.
    """

    batches: tuple[int, ...]
    workspace_bytes: int = 4 << 30
    timing_cache: Path | None = None
    compute_capability: str | None = None


def build_plan(library: Library, graph: Path, options: BuildOptions, progress: Progress) -> bytes:
    """Build the engine of one graph and return it serialised.

    Raises:
        InputError: TensorRT cannot read the graph.
        DeviceError: TensorRT cannot build an engine from it.
        ConfigError: TensorRT-RTX does not compile for the compute capability.
    """
    trt = library.module
    builder = trt.Builder(library.logger)
    network = builder.create_network(library.network_flags())
    parser = trt.OnnxParser(network, library.logger)
    # By its path, so that the weights beside the graph are found.
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise InputError(f"{graph}: {library.flavour} cannot read it: {errors}")
    config = builder.create_builder_config()
    _add_profiles(builder, config, network, options.batches)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.compute_capability is not None:
        _compile_for(library, config, options.compute_capability)
    cache = options.timing_cache if library.has_timing_cache else None
    if cache is not None:
        _set_timings(config, cache.read_bytes() if cache.is_file() else b"")
    monitor = _make_monitor(library, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.interruption is not None:
        raise monitor.interruption
    if plan is None:
        raise DeviceError(
            f"{library.flavour} {library.version} could not build an engine from {graph.name}: "
            f"{library.complaint()}; a smaller --batch or --workspace-gb needs less memory"
        )
    progress("building", 1.0)
    timings = config.get_timing_cache() if cache is not None else None
    if cache is not None and timings is not None:
        with whole_file(cache, 0o644) as stream:  # others may read and write it at the same time
            stream.write(bytes(timings.serialize()))
    return bytes(plan)


def _set_timings(config: Any, known: bytes) -> None:
    """Start from known timings, or from none where TensorRT refuses them: then all are measured."""
    for content in (known, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return


def _add_profiles(builder: Any, config: Any, network: Any, batches: tuple[int, ...]) -> None:
    """Add one profile of exactly each batch size, because TensorRT tunes for fixed shapes."""
    shape = tuple(network.get_input(0).shape)[1:]
    for batch in batches:
        profile = builder.create_optimization_profile()
        whole = (batch, *shape)
        profile.set_shape(INPUT, whole, whole, whole)
        if config.add_optimization_profile(profile) < 0:
            raise ConfigError(
                f"TensorRT refuses a batch of {batch} slices of the shape {shape}; give a smaller "
                "--batch"
            )


def _compile_for(library: Library, config: Any, capability: str) -> None:
    kinds = getattr(library.module, "ComputeCapability", None)
    name = "SM" + capability.replace(".", "")
    if kinds is None or name not in kinds.__members__:
        known = [] if kinds is None else [k for k in kinds.__members__ if k.startswith("SM")]
        names = ", ".join(f"{k[2:-1]}.{k[-1]}" for k in known) or "the GPU of this machine alone"
        raise ConfigError(
            f"{library.flavour} does not compile for compute capability {capability}; it supports "
            f"{names}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(kinds.__members__[name], 0)


def _make_monitor(library: Library, progress: Progress) -> Any:
    # The base class exists only once the module has been imported.
    base: Any = library.module.IProgressMonitor

    class _Monitor(base):  # type: ignore[misc]
        """Nested phases: an inner phase makes up one step of the outer one."""

        def __init__(self) -> None:
            base.__init__(self)
            self.phases: dict[str, list[Any]] = {}  # name -> [parent, steps, steps done]
            self.fraction = 0.0
            self.interruption: BaseException | None = None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = [parent, max(steps, 1), 0]

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            # Exceptions must not propagate through TensorRT; returning False stops the build.
            try:
                if name in self.phases:
                    self.phases[name][2] = step + 1
                    self.fraction = max(self.fraction, self._fraction(name))
                    progress("building", min(self.fraction, 1.0))
            except BaseException as error:
                self.interruption = error
                return False
            return True

        def _fraction(self, name: str) -> float:
            inner: float = 0.0
            phase: str | None = name
            while phase in self.phases:
                parent, steps, done = self.phases[phase]
                inner = min(1.0, (done + inner) / steps)
                phase = parent
            return inner

    return _Monitor()
