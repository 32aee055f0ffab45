"""`report.json`: its content, schema and warnings; and the reporting of progress."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from qualities import GOOD

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.console.progress import reporting
from dinoreg_rt.quality.trust import judge, quality_warnings
from dinoreg_rt.registration.result import RegistrationResult
from dinoreg_rt.run.report import RunReport, build_report, hash_input, hash_output
from dinoreg_rt.summaries import RegionQuality, RunQuality
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, Volume


def make_result(quality: RunQuality = GOOD) -> RegistrationResult:
    grid = Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    return RegistrationResult(
        displacement=DisplacementField(np.zeros((2, 2, 2, 3), np.float32), grid),
        initial=AffineTransform.identity(),
        warped=Volume(np.zeros((2, 2, 2), np.float32), grid),
        inverse=None,
        quality=quality,
        config=RegistrationConfig(),
        choices={"device": "cpu, because"},
    )


def make_report(quality: RunQuality = GOOD) -> RunReport:
    return build_report(
        make_result(quality),
        command=["dinoreg-rt", "run"],
        started_at=datetime.now(timezone.utc),  # noqa: UP017
        inputs={},
        outputs={},
        timings_ms={"read": 1.23456, "solve": 2.0},
    )


def test_report_and_result_say_the_same() -> None:
    quality = replace(GOOD, folded_percent=1.0, overlap_percent=20.0)
    result, report = make_result(quality), make_report(quality)
    assert (result.trust.verdict, list(result.trust.reasons)) == ("untrusted", report.trust.reasons)
    assert [*map(type, result.warnings)] == [str]
    assert result.warnings == report.warnings


def test_a_close_call_of_the_start_is_a_warning() -> None:
    assert make_result().warnings == []
    (warning,) = replace(make_result(), alignment={"confidence": 0.0}).warnings
    assert "close call, with a confidence of 0.00" in warning
    assert replace(make_result(), alignment={"confidence": 0.04}).warnings == []


def test_survives_a_round_trip() -> None:
    report = make_report()
    assert RunReport.model_validate_json(report.to_json()) == report


def test_configuration_is_complete_and_loads_again() -> None:
    configuration = json.loads(make_report().to_json())["configuration"]
    assert RegistrationConfig(**configuration) == RegistrationConfig()


def test_numbers_that_do_not_exist_are_null() -> None:
    text = make_report(replace(GOOD, sdlogj=math.nan, jacobian_max=math.inf)).to_json()
    quality = json.loads(text, parse_constant=lambda name: pytest.fail(name))["quality"]
    assert quality["sdlogj"] is None
    assert quality["jacobian_max"] is None


def test_a_region_without_a_match_has_no_information() -> None:
    regions = (
        RegionQuality("upper left, back", 8.0, 30.0, math.nan),
        RegionQuality("b", 92.0, 99.0, 0.2),
    )
    result = replace(make_result(), regions=regions)
    started = datetime.now(timezone.utc)  # noqa: UP017
    report = build_report(
        result, command=[], started_at=started, inputs={}, outputs={}, timings_ms={}
    )
    first, second = json.loads(report.to_json())["regions"]
    assert first["place"] == "upper left, back"
    assert first["information"] is None
    assert second["information"] == 0.2
    (warning,) = report.warnings
    assert "b (92 % of it, 0.20)" in warning


def test_schema_describes_every_field() -> None:
    schema = RunReport.model_json_schema()
    assert schema["properties"]["schema_version"]["const"] == 2
    assert set(make_report().model_dump()) == set(schema["properties"])


def test_what_is_open_about_the_images_is_a_warning() -> None:
    result = replace(make_result(), plan_warnings=("the fixed image may be a CT",))
    assert result.warnings == ["the fixed image may be a CT"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folded_percent": 1.5}, "1.5 % of the voxels are folded (limit 0.1 %); raise --smooth"),
        ({"overlap_percent": 40.0}, "only 40 %"),
        (
            {"inverse_missed_percent": 1.3},
            "the inverse misses 1.3 % of the moving image's points by more than 0.1 mm",
        ),
    ],
)
def test_warnings(change: dict[str, float], message: str) -> None:
    assert quality_warnings(GOOD) == []
    quality = replace(GOOD, **change)
    assert [message in text for text in quality_warnings(quality)] == [True]
    assert judge(quality).reasons == ()


@pytest.mark.parametrize(
    "change",
    [
        {"feature_distance_after": 0.3},
        {"feature_distance_after": math.nan},
        {"folded_percent": 3.0},
        {"overlap_percent": 20.0},
    ],
)
def test_what_refuses_does_not_warn_as_well(change: dict[str, float]) -> None:
    report = make_report(replace(GOOD, **change))
    assert len(report.trust.reasons) == 1
    assert report.warnings == []


def test_hashes(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert hash_input(file).sha256 == expected
    assert hash_output(file).model_dump() == {"sha256": expected, "bytes": 3}


def test_hash_of_a_series_depends_on_every_file(tmp_path: Path) -> None:
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(name.encode())
    before = hash_input(tmp_path).sha256
    (tmp_path / "2.dcm").write_bytes(b"changed")
    assert hash_input(tmp_path).sha256 != before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_in_a_pipe() -> None:
    stream = io.StringIO()
    with reporting(quiet=False, stream=stream) as reporter:
        reporter.say("device", "cpu")
        for fraction in (0.0, 0.5, 1.0):
            reporter("read", fraction)
        reporter("solve", 0.1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "device: cpu"
    assert [line.split(" in ")[0] for line in lines[1:]] == ["read: done", "solve: done"]
    assert "\x1b" not in stream.getvalue()


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with reporting(quiet=False, stream=stream) as reporter:
        reporter("read", 0.5)
        reporter("solve", 0.5)
        reporter.say("device", "cpu")
    text = stream.getvalue()
    assert "read" in text
    assert "solve" in text
    assert "100%" in text


def test_quiet_says_nothing() -> None:
    stream = Terminal()
    with reporting(quiet=True, stream=stream) as reporter:
        reporter("read", 1.0)
        reporter.say("device", "cpu")
    assert stream.getvalue() == ""


def test_nothing_is_said_where_stderr_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with reporting(quiet=False) as reporter:
        reporter("read", 0.5)
        reporter.say("device", "cpu")


def test_log_that_is_full_does_not_end_the_work() -> None:
    with suppress(OSError), Path("/dev/full").open("w", buffering=1) as stream:
        with reporting(quiet=False, stream=stream) as reporter:
            reporter.say("device", "cpu")
        went_on = True
    assert went_on
