"""Arrays of other libraries as inputs and outputs, and the caller's stream.

On the CPU NumPy exports them. For CUDA, stand-ins look like device arrays and refuse to be used as
host arrays.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import SimpleITK as sitk

import dinoreg_rt
from dinoreg_rt import Placement
from dinoreg_rt.device.choice import Device, EventTimer, StageTimer, stage_timer
from dinoreg_rt.device.streams import caller_stream, stream_handle
from dinoreg_rt.errors import ConfigError, DeviceError, InputError
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.io import as_labels, as_mask, as_volume
from dinoreg_rt.io.arrays import as_array, as_numpy, check_device, device_of
from dinoreg_rt.io.hashes import content_hash
from dinoreg_rt.types import DisplacementField, Volume

GRID = phantom_grid((12, 14, 16), 4.0)
CONFIG = dinoreg_rt.RegistrationConfig(device="cpu", threads=1, iterations=(1,), inverse=True)


@pytest.fixture(scope="module")
def pair():
    return phantom_pair(GRID)


class Exporter:
    """An array of another library, with the DLPack protocol alone."""

    def __init__(self, array: np.ndarray, kind: int = 1) -> None:
        self._array, self._kind = array, kind

    def __dlpack__(self, **more: object) -> object:
        return self._array.__dlpack__(**more)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self._kind, 0)


class Place:
    """A CUDA device; `current` is the stack of devices that were entered."""

    current: ClassVar[list[int]] = [0]

    def __init__(self, index: int) -> None:
        self.id = index

    def __enter__(self) -> None:
        self.current.append(self.id)

    def __exit__(self, *_: object) -> None:
        self.current.pop()


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A stand-in for a CuPy array.

    NumPy's functions work while its device is the current one, copies must be requested, and
    NumPy's `asarray` is refused.
    """

    def __init__(self, host: np.ndarray, index: int = 0) -> None:
        self._memory, self.device = host, Place(index)

    @property
    def _host(self) -> np.ndarray:
        assert Place.current[-1] == self.device.id, "peer access is unavailable"
        return self._memory

    dtype = property(lambda self: self._memory.dtype)
    shape = property(lambda self: self._memory.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"data": (self._memory.ctypes.data, False), "shape": self.shape, "version": 3}

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device.id)

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        hosts = [i._host if isinstance(i, DeviceArray) else i for i in inputs]
        return DeviceArray(getattr(ufunc, method)(*hosts, **kwargs), self.device.id)

    def __array_function__(self, function, types, args, kwargs):
        hosts = [a._host if isinstance(a, DeviceArray) else a for a in args]
        return function(*hosts, **kwargs)

    def __iter__(self):
        return (DeviceArray(part, self.device.id) for part in self._host)

    def __getitem__(self, item) -> DeviceArray:
        return DeviceArray(self._host[item], self.device.id)

    def __float__(self) -> float:
        return float(self._host)

    def min(self) -> DeviceArray:
        return DeviceArray(self._host.min(), self.device.id)

    def max(self) -> DeviceArray:
        return DeviceArray(self._host.max(), self.device.id)

    def astype(self, dtype, copy: bool = True) -> DeviceArray:
        same = self._host.dtype == dtype and not copy
        return self if same else DeviceArray(self._host.astype(dtype), self.device.id)

    def get(self, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return self._host.copy()
        out[...] = self._host
        return out


class NumbaArray:
    """An array with ``__cuda_array_interface__`` alone, which names no stream, requires CuPy."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__


class Tensor(NumbaArray):
    """PyTorch offers both protocols, of which DLPack synchronises the streams."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.array.device.id)


@pytest.fixture
def cupy(monkeypatch) -> ModuleType:
    module = ModuleType("cupy")
    module.log = log = []

    class Stream:
        def __init__(self, handle: int) -> None:
            self.handle = handle

        @classmethod
        def from_external(cls, other) -> Stream:
            assert other.__cuda_stream__()[0] == 0
            return cls(other.__cuda_stream__()[1])

        def __enter__(self) -> None:
            log.append(("stream", self.handle))

        def __exit__(self, *_: object) -> None:
            log.append(("stream left", self.handle))

    class CudaDevice:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            log.append(("device", self.index))

        def __exit__(self, *_: object) -> None:
            log.append(("device left", self.index))

    class Event:
        clock = iter(range(0, 1000, 5))

        def record(self) -> None:
            self.at = next(self.clock)

        def synchronize(self) -> None:
            log.append(("waited", self.at))

    module.cuda = SimpleNamespace(
        Stream=Stream,
        Device=CudaDevice,
        Event=Event,
        get_elapsed_time=lambda began, ended: ended.at - began.at,
    )
    module.ndarray = DeviceArray

    def asarray(values):
        assert not hasattr(values, "__dlpack_device__"), "the streams are not in order"
        return values.array

    def from_dlpack(values):
        assert not isinstance(values, DeviceArray), "used as it is"
        return getattr(values, "array", None) or DeviceArray(values._array)

    module.asarray, module.from_dlpack = asarray, from_dlpack
    module.asnumpy = lambda a: a.get()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_dlpack_on_the_host_is_not_copied(pair) -> None:
    voxels = np.array(pair[0].array)
    volume = as_volume((Exporter(voxels), GRID))
    assert np.shares_memory(volume.array, voxels)
    given = as_volume((voxels, GRID))
    assert np.shares_memory(given.array, voxels)


def test_registration_of_dlpack_arrays(pair) -> None:
    expected = dinoreg_rt.register(*pair, config=CONFIG)
    mask = np.ones(GRID.shape_zyx, np.uint8)
    images = [(Exporter(v.array), GRID) for v in pair]
    result = dinoreg_rt.register(*images, config=CONFIG, fixed_mask=(Exporter(mask), GRID))
    np.testing.assert_array_equal(result.displacement.vectors_mm, expected.displacement.vectors_mm)
    shared = np.from_dlpack(result.displacement.vectors_mm)
    assert np.shares_memory(shared, result.displacement.vectors_mm)


def test_other_types_and_layouts_are_converted(pair) -> None:
    voxels = pair[0].array
    for other in (voxels.astype(np.float64), voxels.astype(np.int16), np.asfortranarray(voxels)):
        volume = as_volume((Exporter(other), GRID))
        assert volume.array.dtype == np.float32
        np.testing.assert_array_equal(volume.array, other.astype(np.float32))
    result = dinoreg_rt.register((np.asfortranarray(voxels), GRID), pair[1], config=CONFIG)
    expected = dinoreg_rt.register(*pair, config=CONFIG)
    np.testing.assert_array_equal(result.displacement.vectors_mm, expected.displacement.vectors_mm)


def test_array_that_refuses_to_be_shared() -> None:
    class Grad(Exporter):
        def __dlpack__(self, **more: object) -> object:
            raise BufferError("requires grad")

    with pytest.raises(InputError, match=r"Grad cannot be shared: requires grad; .*detach\(\)"):
        as_volume((Grad(np.zeros(2)), GRID))


def test_memory_of_an_unknown_device() -> None:
    with pytest.raises(InputError, match="Exporter lies on a device of DLPack type 10; copy"):
        as_array(Exporter(np.zeros(2), kind=10))


def test_cuda_array_without_cupy(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    for array in (DeviceArray(np.zeros(2)), Exporter(np.zeros(2), kind=2)):
        with pytest.raises(DeviceError, match=r"lies on a CUDA device, which requires CuPy \(pip"):
            as_array(array)


def test_cuda_arrays_stay_where_they_are(cupy, pair) -> None:
    on_device = DeviceArray(np.array(pair[0].array), index=2)
    for given in (on_device, Tensor(on_device), NumbaArray(on_device)):
        volume = as_volume((given, GRID))
        assert volume.array is on_device
    assert device_of(on_device) == "cuda:2"
    assert as_volume((Exporter(pair[0].array, kind=2), GRID)).array.device.id == 0
    assert content_hash(volume) == content_hash(pair[0])
    np.testing.assert_array_equal(as_numpy(on_device), pair[0].array)
    converted = as_volume((DeviceArray(pair[0].array.astype(np.float64)), GRID)).array
    assert isinstance(converted, DeviceArray)
    assert converted.dtype == np.float32


def test_faults_of_cuda_arrays_are_found(cupy) -> None:
    voxels = np.ones(GRID.shape_zyx, np.float32)
    with pytest.raises(InputError, match="every voxel is 1: there is nothing to align"):
        as_volume((DeviceArray(voxels), GRID))
    voxels[0, 0, :3] = np.nan
    with pytest.raises(InputError, match=r"holds 3 NaN or Inf value\(s\)"):
        as_volume((DeviceArray(voxels), GRID))
    with pytest.raises(InputError, match="has complex pixels"):
        as_volume((DeviceArray(voxels.astype(np.complex64)), GRID))
    with pytest.raises(InputError, match="its geometry says"):
        as_volume((DeviceArray(voxels[1:]), GRID))


def test_masks_on_a_device_come_to_the_host(cupy) -> None:
    mask = np.zeros(GRID.shape_zyx, np.uint8)
    mask[3:, 4:] = 1
    assert isinstance(as_labels((DeviceArray(mask), GRID)).array, np.ndarray)
    np.testing.assert_array_equal(as_mask((DeviceArray(mask), GRID), GRID, "fixed"), mask)


def test_image_on_another_device_than_the_work(cupy, pair) -> None:
    with pytest.raises(DeviceError, match=r"the moving image lies on cuda:1 and .* runs on cpu"):
        dinoreg_rt.register(
            pair[0], (DeviceArray(np.array(pair[1].array), index=1), GRID), config=CONFIG
        )
    check_device(DeviceArray(np.zeros(2), index=1), "cuda:1", "x")
    check_device(np.zeros(2), "cuda:1", "x")
    with pytest.raises(DeviceError, match="use --device cuda:1"):
        check_device(DeviceArray(np.zeros(2), index=1), "cuda:0", "x")


def buffers() -> dict[str, np.ndarray]:
    vectors = (*GRID.shape_zyx, 3)
    return {
        "displacement": np.full(vectors, np.nan, np.float32),
        "warped": np.full(GRID.shape_zyx, np.nan, np.float32),
        "inverse": np.full(vectors, np.nan, np.float32),
    }


def test_results_in_buffers_of_the_caller(pair) -> None:
    expected = dinoreg_rt.register(*pair, config=CONFIG)
    into = buffers()
    result = dinoreg_rt.register(*pair, config=CONFIG, placement=Placement(**into))
    assert result.displacement.vectors_mm is into["displacement"]
    assert result.warped.array is into["warped"]
    assert result.inverse.vectors_mm is into["inverse"]
    np.testing.assert_array_equal(into["displacement"], expected.displacement.vectors_mm)
    np.testing.assert_array_equal(into["warped"], expected.warped.array)
    np.testing.assert_array_equal(into["inverse"], expected.inverse.vectors_mm)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("displacement", lambda b: b[..., :2], r"float32 of shape \(12, 14, 16, 2\); wanted a wri"),
        ("warped", lambda b: b.astype(np.float64), "'warped' is float64 of shape"),
        ("inverse", lambda b: np.asfortranarray(b), "read-only or not contiguous"),
        ("warped", lambda b: b.tolist(), "'warped' is a list; wanted a writable"),
    ],
)
def test_buffers_that_do_not_fit(pair, name, change, message) -> None:
    into = buffers()
    into[name] = change(into[name])
    stages = []
    with pytest.raises(InputError, match=message):
        dinoreg_rt.register(
            *pair,
            config=CONFIG,
            placement=Placement(**into),
            progress=lambda stage, _: stages.append(stage),
        )
    assert stages == []


