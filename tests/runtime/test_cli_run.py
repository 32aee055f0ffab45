"""`dinoreg-rt run` with a fake registration: its files, its report, and all or nothing."""

from __future__ import annotations

import html
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from dicom_series import UID, write_raw, write_series

from dinoreg_rt import io
from dinoreg_rt.commands.main import cli
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.errors import RegistrationError, ResourceError
from dinoreg_rt.page.numbers import lookup
from dinoreg_rt.registration.result import RegistrationResult
from dinoreg_rt.run.outputs import earlier_files, least_bytes
from dinoreg_rt.run.report import RunReport, hash_input, hash_output
from dinoreg_rt.summaries import RunQuality
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, Volume

STANDARD = {"warped.nii.gz", "transform.h5", "report.json", "report.html", "qc.png"}
#: The control grid of the fake registration: every second voxel of `pair`.
CONTROL = Geometry((4, 5, 6), (4.0, 4.0, 6.0), (1.0, 1.0, 1.5), np.eye(3))
QUALITY = RunQuality(0.2, 0.1, 0.0, 0.5, 1.5, 0.05, 0.1, 0.9, 98.0)


class FakeRegistration:
    """A stand-in for `dinoreg_rt.plan` and `dinoreg_rt.register`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.quality = QUALITY
        self.config: RegistrationConfig | None = None
        self.masks: tuple[Any, Any] = (None, None)

    def plan(self, *_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(
            choices={
                "device": "cpu, because no CUDA device can be used",
                "working grid": "12 x 10 x 8 voxels",
                "features": "MIND-SSC, because no encoder was given",
            },
            warnings=("the moving image may be a CT",),
            memory_bytes=300 << 20,
            pair=(),
            grids=SimpleNamespace(control=CONTROL),
            device_memory=None,
            encoding=None,
            describe=lambda: "working grid   12 x 10 x 8 voxels\nmemory         about 300 MiB",
        )

    def register(
        self,
        fixed: Volume,
        moving: Volume,
        *,
        config: RegistrationConfig,
        fixed_mask: Any = None,
        moving_mask: Any = None,
        keep_features: bool = False,
        weights: Any = None,
        progress: Any = None,
        on_plan: Any = None,
    ) -> RegistrationResult:
        on_plan(self.plan())
        self.config, self.masks = config, (fixed_mask, moving_mask)
        progress("solve", 0.5)
        if self.error is not None:
            raise self.error
        field = DisplacementField(np.zeros((*fixed.array.shape, 3), np.float32), fixed.geometry)
        return RegistrationResult(
            displacement=field,
            initial=AffineTransform.identity(),
            deformable=DisplacementField(np.zeros((4, 5, 6, 3), np.float32), CONTROL),
            warped=fixed,
            inverse=field if config.inverse else None,
            confidence=fixed if config.confidence else None,
            quality=self.quality,
            config=config,
            choices={"device": "cpu"},
            timings_ms={"solve": 0.0},
            versions={"dinoreg-rt": "0"},
            hashes={"fixed": "f", "moving": "m"},
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRegistration:
    fake = FakeRegistration()
    monkeypatch.setattr("dinoreg_rt.registration.planning.plan", fake.plan)
    monkeypatch.setattr("dinoreg_rt.registration.register.register", fake.register)
    return fake


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Arguments for two small images and an output folder that does not exist yet."""
    rng = np.random.default_rng(0)
    for name in ("fixed", "moving"):
        image = sitk.GetImageFromArray(rng.random((8, 10, 12), dtype=np.float32) * 100)
        image.SetSpacing((2.0, 2.0, 3.0))
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    labels = np.zeros((8, 10, 12), np.uint8)
    labels[2:5, 2:5, 2:5] = 3
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((2.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "organs.nii.gz"))
    return [
        "run",
        *("-f", str(tmp_path / "fixed.nii.gz")),
        *("-m", str(tmp_path / "moving.nii.gz")),
        *("-o", str(tmp_path / "out")),
    ]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def put(arguments: list[str], option: str, value: str) -> list[str]:
    """Return the arguments with another value of an option, or with the option."""
    if option not in arguments:
        return [*arguments, option, value]
    at = arguments.index(option) + 1
    return [*arguments[:at], value, *arguments[at + 1 :]]


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


