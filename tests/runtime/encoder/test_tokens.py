"""Space for tokens, tokens that are not finite, and a stop in the middle of a run."""

from __future__ import annotations

import errno
import os
import threading
import time
from functools import partial

import pytest
from encoders import config, run, write_bundle

from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder import tokens as tokens_module
from dinoreg_rt.encoder.slice_stack import plan_slices
from dinoreg_rt.encoder.tokens import encode, token_array
from dinoreg_rt.engines.cpu import OrtEncoder
from dinoreg_rt.engines.open import open_encoder
from dinoreg_rt.errors import InputError, ResourceError

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="runs it: ONNX Runtime is not installed")
pytestmark = pytest.mark.usefixtures("own_cache")
SHAPE = (4, 10, 10, 64)


def test_tokens_beyond_half_precision_are_an_error(phantom, tmp_path, monkeypatch, own_cache):
    loud = write_bundle(tmp_path / "loud", [(48, 56)], patch=4)
    encode_one = OrtEncoder.encode
    monkeypatch.setattr(OrtEncoder, "encode", lambda *a: 1e6 * encode_one(*a))
    with pytest.raises(InputError, match="not finite in half precision"):
        run(phantom, config(loud, slice_stride=8))
    assert not own_cache.exists()


def test_too_little_disk_space(tmp_path, monkeypatch) -> None:
    usage = tokens_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(tokens_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"more than --token-memory-gb, and only 0\.0 GiB are"):
        token_array(SHAPE, 0)


def test_disk_space_is_reserved_if_the_file_system_can(monkeypatch) -> None:
    """Without space for it, a page of a sparse file would end the program when it is written."""
    requests = []

    def fail(code: int, file: int, *request: int) -> None:
        requests.append(request)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", partial(fail, errno.EOPNOTSUPP))
    assert token_array(SHAPE, 0).shape == SHAPE
    monkeypatch.setattr(os, "posix_fallocate", partial(fail, errno.ENOSPC))
    with pytest.raises(ResourceError, match=r"more than --token-memory-gb, .* \(No space left on"):
        token_array(SHAPE, 0)
    assert requests == [(0, 2 * 4 * 10 * 10 * 64)] * 2


def test_a_temporary_folder_is_needed_only_beyond_the_budget(monkeypatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tokens_module.tempfile, "gettempdir", none)
    assert token_array(SHAPE, 1 << 20).nbytes == 2 * 4 * 10 * 10 * 64
    with pytest.raises(ResourceError, match=r"no temporary folder .* or another TMPDIR"):
        token_array(SHAPE, 0)


def test_a_stop_ends_a_run_of_the_encoder(phantom, bundle) -> None:
    opened = open_bundle(bundle)
    encoder = open_encoder(opened, opened.manifest.graphs[0], "ort-cpu", 1)
    stack = plan_slices(phantom.fixed, (0.0, 1.0), "axial", (192, 224), 4, 1)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    threads = threading.active_count()
    began = time.monotonic()
    out = token_array((len(stack.encoded), 48, 56, opened.manifest.channels), 1 << 30)
    norm = opened.manifest.normalisation
    with pytest.raises(KeyboardInterrupt):
        encode(stack, encoder, norm, out, batch=1, device=Device("cpu", threads=1), progress=stop)
    assert threading.active_count() == threads
    assert time.monotonic() - began < 5