def test_buffers_that_contradict_the_rest(pair) -> None:
    into = buffers()
    with pytest.raises(ConfigError, match="results stay on the device; leave out the buffer"):
        dinoreg_rt.register(*pair, config=CONFIG, placement=Placement(on_device=True, **into))
    plain = CONFIG.model_copy(update={"inverse": False})
    with pytest.raises(ConfigError, match="set inverse=True"):
        dinoreg_rt.register(*pair, config=plain, placement=Placement(inverse=into["inverse"]))


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (0x7F00, 0x7F00),
        (SimpleNamespace(cuda_stream=5), 5),
        (SimpleNamespace(ptr=6), 6),
        (SimpleNamespace(handle=7), 7),
        (SimpleNamespace(handle=ctypes.c_void_p(8)), 8),
        (SimpleNamespace(handle=ctypes.c_void_p(None)), 0),
        (SimpleNamespace(__cuda_stream__=lambda: (0, 9)), 9),
    ],
)
def test_handle_of_a_stream(cupy, stream, handle) -> None:
    assert stream_handle(stream) == handle
    with caller_stream(stream, Device("cuda", 1)):
        assert cupy.log == [("device", 1), ("stream", handle)]
    assert cupy.log[2:] == [("stream left", handle), ("device left", 1)]