@pytest.mark.usefixtures("fake")
def test_writes_everything(pair: list[str], tmp_path: Path) -> None:
    organs = str(tmp_path / "organs.nii.gz")
    other = str(tmp_path / "moving.nii.gz")
    result = invoke(*pair, "--inverse", "--labels", organs, "--image", other)
    assert result.exit_code == 0, result.output
    extras = {"inverse.nii.gz", "labels_organs.nii.gz", "image_moving.nii.gz"}
    assert names(tmp_path / "out") == STANDARD | extras
    report = RunReport.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert set(report.outputs) == (STANDARD | extras) - {"report.json"}
    assert set(report.inputs) == {"fixed", "moving", "labels_organs.nii.gz", "image_moving.nii.gz"}
    assert list(report.timings_ms) == ["read", "solve", "write", "other"]
    assert sum(report.timings_ms.values()) == pytest.approx(report.total_ms, abs=0.01)
    assert report.quality.feature_distance_after == QUALITY.feature_distance_after
    assert report.peak_memory_mb > 10
    assert report.warnings == []


@pytest.mark.usefixtures("fake")
def test_json_is_the_report(pair: list[str], tmp_path: Path) -> None:
    result = invoke(*pair, "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "report.json").read_text())


@pytest.mark.usefixtures("fake")
def test_says_choices_on_stderr_without_control_characters(pair: list[str]) -> None:
    result = invoke(*pair)
    assert result.stdout == ""
    assert "device: cpu, because no CUDA device can be used\n" in result.stderr
    assert "features: MIND-SSC, because no encoder was given\n" in result.stderr
    assert "solve: done in" in result.stderr
    assert not set(result.stderr) & {"\x1b", "\r"}


@pytest.mark.usefixtures("fake")
def test_quiet(pair: list[str]) -> None:
    result = invoke(*pair, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "verdict: trusted\n")


@pytest.mark.usefixtures("untrusted")
def test_quiet_still_says_why_a_result_is_not_to_be_trusted(pair: list[str]) -> None:
    verdict, reason = invoke(*pair, "--quiet").stderr.splitlines()
    assert verdict == "verdict: untrusted"
    assert reason.startswith("not to be trusted: a mirror image of the moving image matches")


@pytest.mark.usefixtures("fake")
def test_a_verdict_without_the_test_says_so(pair: list[str]) -> None:
    assert "verdict: trusted, but the images were not tested" in invoke(*pair, "--no-trust").stderr


@pytest.mark.usefixtures("fake")
def test_no_picture(pair: list[str], tmp_path: Path) -> None:
    assert invoke(*pair, "--no-qc").exit_code == 0
    assert names(tmp_path / "out") == STANDARD - {"qc.png"}


@pytest.mark.usefixtures("fake")
def test_page_and_report_say_the_same(pair: list[str], tmp_path: Path) -> None:
    assert invoke(*pair).exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    shown = re.findall(r'<data value="([^"]*)" data-path="([^"]*)"', page)
    assert len(shown) > 50
    for value, path in shown:
        assert json.loads(html.unescape(value)) == lookup(report, html.unescape(path)), path
    record = report["outputs"]["report.html"]
    assert record == hash_output(tmp_path / "out" / "report.html").model_dump()
    assert record["bytes"] <= 1_500_000


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("kind", "most"), [("full", 5_000_000), ("none", 0)])
def test_kinds_of_page(pair: list[str], tmp_path: Path, kind: str, most: int) -> None:
    assert invoke(*pair, "--report", kind).exit_code == 0
    file = tmp_path / "out" / "report.html"
    assert file.exists() == (kind != "none")
    if kind == "full":
        assert 1_000_000 < file.stat().st_size <= most


