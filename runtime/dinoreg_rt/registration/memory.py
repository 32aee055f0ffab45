"""Decisions about memory: refuse what cannot fit, fit the rest to a GPU, and explain both.

`stages` predicts what each stage needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.decided import DecidedConfig
from ..device.choice import Device, StageTimer
from ..device.limits import memory_bytes
from ..device.recording import idle_bytes
from ..errors import ResourceError
from ..summaries import DeviceMemory
from .needs import predict_device
from .reservations import RESERVATIONS, Claim
from .sizes import Sizes

if TYPE_CHECKING:
    from ..encoder.encoding import EncodingPlan


def check_memory(
    sizes: Sizes, host_bytes: int, memory: DeviceMemory | None, device: Device
) -> None:
    """Stop before the work begins if it cannot fit on the host or on the GPU.

    Args:
        sizes: the planned registration.
        host_bytes: the prediction for the host.
        memory: the prediction for the GPU; None on a CPU.
        device: the registration's device.

    Raises:
        ResourceError: more memory would be needed than is free or allowed.
    """
    advice = f"a smaller --working-megavoxels (now {sizes.config.working_megavoxels:g})"
    if sizes.config.search_memory_mb:
        advice += ", --search-memory-mb 0"
    free = memory_bytes()[1]
    if host_bytes > free:
        if sizes.encoding is not None:
            advice += ", --token-memory-gb or --token-grid"
        raise ResourceError(
            f"about {_mib(host_bytes)} of host memory would be needed, and {_mib(free)} are "
            f"free; {advice} or a cropped image needs less"
        )
    if memory is None or memory.peak_bytes <= memory.available_bytes:
        return
    if sizes.encoding is not None:
        advice += ", --token-grid"
    available = _mib(memory.available_bytes)
    room = f"the budget (--gpu-memory) is {available}" if memory.budget else f"{available} are free"
    raise ResourceError(
        f"about {_mib(memory.peak_bytes)} would be needed on {device.name} in the stage "
        f"'{memory.largest_stage}', and {room}; "
        f"{advice} or a cropped image needs less"
    )


def fit_to_device(device: Device, sizes: Sizes, held_bytes: int) -> tuple[Sizes, DeviceMemory]:
    """Reduce a registration until it fits on a GPU: search memory, token storage, then batch size.

    The first two do not change the results; the batch size may change the rounding of the encoder's
    sums.

    Args:
        device: a CUDA device.
        sizes: the registration as it would be fastest.
        held_bytes: bytes of what is on the device already, the images and perhaps the encoder;
            they count as available.

    Returns:
        The registration that fits, or the smallest one if none does, and its prediction.
    """
    available, budget = _available(device, sizes.config, held_bytes)
    lean = sizes.config.changed(search_memory_mb=0)
    for encoding, config in itertools.product(_encodings(sizes.encoding), (sizes.config, lean)):
        fitted = replace(sizes, encoding=encoding, config=config)
        memory = DeviceMemory(predict_device(fitted), available, budget)
        if memory.peak_bytes <= available:
            break
    return fitted, memory


@contextmanager
def reserved_memory(
    sizes: Sizes, memory: DeviceMemory | None, device: Device, waiting: Callable[[], None]
) -> Iterator[None]:
    """Reserve the predicted memory of the GPU during the block; on a CPU nothing is reserved.

    Args:
        sizes: the planned registration.
        memory: the prediction for the GPU; None on a CPU.
        device: the registration's device.
        waiting: called several times a second while other registrations need the memory.
    """
    if memory is None:
        yield
        return
    encoding = sizes.encoding
    claim = Claim(memory.peak_bytes)
    if encoding is not None and sizes.engine:
        engine = (encoding.bundle.folder, encoding.engine, encoding.batch)
        shared = encoding.shared_bytes()
        claim = Claim(memory.peak_bytes - shared, engine, shared)
    with RESERVATIONS.claimed(device, claim, waiting):
        yield


def describe_device_memory(memory: DeviceMemory) -> str:
    """Return one line with the peak, its stage and the memory that is available."""
    limit = "of the budget" if memory.budget else "free"
    return (
        f"about {_mib(memory.peak_bytes)} in the stage '{memory.largest_stage}', "
        f"{_mib(memory.available_bytes)} {limit}"
    )


def describe_storage(encoding: EncodingPlan, memory: DeviceMemory) -> str:
    """Return one line about where tokens are kept and how many slices are encoded at once."""
    where = "on the device" if encoding.tokens_on_device else "on the host"
    return f"tokens {where}, {encoding.batch} slices at once, {_because(memory)}"


def describe_search_memory(memory: DeviceMemory) -> str:
    """Return one line about why the search keeps no costs."""
    return f"0 MiB, {_because(memory)}: costs are computed again in each coupled round"


@contextmanager
def device_memory_errors(
    memory: DeviceMemory | None, device: Device, timer: StageTimer
) -> Iterator[None]:
    """Turn out-of-memory errors of CUDA, CuPy and ONNX Runtime into ours.

    Args:
        memory: the prediction; None while the registration is planned.
        device: the registration's device.
        timer: knows the stage.

    Raises:
        ResourceError: names the stage, the bytes predicted for it and those that are free.
    """
    try:
        yield
    except Exception as error:
        foreign = not isinstance(error, ResourceError) and _is_out_of_memory(error)
        if device.kind == "cpu" or not foreign:
            raise
        if memory is None:
            raise ResourceError(
                f"{device.name} ran out of memory in the stage '{timer.running}', before the "
                f"registration was planned: {_mib(_free_bytes(device))} are free; another program "
                "may be using this GPU; --device cpu needs none of its memory"
            ) from error
        predicted = memory.stages.get(timer.running, memory.peak_bytes)
        raise ResourceError(
            f"{device.name} ran out of memory in the stage '{timer.running}': about "
            f"{_mib(predicted)} were predicted for it, {_mib(memory.available_bytes)} were "
            f"available at the start and {_mib(_free_bytes(device))} are now; another program may "
            "be using this GPU; a --gpu-memory budget or a smaller --working-megavoxels needs less "
            f"({str(error).strip().splitlines()[0]})"
        ) from error


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _because(memory: DeviceMemory) -> str:
    limit = "budget" if memory.budget else "free memory"
    return f"because of the {limit} of {_mib(memory.available_bytes)}"


def _encodings(encoding: EncodingPlan | None) -> Iterator[EncodingPlan | None]:
    """Yield the encodings to try, fastest first."""
    if encoding is None:
        yield None
        return
    for batch in encoding.batches:
        yield replace(encoding, batch=batch, tokens_on_device=True)
        yield replace(encoding, batch=batch, tokens_on_device=False)


def _available(device: Device, config: DecidedConfig, held_bytes: int) -> tuple[int, bool]:
    """Return the bytes that may be used, and whether they are a budget.

    Other registrations that are running count as free: a registration waits for them.
    """
    free = RESERVATIONS.capacity(device, lambda: _free_bytes(device) + held_bytes)
    if config.gpu_memory_gb is None:
        return free, False
    return min(int(config.gpu_memory_gb * 2**30), free), True


def _free_bytes(device: Device) -> int:
    """Return the device's free bytes, including those that pools hold in reserve."""
    cuda = device.xp.cuda.Device(device.index)
    with cuda:
        held = int(device.xp.get_default_memory_pool().free_bytes()) + idle_bytes()
        return int(cuda.mem_info[0]) + held


def _is_out_of_memory(error: Exception) -> bool:
    # By name and text: CuPy may be missing, and ONNX Runtime's errors share no base class.
    # NumPy's MemoryError concerns the host.
    text = str(error).lower()
    words = ("out of memory", "cudaerrormemoryallocation", "failed to allocate memory", "bfcarena")
    return type(error).__name__ == "OutOfMemoryError" or any(word in text for word in words)
