"""CuPy and TensorRT as far as the encoders use them, simulated on the host with a log of calls.

Addresses are real host addresses read through ctypes, so a wrong pointer, shape or type shows as
wrong tokens. Races, speed and kernels show only on a device.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from dinoreg_rt.engines.trt.record import Gpu

H100 = Gpu(gpu="NVIDIA H100", compute_capability="9.0", driver="580.95.05 (CUDA 13.0)")


class DeviceArray:
    """Memory that NumPy does not accept as its own, like CuPy's."""

    def __init__(self, host: np.ndarray) -> None:
        self.host = host

    dtype = property(lambda self: self.host.dtype)
    shape = property(lambda self: self.host.shape)
    data = property(lambda self: SimpleNamespace(ptr=self.host.ctypes.data))

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, item: Any) -> DeviceArray:
        return DeviceArray(self.host[item])

    def __setitem__(self, item: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError("CuPy takes no NumPy array here")
        self.host[item] = value.host if isinstance(value, DeviceArray) else value

    def set(self, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.host[...] = array


class Event:
    #: Whether the device has passed it.
    done = False

    def __init__(self, **_: Any) -> None:
        self.recorded_on: int | None = None

    def record(self, stream: Stream) -> None:
        self.recorded_on = stream.ptr

    def synchronize(self) -> None:
        pass


class Stream:
    """Streams nest like CuPy's: the innermost ``with`` is the thread's current stream."""

    _local = threading.local()
    null: Stream

    def __init__(self, calls: list[tuple[Any, ...]], ptr: int) -> None:
        self.calls, self.ptr = calls, ptr

    @classmethod
    def stack(cls) -> list[Stream]:
        return cls._local.__dict__.setdefault("stack", [])

    def __enter__(self) -> Stream:
        self.stack().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack().pop()

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event.recorded_on != self.ptr:  # waiting for oneself is not logged
            self.calls.append(("wait", self.ptr, event.recorded_on))

    def synchronize(self) -> None:
        self.calls.append(("synchronize", self.ptr))


def fake_cupy() -> ModuleType:
    """Return a module whose `calls` lists every wait and synchronisation, in order."""
    cupy = ModuleType("cupy")
    cupy.calls = calls = []
    null, count = Stream(calls, 0), iter(range(0x1000, 0x9000, 0x10))

    def make_stream(*, non_blocking: bool = False) -> Stream:
        return Stream(calls, next(count))

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            calls.append(("device", self.index))

        def __exit__(self, *_: object) -> None:
            pass

    def asnumpy(array: DeviceArray) -> np.ndarray:
        calls.append(("download", Stream.stack()[-1].ptr if Stream.stack() else 0))
        return array.host.copy()

    pool = SimpleNamespace(free_all_blocks=lambda: calls.append(("blocks freed",)))
    cupy.get_default_memory_pool = lambda: pool
    cupy.cuda = SimpleNamespace(
        Device=Device,
        Event=Event,
        Stream=make_stream,
        get_current_stream=lambda: Stream.stack()[-1] if Stream.stack() else null,
        runtime=SimpleNamespace(memGetInfo=lambda: (10 << 30, 80 << 30)),
    )
    cupy.ndarray = DeviceArray
    # Not zeros: memory from a pool holds old values.
    cupy.empty = lambda shape, dtype: DeviceArray(np.full(shape, 77, dtype))
    cupy.zeros = lambda shape, dtype: DeviceArray(np.zeros(shape, dtype))
    cupy.asarray = lambda a: a if isinstance(a, DeviceArray) else DeviceArray(np.array(a))
    cupy.ascontiguousarray = lambda a: DeviceArray(np.ascontiguousarray(a.host))
    cupy.asnumpy = asnumpy
    return cupy


def at_address(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 of a shape in host memory."""
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING = range(3)


@dataclass
class Faults:
    """Faults to simulate; `tokens` maps a precision to a function of an engine's tokens."""

    tokens: dict[str, Any] = field(default_factory=dict)
    parse: str = ""
    build: str = ""
    load: str = ""
    execute: str = ""


class Context:
    def __init__(self, trt: ModuleType, engine: Any) -> None:
        self.trt, self.engine = trt, engine
        self.addresses: dict[str, int] = {}
        self.batch = self.profile = self.scratch = None
        self.running = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        self.trt.calls.append(("profile", profile, stream))
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        """Refuse what is too small as TensorRT does: it is only logged."""
        if size < self.engine.device_memory_size_v2:
            self.trt.loggers[-1].log(Severity.ERROR, f"{size} bytes are too few")
        else:
            self.scratch = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return name == "pixels" and shape[0] == self.engine.batches[self.profile]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names

    def execute_async_v3(self, stream: int) -> bool:
        if self.trt.faults.execute or self.scratch is None:
            self.trt.loggers[-1].log(Severity.ERROR, self.trt.faults.execute)
            return False
        self.trt.calls.append(("execute", self.batch, stream, threading.get_ident(), id(self)))
        assert not self.running, "two runs in one context at a time"
        self.running = True
        time.sleep(0.01)  # long enough for another thread to interfere
        self.running = False
        pixels = at_address(self.addresses["pixels"], (self.batch, *self.engine.input_shape))
        tokens = self.engine.tokens(pixels)
        at_address(self.addresses["tokens"], tokens.shape)[...] = tokens
        return True


class RuntimeCache:
    """Kernels of TensorRT-RTX: those of another version are refused."""

    def __init__(self, version: bytes) -> None:
        self.version, self.content = version, b""

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(self.version):
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    """A runtime configuration of TensorRT-RTX."""

    def __init__(self, version: bytes) -> None:
        self._version = version
        self.strategy = "STATIC"
        self.cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self._version)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Engine:
    """An engine that runs its ONNX graph with ONNX Runtime."""

    def __init__(self, trt: ModuleType, plan: bytes) -> None:
        import onnxruntime

        header, _, model = plan.partition(b"\n")
        about = json.loads(header)
        self.trt, self.batches, self.precision = trt, about["batches"], about["precision"]
        self.input_shape = tuple(about["input"])
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.output_shape = (-1, *self.session.get_outputs()[0].shape[1:])
        self.names = ["pixels", "tokens"]
        self.num_io_tensors, self.num_optimization_profiles = 2, len(self.batches)

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_dtype(self, name: str) -> str:
        return self.trt.float32

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.output_shape if name == "tokens" else (-1, *self.input_shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(self.batches[profile], *self.input_shape)] * 3

    @property
    def device_memory_size_v2(self) -> int:
        return 1000 * max(self.batches)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.trt.__version__.encode())

    def create_execution_context(self, config: str | RuntimeConfig) -> Context:
        if isinstance(config, RuntimeConfig):
            assert config.strategy == "USER_MANAGED"
            self.trt.calls.append(("kernels", config.cache.content))
            config.cache.content = config.cache.version + b": compiled"
        else:
            assert config == "USER_MANAGED"
        return Context(self.trt, self)

    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        tokens = self.session.run(["tokens"], {"pixels": np.ascontiguousarray(pixels)})[0]
        return self.trt.faults.tokens.get(self.precision, lambda t: t)(tokens)


class Builder:
    def __init__(self, logger: Any) -> None:
        self.trt = logger.trt

    def create_network(self, flags: int) -> Any:
        self.trt.calls.append(("network", flags))
        return SimpleNamespace(trt=self.trt, path="", get_input=lambda _: None)

    def create_builder_config(self) -> Any:
        return Config(self.trt)

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        set_shape = lambda name, *three: shapes.update({name: three})  # noqa: E731
        return SimpleNamespace(shapes=shapes, set_shape=set_shape)

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("build", None, 2)
        monitor.phase_start("tactics", "build", 4)
        more = all(monitor.step_complete("tactics", step) for step in range(4))
        monitor.phase_finish("tactics")
        if not (more and monitor.step_complete("build", 0) and monitor.step_complete("build", 1)):
            return None
        if self.trt.faults.build:
            self.trt.loggers[-1].log(Severity.ERROR, self.trt.faults.build)
            return None
        about = {
            "batches": [profile.shapes["pixels"][0][0] for profile in config.profiles],
            "input": list(network.shape[1:]),
            "precision": network.precision,
        }
        self.trt.calls.append(("build", network.precision, config.limits, config.profiles))
        return json.dumps(about).encode() + b"\n" + network.model


class Config:
    def __init__(self, trt: ModuleType) -> None:
        self.trt, self.profiles, self.limits = trt, [], {}
        self.progress_monitor: Any = None
        self.cache = b""

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, known: bytes) -> bytes | None:
        return None if known.startswith(b"damaged") else known

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = b"" if cache.startswith(b"other GPU") else cache
        return self.cache == cache

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b"timed;")


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self.network, self.trt, self.num_errors = network, logger.trt, 1

    def get_error(self, _: int) -> str:
        return self.trt.faults.parse

    def parse_from_file(self, path: str) -> bool:
        import onnx

        model = onnx.load(path)
        kinds = {t.data_type for t in model.graph.initializer}
        names = {17: "fp8", 3: "int8", 10: "fp16", 16: "bf16", 1: "fp32"}  # ONNX's element types
        self.network.precision = next(name for kind, name in names.items() if kind in kinds)
        dims = model.graph.input[0].type.tensor_type.shape.dim
        self.network.shape = (-1, *(d.dim_value for d in dims[1:]))
        self.network.get_input = lambda _: SimpleNamespace(shape=self.network.shape)
        # ONNX Runtime's CPU implements every 8-bit node, but not every bfloat16 one.
        eight = self.network.precision in ("fp8", "int8")
        self.network.model = model.SerializeToString() if eight else self._float_model(path)
        return not self.trt.faults.parse

    def _float_model(self, path: str) -> bytes:
        """Return the graph in float32, in which ONNX Runtime's CPU implements every node."""
        import tempfile
        from pathlib import Path

        import onnx

        from dinoreg_export.engine.retype import write_retyped

        with tempfile.TemporaryDirectory() as folder:
            write_retyped(Path(path), Path(folder) / "float.onnx", "fp32")
            return onnx.load(f"{folder}/float.onnx").SerializeToString()