@pytest.mark.usefixtures("fake")
def test_page_of_an_earlier_run_is_removed(pair: list[str], tmp_path: Path) -> None:
    assert invoke(*pair).exit_code == 0
    assert invoke(*pair, "--report", "none", "--no-qc").exit_code == 0
    assert names(tmp_path / "out") == STANDARD - {"qc.png", "report.html"}


@pytest.mark.usefixtures("fake")
def test_dry_run_writes_nothing(pair: list[str], tmp_path: Path) -> None:
    before = names(tmp_path)
    result = invoke(*pair, "--dry-run")
    assert result.exit_code == 0
    assert "working grid   12 x 10 x 8" in result.stdout
    assert "features: MIND-SSC" in result.stderr
    assert "warning: the moving image may be a CT" in result.stderr
    for once in ("12 x 10 x 8", "300 MiB"):
        assert result.output.count(once) == 1
    assert "warped.nii.gz" in result.stdout
    assert names(tmp_path) == before


@pytest.mark.usefixtures("fake")
def test_dry_run_as_json(pair: list[str]) -> None:
    summary = json.loads(invoke(*pair, "--dry-run", "--json", "--inverse").stdout)
    assert summary["memory_mb"] == 300
    assert summary["warnings"] == ["the moving image may be a CT"]
    assert set(summary["files"]) == STANDARD | {"inverse.nii.gz"}
    assert summary["configuration"]["inverse"] is True


def test_options_reach_the_configuration(fake: FakeRegistration, pair: list[str]) -> None:
    result = invoke(
        *pair,
        *("--iterations", "7,3", "--ct-window-hu", "-10", "20", "--coupling", "0.1,0.5"),
        *("--initial", "moments", "--threads", "2", "--moving-modality", "ct"),
    )
    assert result.exit_code == 0, result.output
    assert fake.config is not None
    assert fake.config.iterations == (7, 3)
    assert fake.config.ct_window_hu == (-10, 20)
    assert fake.config.coupling == (0.1, 0.5)
    assert (fake.config.initial, fake.config.threads) == ("moments", 2)
    assert fake.config.smoothness == RegistrationConfig().smoothness


