"""ONNX Runtime's wheels report on their use unless they are told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="it is what reports: ONNX Runtime is not installed")

_SESSION = """
import sys
import onnx
from onnx import TensorProto, helper
from dinoreg_rt.engines.onnx_runtime import import_onnxruntime

ort = import_onnxruntime()
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


def test_nothing_is_left_in_the_home(tmp_path: Path) -> None:
    """1.32 writes a device number and a queue of events there, which it sends."""
    pytest.importorskip("onnx", reason="makes the graph: onnx is not installed")
    hidden = {"ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _SESSION], env=environment, check=True)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_the_switch_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    from dinoreg_rt.engines.onnx_runtime import import_onnxruntime

    for given in (None, "0"):
        if given is None:
            monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        else:
            monkeypatch.setenv("ORT_DISABLE_TELEMETRY", given)
        assert import_onnxruntime().__name__ == "onnxruntime"
        assert os.environ.get("ORT_DISABLE_TELEMETRY") == given