def fake_tensorrt(name: str = "tensorrt", version: str = "10.13.2.6") -> ModuleType:
    """Return a module with `calls` (networks, builds and runs) and `faults` to simulate."""
    trt = ModuleType(name)
    trt.__version__ = version
    trt.calls, trt.loggers, trt.faults = [], [], Faults()
    trt.float32 = "FLOAT"

    class ILogger:
        def __init__(self) -> None:
            self.trt = trt
            trt.loggers.append(self)

    ILogger.Severity = Severity
    trt.ILogger = ILogger
    trt.IProgressMonitor = type("IProgressMonitor", (), {})
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    trt.Builder, trt.OnnxParser = Builder, OnnxParser

    def deserialize(plan: bytes) -> Engine | None:
        if trt.faults.load:
            trt.loggers[-1].log(Severity.ERROR, trt.faults.load)
            return None
        return Engine(trt, plan)

    trt.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=deserialize)
    return trt


def pretend_gpu_server(monkeypatch: Any, engines: Path, *gpu_users: ModuleType) -> Any:
    """Simulate TensorRT, CuPy and an H100 until the test ends, and return both modules.

    Args:
        monkeypatch: fixture of pytest.
        engines: folder of engines.
        gpu_users: modules that identify the GPU.
    """
    trt, cupy = fake_tensorrt(), fake_cupy()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for module in gpu_users:
        monkeypatch.setattr(module, "identify_gpu", lambda index: H100)
    monkeypatch.setenv("DINOREG_ENGINES", str(engines))
    return trt, cupy