def test_option_overrides_file(fake: FakeRegistration, pair: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("inverse = true\niterations = [5]\n")
    result = invoke(*pair, "--config", str(tmp_path / "p.toml"), "--no-inverse")
    assert result.exit_code == 0, result.output
    assert fake.config is not None
    assert (fake.config.inverse, fake.config.iterations) == (False, (5,))


def test_masks_are_read(fake: FakeRegistration, pair: list[str], tmp_path: Path) -> None:
    mask = str(tmp_path / "organs.nii.gz")
    assert invoke(*pair, "--fixed-mask", mask).exit_code == 0
    assert fake.masks[0].array.max() == 3
    assert fake.masks[1] is None


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--iterations", "9,-3"],
            4,
            "--iterations 9,-3: wanted 1 to 6 values, each a whole",
        ),
        (["--smoothness", "-1"], 4, "Error: --smoothness -1: wanted a number from 0 up to 10000\n"),
        (["--gpu-memory", "0"], 4, "--gpu-memory 0: wanted a number above 0 up to 10000"),
        (["--ct-window-hu", "200", "100"], 4, "--ct-window-hu 200,100: the first must be"),
        (["--trust-cost", "1", "--feature-similarity", "lncc"], 4, "--trust-cost 1: wanted 0 with"),
        (["--preset", "none"], 4, "no preset 'none'"),
        (["--device", "gpu"], 4, "--device gpu: wanted auto, cpu or cuda:N"),
        (["--coupling", "a,b"], 2, "list of numbers"),
        (["--fixed-mask", "missing.nii.gz"], 3, "missing.nii.gz"),
    ],
)
def test_wrong_arguments(
    pair: list[str], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = invoke(*pair, *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fake")
def test_extras_of_one_name(pair: list[str], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "organs.nii.gz").write_bytes((tmp_path / "organs.nii.gz").read_bytes())
    both = ["--labels", str(tmp_path / "organs.nii.gz")]
    both += ["--labels", str(tmp_path / "b" / "organs.nii.gz")]
    result = invoke(*pair, *both)
    assert result.exit_code == 3
    assert "would both be written as labels_organs.nii.gz" in result.stderr


@pytest.mark.parametrize("error", [RegistrationError("no overlap"), ResourceError("too big")])
def test_failure_leaves_nothing(
    fake: FakeRegistration, pair: list[str], tmp_path: Path, error: Exception
) -> None:
    fake.error = error
    before = names(tmp_path)
    result = invoke(*pair)
    assert result.exit_code == error.exit_code
    assert names(tmp_path) == before


@pytest.mark.usefixtures("fake")
def test_failure_while_writing_keeps_the_earlier_run(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(*pair).exit_code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device", "qc.png")

    monkeypatch.setattr("dinoreg_rt.page.picture.draw_picture", full_disk)
    result = invoke(*pair)
    assert result.exit_code == 7
    assert "space" in result.stderr.lower()
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.usefixtures("fake")
def test_again_into_the_same_folder(pair: list[str], tmp_path: Path) -> None:
    assert invoke(*pair).exit_code == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    first = json.loads((tmp_path / "out" / "report.json").read_text())
    assert invoke(*pair).exit_code == 0
    second = json.loads((tmp_path / "out" / "report.json").read_text())
    assert names(tmp_path / "out") == STANDARD | {"notes.txt"}
    assert first["started_at"] != second["started_at"]
    same = ("warped.nii.gz", "transform.h5", "qc.png")
    assert all(first["outputs"][n] == second["outputs"][n] for n in same)


# ---- trust ----------------------------------------------------------------------------------


@pytest.fixture
def untrusted(fake: FakeRegistration) -> FakeRegistration:
    """A run whose moving image matches its mirror image as well as the fixed image."""
    fake.quality = replace(QUALITY, decoy_ratio=1.04, unrelated_ratio=0.4)
    return fake


@pytest.mark.usefixtures("untrusted")
def test_untrusted_results_are_written_and_have_their_exit_code(
    pair: list[str], tmp_path: Path
) -> None:
    result = invoke(*pair)
    assert result.exit_code == 9
    assert "not to be trusted: a mirror image of the moving image matches" in result.stderr
    assert names(tmp_path / "out") == STANDARD
    report = RunReport.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert (report.exit_code, report.trust.verdict, len(report.trust.reasons)) == (
        9,
        "untrusted",
        1,
    )
    assert report.quality.decoy_ratio == 1.04


@pytest.mark.usefixtures("untrusted")
def test_untrusted_results_can_be_accepted(pair: list[str]) -> None:
    result = invoke(*pair, "--accept-untrusted", "--json", "--quiet")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["exit_code"], document["trust"]["verdict"]) == (0, "untrusted")


@pytest.mark.usefixtures("untrusted")
def test_json_of_an_untrusted_run_is_one_document(pair: list[str]) -> None:
    result = invoke(*pair, "--json", "--quiet")
    assert result.exit_code == 9
    assert json.loads(result.stdout)["exit_code"] == 9


@pytest.mark.usefixtures("fake")
def test_trusted_results_say_so(pair: list[str]) -> None:
    document = json.loads(invoke(*pair, "--json", "--quiet").stdout)
    assert document["trust"] == {"verdict": "trusted", "reasons": []}
    assert document["quality"]["decoy_ratio"] is None  # this registration measured none


@pytest.mark.usefixtures("fake")
def test_what_is_saved_on_request(pair: list[str], tmp_path: Path) -> None:
    every = "displacement,inverse,confidence"
    assert "inverse.nii.gz" in invoke(*pair, "--save", every, "--dry-run").output
    assert invoke(*pair, "--save", every, "--no-qc").exit_code == 0
    more = {f"{name}.nii.gz" for name in every.split(",")}
    assert names(tmp_path / "out") == STANDARD - {"qc.png"} | more
    assert invoke(*pair).exit_code == 0  # what is not asked for again goes
    assert names(tmp_path / "out") == STANDARD


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save", "inverse,jacobian"], "--save jacobian is not something to save; give"),
        (["--save", "inverse", "--no-inverse"], "--save inverse contradicts --no-inverse"),
    ],
)
def test_what_cannot_be_saved(pair: list[str], words: list[str], message: str) -> None:
    result = invoke(*pair, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("\u2502", " ").split())


