"""ONNX Runtime's wheels report their use unless they are told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="tests its telemetry: ONNX Runtime is not installed")

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


def test_nothing_is_written_to_the_home(tmp_path: Path) -> None:
    """Version 1.32 writes a device ID and a queue of events to send there."""
    pytest.importorskip("onnx", reason="makes the graph: onnx is not installed")
    hidden = {"ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _SESSION], env=environment, check=True)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("given", [None, "0"])
def test_the_users_setting_is_kept(monkeypatch: pytest.MonkeyPatch, given) -> None:
    from dinoreg_rt.engines.onnx_runtime import import_onnxruntime

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if given is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", given)
    assert import_onnxruntime().__name__ == "onnxruntime"
    assert os.environ.get("ORT_DISABLE_TELEMETRY") == given
