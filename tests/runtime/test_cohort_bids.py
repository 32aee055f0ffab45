"""Cohorts of BIDS datasets: which images are paired, and the names of the derivatives."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from cohorts import FAST, write_pair

from dinoreg_rt.cohort.bids import bids_jobs, parse_name
from dinoreg_rt.cohort.derivatives import derivative_names
from dinoreg_rt.commands.main import cli
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.errors import InputError
from dinoreg_rt.io import read_transform
from dinoreg_rt.run.request import RunRequest


@pytest.fixture
def dataset(tmp_path):
    """A dataset whose images are empty files with these names."""

    def make(*names):
        folder = tmp_path / "study"
        folder.mkdir()
        (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
        for name in names:
            parts = [part for part in name.split("_") if part[:4] in ("sub-", "ses-")]
            place = folder.joinpath(*parts, "anat")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.nii.gz").touch()
        return folder

    return make


def pairs(folder, fixed, moving):
    nothing = RunRequest(folder, folder, folder, RegistrationConfig())
    jobs, notes = bids_jobs(folder, fixed, moving, folder / "out", nothing)
    return {job.name: job.fixed.path.name.split(".")[0] for job in jobs}, notes


def test_sessions_of_one_person(dataset):
    folder = dataset(
        "sub-01_ses-pre_T1w", "sub-01_ses-post_T1w", "sub-01_ses-post_T2w", "sub-02_ses-post_T1w"
    )
    found, notes = pairs(folder, "ses-pre_T1w", "ses-post_T1w")
    assert found == {"sub-01_ses-post_T1w": "sub-01_ses-pre_T1w"}
    assert notes == ["sub-02_ses-post_T1w.nii.gz has no fixed image ses-pre_T1w"]


def test_two_contrasts_stay_in_their_session(dataset):
    names = [f"sub-01_ses-{ses}_{suffix}" for ses in "ab" for suffix in ("T1w", "T2w")]
    found, _ = pairs(dataset(*names), "T1w", "T2w")
    assert found == {f"sub-01_ses-{s}_T2w": f"sub-01_ses-{s}_T1w" for s in "ab"}


def test_one_image_is_fixed_for_all(dataset, tmp_path):
    folder = dataset("sub-01_T1w", "sub-02_T1w", "sub-03_T1w")
    found, _ = pairs(folder, "sub-02_T1w", "T1w")
    assert found == {"sub-01_T1w": "sub-02_T1w", "sub-03_T1w": "sub-02_T1w"}
    (tmp_path / "template.nii.gz").touch()
    found, _ = pairs(folder, str(tmp_path / "template.nii.gz"), "T1w")
    assert found == {f"sub-0{n}_T1w": "template" for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("fixed", "moving", "message"),
    [
        ("T1w", "acq-b_T1w", "several fixed images fit: .*run-1.*run-2.*; add an entity"),
        ("T1w.nii.gz", "T2w", "is not a selector"),
        ("FLAIR", "T2w", "no pair of FLAIR and T2w; the suffixes of its images are T1w"),
    ],
)
def test_selectors_that_do_not_tell(dataset, fixed, moving, message):
    folder = dataset("sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-01_acq-b_T1w")
    with pytest.raises(InputError, match=message):
        pairs(folder, fixed, moving)


def test_a_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match=r"no dataset_description\.json"):
        pairs(tmp_path, "T1w", "T2w")


def test_names_of_images():
    found = parse_name("sub-01_ses-pre_run-2_T1w")
    assert found is not None
    assert (found.entities, found.suffix) == ({"sub": "01", "ses": "pre", "run": "2"}, "T1w")
    assert parse_name("sub-01_labels-of_my hand") is None


def test_results_get_the_names_of_derivatives(tmp_path):
    folder = tmp_path / "study"
    for session, number in (("pre", 0), ("post", 1)):
        place = folder / "sub-01" / f"ses-{session}" / "anat"
        write_pair(place, number)
        (place / f"f{number}.nii.gz").rename(place / f"sub-01_ses-{session}_T1w.nii.gz")
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    output = folder / "derivatives" / "reg"
    words = ["cohort", "--bids", folder, "--fixed", "ses-pre_T1w", "--moving", "ses-post_T1w"]
    words += ["-o", output, "--workers", "1", *FAST]
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert result.exit_code == 0, result.output
    place = output / "sub-01" / "ses-post" / "anat"
    stem = "sub-01_ses-post"
    way = f"{stem}_from-sespostT1w_to-sespreT1w_mode-image"
    run = output / "pairs" / "sub-01_ses-post_T1w"
    assert {p.name for p in place.iterdir() if p.suffix != ".json"} == {
        f"{stem}_space-sespreT1w_desc-warped_T1w.nii.gz",
        f"{way}_xfm.h5",
    }
    assert (place / f"{way}_xfm.h5").samefile(run / "transform.h5")
    sidecar = json.loads((place / f"{stem}_space-sespreT1w_desc-warped_T1w.json").read_text())
    fixed = "bids::sub-01/ses-pre/anat/sub-01_ses-pre_T1w.nii.gz"
    assert sidecar["SpatialReference"] == fixed
    assert sidecar["Sources"][1] == fixed
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert "pairs/" in (output / ".bidsignore").read_text().splitlines()
    linear = [word for word in words if word not in ("--iterations", "3")]
    # A linear run has another transform; that of the earlier run must not stay beside it.
    result = CliRunner().invoke(cli, [*map(str, [*linear, "--transform", "rigid"])])
    assert result.exit_code == 0, result.output
    transforms = {p.name for p in place.glob("*_xfm.*")}
    assert transforms == {f"{way}_xfm.txt", f"{way}_xfm.json"}
    read_transform(place / f"{way}_xfm.txt")
    result = CliRunner().invoke(cli, [*map(str, words), "--save", "displacement"])
    assert result.exit_code == 0, result.output
    fields = (f"{way}{middle}_xfm" for middle in ("", "_desc-displacement"))
    expected = {f"{name}.json" for name in fields}
    expected |= {f"{way}_xfm.h5", f"{way}_desc-displacement_xfm.nii.gz"}
    assert {p.name for p in place.glob("*_xfm.*")} == expected


def test_entities_that_the_result_replaces_are_left_out(tmp_path):
    image, fixed = parse_name("sub-01_space-orig_desc-preproc_T2w"), parse_name("T1w")
    assert image is not None
    assert fixed is not None
    from dinoreg_rt.cohort.bids import BidsJob
    from dinoreg_rt.evaluate.pair import PairFiles

    request = RunRequest(tmp_path, tmp_path, tmp_path, RegistrationConfig())
    names = derivative_names(BidsJob(request, PairFiles(), fixed, image, "T1w", "T2w"))
    assert names["warped.nii.gz"] == "sub-01_space-T1w_desc-warped_T2w.nii.gz"
    assert names["inverse.nii.gz"].startswith("sub-01_from-T1w_to-T2w_mode-image")