@pytest.mark.usefixtures("fake")
def test_confidence_is_written_on_request(pair: list[str], tmp_path: Path) -> None:
    assert "confidence.nii.gz" in invoke(*pair, "--confidence", "--dry-run").output
    assert invoke(*pair, "--confidence").exit_code == 0
    assert names(tmp_path / "out") == STANDARD | {"confidence.nii.gz"}


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
def test_what_was_corrected_in_a_further_image_is_a_warning(
    pair: list[str], tmp_path: Path
) -> None:
    stored = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    write_raw(tmp_path / "mr", stored, lambda tags, _: tags.update(inverted))
    result = invoke(*pair, "--image", str(tmp_path / "mr"))
    assert result.exit_code == 0, result.stderr
    assert "warning: " + str(tmp_path / "mr") + ": its values were inverted" in result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("its values were inverted" in warning for warning in report["warnings"])


@pytest.mark.usefixtures("fake")
def test_series_of_a_folder(pair: list[str], tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_series(tmp_path / "ct", uid=f"{UID}.2")
    series = f"{tmp_path / 'ct'}?series={UID}.2"
    result = invoke(*put(put(pair, "-f", series), "-m", series), "--image", series)
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == STANDARD | {"image_ct.nii.gz"}
    inputs = json.loads((tmp_path / "out" / "report.json").read_text())["inputs"]
    assert inputs["fixed"]["path"] == series
    digest = inputs["fixed"]["sha256"]
    (tmp_path / "ct" / "1_001.dcm").unlink()  # belongs to the other series
    assert hash_input(Path(series)).sha256 == digest
    (tmp_path / "ct" / "2_001.dcm").unlink()
    assert hash_input(Path(series)).sha256 != digest


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    "option", ["-f", "-m", "--fixed-mask", "--moving-mask", "--weights", "--labels", "--image"]
)
def test_no_input_is_overwritten(
    pair: list[str], tmp_path: Path, option: str, dry_run: list[str]
) -> None:
    name = "moving" if option in ("-f", "-m", "--image") else "organs"
    target = tmp_path / "out" / "warped.nii.gz"
    target.parent.mkdir()
    target.write_bytes((tmp_path / f"{name}.nii.gz").read_bytes())
    before = target.read_bytes()
    result = invoke(*put(pair, option, str(target)), *dry_run)
    assert result.exit_code == 7
    assert f"{target}: is an input ({target}) and would be overwritten; name" in result.stderr
    assert {p.name: p.read_bytes() for p in target.parent.iterdir()} == {target.name: before}