@pytest.mark.parametrize("stream", ["fast", True, -1, 1.5, SimpleNamespace()])
def test_invalid_streams(stream) -> None:
    with pytest.raises(InputError, match=r"cannot use a \w+ as a CUDA stream; give its handle"):
        stream_handle(stream)


def test_stream_for_work_on_the_cpu(pair) -> None:
    with (
        dinoreg_rt.Registrar(CONFIG) as registrar,
        pytest.raises(DeviceError, match="was given but the registration runs on the CPU"),
    ):
        registrar.register(*pair, stream=17)


def test_stages_of_a_gpu_are_timed_by_its_events(cupy) -> None:
    timer = stage_timer(Device("cuda"))
    assert isinstance(timer, EventTimer)
    with timer.stage("a"):
        pass
    with timer.stage("b"):
        pass
    with timer.stage("a"):
        pass
    assert cupy.log == []  # nothing has waited yet
    assert timer.finish() == {"a": 10.0, "b": 5.0}
    assert len(cupy.log) == 3
    assert type(stage_timer(Device("cpu"))) is StageTimer


def test_results_on_a_device_become_sitk_images(cupy, pair) -> None:
    result = dinoreg_rt.register(*pair, config=CONFIG)
    there = replace(
        result,
        displacement=DisplacementField(DeviceArray(result.displacement.vectors_mm), GRID),
        warped=Volume(DeviceArray(result.warped.array), GRID),
    )
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(there.displacement_sitk()), result.displacement.vectors_mm
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(there.warped_sitk()), result.warped.array)
    point = (3.0, -5.0, 2.0)
    assert there.transform_sitk().TransformPoint(point) == pytest.approx(
        result.transform_sitk().TransformPoint(point)
    )