@pytest.mark.usefixtures("fake")
def test_initial_transform_is_not_overwritten(pair: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    initial = tmp_path / "out" / "transform.h5"
    sitk.WriteTransform(sitk.AffineTransform(3), str(initial))
    result = invoke(*pair, "--initial", str(initial))
    assert result.exit_code == 7
    assert "transform.h5: is an input" in result.stderr


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_folder_in_the_way_is_found_first(
    pair: list[str], tmp_path: Path, dry_run: list[str]
) -> None:
    (tmp_path / "out" / "qc.png").mkdir(parents=True)
    result = invoke(*pair, *dry_run)
    assert result.exit_code == 7
    assert "qc.png: a folder of this name is in the way" in result.stderr
    assert "read" not in result.stderr


@pytest.mark.usefixtures("fake")
def test_no_file_of_an_earlier_run_is_left(pair: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--inverse", "--labels", str(tmp_path / "organs.nii.gz"), "--confidence"]
    assert invoke(*pair, *more).exit_code == 0
    (out / "notes.txt").write_text("mine")
    (out / "labels_organs.nii.gz").write_bytes(b"corrected by hand")
    assert invoke(*pair, "--no-qc").exit_code == 0
    assert names(out) == STANDARD - {"qc.png"} | {"notes.txt", "labels_organs.nii.gz"}


@pytest.mark.usefixtures("fake")
def test_earlier_output_that_is_read_stays(pair: list[str], tmp_path: Path) -> None:
    assert invoke(*pair, "--image", str(tmp_path / "moving.nii.gz")).exit_code == 0
    earlier = tmp_path / "out" / "image_moving.nii.gz"
    assert invoke(*put(pair, "-m", str(earlier))).exit_code == 0
    assert names(tmp_path / "out") == STANDARD | {earlier.name}


@pytest.mark.parametrize(
    "name", ["../victim", "{folder}/victim", "sub/victim", "link", "..", ".", "", ".hidden", "a\0"]
)
def test_report_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    """A report is not trusted, because it may come from anywhere."""
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    for file in (tmp_path / "victim", out / "sub" / "victim", out / ".hidden", out / "plain"):
        file.write_bytes(b"abc")
    (out / "link").symlink_to(tmp_path / "victim")
    record = hash_output(tmp_path / "victim").model_dump()
    listed = {name.format(folder=tmp_path): record, "plain": record}
    (out / "report.json").write_text(json.dumps({"outputs": listed}))
    assert earlier_files(out, set()) == ["plain"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"outputs": 3}', '{"outputs": {"a": 1}}', "\0"])
def test_reports_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    (tmp_path / "a").write_text("a")
    assert earlier_files(tmp_path, set()) == []


@pytest.mark.usefixtures("fake")
def test_constant_image_and_weights(pair: list[str], tmp_path: Path) -> None:
    """Constant extra images are allowed, for instance an empty map of lesions."""
    image = sitk.ReadImage(str(tmp_path / "moving.nii.gz")) * 0 + 1
    sitk.WriteImage(image, str(tmp_path / "ones.nii.gz"))
    ones = str(tmp_path / "ones.nii.gz")
    assert invoke(*pair, "--image", ones, "--weights", ones).exit_code == 0
    assert "constant image" in invoke(*put(pair, "-m", ones)).stderr


@pytest.mark.usefixtures("fake")
def test_output_that_is_no_text(pair: list[str], tmp_path: Path) -> None:
    result = invoke(*put(pair, "-o", f"{tmp_path}/\udcfc"))
    assert result.exit_code == 7
    assert "its name is not valid text" in result.stderr


@pytest.mark.usefixtures("fake")
def test_command_line_that_is_no_text(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dinoreg-rt", "run", "--config", "\udcfc.toml"])
    assert invoke(*pair).exit_code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["command"][-1] == "\\udcfc.toml"


@pytest.mark.usefixtures("fake")
def test_full_disk_is_found_before_the_work(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=1, free=4 * 5 * 6 * 12 - 1)
    monkeypatch.setattr("dinoreg_rt.io.staging.shutil.disk_usage", lambda _: usage)
    result = invoke(*pair)
    assert result.exit_code == 7
    assert f"{tmp_path / 'out'}: the outputs need at least" in result.stderr
    assert "solve" not in result.stderr
    usage.free += 1
    assert invoke(*pair).exit_code == 0
    usage.total = usage.free = 0  # unknown
    assert invoke(*pair).exit_code == 0


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("option", "code"), [("-f", 3), ("-o", 7), ("--labels", 3)])
def test_name_that_is_too_long(pair: list[str], option: str, code: int) -> None:
    result = invoke(*put(pair, option, "a" * 300))
    assert result.exit_code == code
    assert "aaa: cannot be looked up: File name too long" in result.stderr


def test_least_bytes_are_those_of_the_transform(tmp_path: Path) -> None:
    grid = Geometry((8, 10, 12), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    field = DisplacementField(np.zeros((8, 10, 12, 3), np.float32), grid)
    io.write_composite_h5(tmp_path / "t.h5", AffineTransform.identity(), field)
    assert 0 < least_bytes(grid) <= (tmp_path / "t.h5").stat().st_size
