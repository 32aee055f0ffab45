"""Evaluation from files, which SimpleITK writes; it and SciPy supply the expected results."""

from __future__ import annotations

import csv
import json
import math
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from scipy import ndimage

from dinoreg_rt.commands.evaluate import evaluate
from dinoreg_rt.errors import InputError, OutputError
from dinoreg_rt.evaluate.cohort import evaluate_pairs, read_pairs, summarise
from dinoreg_rt.evaluate.pair import PairFiles, PairScores, evaluate_pair
from dinoreg_rt.fields.warp import warp_labels
from dinoreg_rt.geometry import index_identity, index_to_lps
from dinoreg_rt.io.learn2reg import read_learn2reg_displacement
from dinoreg_rt.types import DisplacementField, Geometry, LabelMap

_A, _B = math.radians(20), math.radians(35)
OBLIQUE = np.array(
    [[math.cos(_A), -math.sin(_A), 0], [math.sin(_A), math.cos(_A), 0], [0, 0, 1]]
) @ np.array([[1, 0, 0], [0, math.cos(_B), -math.sin(_B)], [0, math.sin(_B), math.cos(_B)]])
FIXED = Geometry((10, 13, 15), (1.5, 2.0, 3.0), (-20.0, 11.0, 100.0), OBLIQUE)
MOVING = Geometry((12, 11, 17), (1.6, 2.2, 2.5), (-21.0, 9.0, 98.0), np.diag([-1.0, -1.0, 1.0]))
PLAIN = Geometry((12, 14, 16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))


def image_of(array, geometry):
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction.ravel().tolist())
    return image


def write_labels(path, array, geometry=PLAIN):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(np.asarray(array, np.uint8), geometry), str(path))
    return path


def write_translation(path, offset):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteTransform(sitk.TranslationTransform(3, offset), str(path))
    return path


def write_learn2reg(path, displacement_vox):
    """Write `displacement_vox` (H, W, D, 3), in the axis order of a NIfTI file."""
    parts = [sitk.GetImageFromArray(c.T.copy()) for c in np.moveaxis(displacement_vox, -1, 0)]
    sitk.WriteImage(sitk.JoinSeries(parts), str(path))
    return path


def random_labels(geometry, seed):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=geometry.shape_zyx), 1)
    return LabelMap(np.digitize(noise, [-0.1, 0, 0.1]).astype(np.int32), geometry)


def random_field(geometry, size_mm, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(scale=size_mm, size=(*geometry.shape_zyx, 3))
    return DisplacementField(vectors.astype(np.float32), geometry)


def box(shift_x=0):
    labels = np.zeros(PLAIN.shape_zyx, np.uint8)
    labels[3:8, 4:9, 5 + shift_x : 10 + shift_x] = 2
    return labels


@pytest.fixture
def shifted(tmp_path):
    """Return labels 4 voxels apart along x, and the transform that undoes the shift."""
    return PairFiles(
        name="shifted",
        fixed_labels=write_labels(tmp_path / "fixed.nii.gz", box()),
        moving_labels=write_labels(tmp_path / "moving.nii.gz", box(4)),
        transforms=(write_translation(tmp_path / "shift.tfm", (4.0, 0.0, 0.0)),),
    )


class TestLearn2Reg:
    def test_equals_map_coordinates(self, tmp_path):
        rng = np.random.default_rng(4)
        displacement = rng.normal(scale=2.0, size=(*FIXED.shape_xyz, 3)).astype(np.float32)
        path = write_learn2reg(tmp_path / "disp_0001_0002.nii.gz", displacement)
        field = read_learn2reg_displacement(path, FIXED, MOVING)
        moving = random_labels(MOVING, 2)
        warped = warp_labels(moving, field, nearest=True).array.T  # to the file's axis order

        identity = np.stack(np.meshgrid(*map(np.arange, FIXED.shape_xyz), indexing="ij"))
        coordinates = identity + np.moveaxis(displacement, -1, 0)
        expected = ndimage.map_coordinates(moving.array.T, coordinates, order=0)
        # SciPy stops at the outermost voxel centres, the package at the borders of the voxels.
        upper = np.reshape(MOVING.shape_xyz, (3, 1, 1, 1)) - 1
        inside = np.all((coordinates >= 0) & (coordinates <= upper), axis=0)
        assert 0.3 < inside.mean() < 0.95
        np.testing.assert_array_equal(warped[inside], expected[inside])

    def test_vectors_follow_the_axes_of_the_images(self, tmp_path):
        displacement = np.zeros((*FIXED.shape_xyz, 3), np.float32)
        displacement[..., 1] = 2  # two voxels along the second array axis
        path = write_learn2reg(tmp_path / "disp.nii.gz", displacement)
        field = read_learn2reg_displacement(path, FIXED, FIXED)
        expected = index_to_lps(FIXED).matrix @ [0, 2, 0]
        np.testing.assert_allclose(
            field.vectors_mm, np.broadcast_to(expected, field.vectors_mm.shape), atol=1e-5
        )

    def test_scores_start_from_the_identity_of_indices(self, tmp_path):
        elsewhere = Geometry(PLAIN.shape_zyx, (1.0,) * 3, (500.0, 0.0, 0.0), np.eye(3))
        displacement = np.zeros((*PLAIN.shape_xyz, 3), np.float32)
        displacement[..., 0] = 4
        scores = evaluate_pair(
            PairFiles(
                fixed_labels=write_labels(tmp_path / "f.nii.gz", box()),
                moving_labels=write_labels(tmp_path / "m.nii.gz", box(4), elsewhere),
                learn2reg=write_learn2reg(tmp_path / "disp.nii.gz", displacement),
            )
        )
        assert scores.before.dice == {2: pytest.approx(1 / 5)}
        assert scores.after.dice == {2: 1.0}
        assert index_identity(PLAIN, elsewhere).translation_mm[0] == 500

    def test_refuses_anything_else(self, tmp_path):
        path = tmp_path / "disp.nii.gz"
        write_learn2reg(path, np.zeros((4, 5, 6, 3), np.float32))
        with pytest.raises(InputError, match=r"for \(4, 5, 6\) voxels, but the fixed image has"):
            read_learn2reg_displacement(path, PLAIN, PLAIN)
        write_learn2reg(path, np.full((*PLAIN.shape_xyz, 3), np.nan, np.float32))
        with pytest.raises(InputError, match="NaN or infinite"):
            read_learn2reg_displacement(path, PLAIN, PLAIN)
        write_labels(path, box())
        with pytest.raises(InputError, match=r"a Learn2Reg file has \(H, W, D, 3\)"):
            read_learn2reg_displacement(path, PLAIN, PLAIN)
        sitk.WriteImage(image_of(random_field(PLAIN, 1.0).vectors_mm, PLAIN), str(path))
        with pytest.raises(InputError, match="give it as --transform"):
            read_learn2reg_displacement(path, PLAIN, PLAIN)
        whole = write_learn2reg(path, np.zeros((*PLAIN.shape_xyz, 3), np.float32)).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="truncated"):
            read_learn2reg_displacement(path, PLAIN, PLAIN)
        plain = tmp_path / "disp.nii"
        plain.write_bytes(b"nothing")
        with pytest.raises(InputError, match="not a NIfTI-1 file"):
            read_learn2reg_displacement(plain, PLAIN, PLAIN)
        with pytest.raises(InputError, match="cannot be read"):
            read_learn2reg_displacement(tmp_path / "none.nii", PLAIN, PLAIN)

    def test_headers_play_no_part(self, tmp_path):
        path = tmp_path / "disp.nii"
        write_learn2reg(path, np.full((*PLAIN.shape_xyz, 3), 3, np.int16))
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, 0.5, 0.25)  # scl_slope, scl_inter
        struct.pack_into("<2h", content, 252, 0, 1)  # sform only, ...
        struct.pack_into("<12f", content, 280, *([0.0] * 12))  # ... and that one singular
        path.write_bytes(content)
        field = read_learn2reg_displacement(path, PLAIN, PLAIN)
        np.testing.assert_allclose(field.vectors_mm, 1.75)


class TestEvaluatePair:
    def test_before_and_after(self, shifted):
        scores = evaluate_pair(shifted)
        assert scores.before.dice == {2: pytest.approx(1 / 5)}
        assert scores.before.hd95[2].mm == pytest.approx(4)
        assert scores.after.dice == {2: 1.0}
        assert scores.after.hd95[2] == (0, 0)
        assert scores.jacobian.folded_percent == 0
        assert scores.jacobian.minimum == pytest.approx(1, abs=1e-5)
        assert scores.means()["dice_after"] == 1
        assert math.isnan(scores.means()["tre_mm_after"])

    def test_without_a_transform_there_is_only_before(self, shifted):
        scores = evaluate_pair(
            PairFiles(fixed_labels=shifted.fixed_labels, moving_labels=shifted.moving_labels)
        )
        assert scores.before.dice == {2: pytest.approx(1 / 5)}
        assert scores.after is None
        assert scores.jacobian is None

    def test_transforms_are_applied_in_order(self, shifted, tmp_path):
        # Scaling by 2 about the origin and a shift do not commute.
        double = sitk.AffineTransform(np.diag([2.0, 2.0, 2.0]).ravel().tolist(), (0.0, 0.0, 0.0))
        sitk.WriteTransform(double, str(tmp_path / "double.tfm"))
        points = {}
        for name, row in (("f", "1,2,3"), ("m", "6,4,6")):
            points[name] = tmp_path / f"{name}.csv"
            points[name].write_text(f"x,y,z\n{row}\n")
        scores = evaluate_pair(
            PairFiles(
                transforms=(tmp_path / "double.tfm", *shifted.transforms),
                fixed_points=points["f"],
                moving_points=points["m"],
            )
        )
        assert scores.tre_before_mm == (pytest.approx(math.sqrt(25 + 4 + 9)),)
        assert scores.tre_after_mm == (pytest.approx(0, abs=1e-9),)

    def test_displacement_file_alone_gives_the_jacobian(self, tmp_path):
        vectors = np.zeros((*PLAIN.shape_zyx, 3), np.float32)
        vectors[..., 0] = -2 * np.arange(16)  # x -> -x
        sitk.WriteImage(image_of(vectors, PLAIN), str(tmp_path / "d.nii.gz"))
        scores = evaluate_pair(PairFiles(transforms=(tmp_path / "d.nii.gz",)))
        assert scores.jacobian.folded_percent == 100
        assert scores.before is None

    def test_lost_label_scores_zero_and_is_named(self, shifted, tmp_path):
        fixed, moving = box(), box()
        fixed[0, 0, 0], moving[0, 0, 0] = 9, 9  # shifted out of the grid
        scores = evaluate_pair(
            PairFiles(
                fixed_labels=write_labels(tmp_path / "f2.nii.gz", fixed),
                moving_labels=write_labels(tmp_path / "m2.nii.gz", moving),
                transforms=shifted.transforms,
            )
        )
        assert scores.vanished == (9,)
        assert scores.after.dice[9] == 0
        assert scores.after.hd95[9].mm == pytest.approx(math.sqrt(12**2 + 14**2 + 16**2))

    def test_mask_limits_the_jacobian(self, shifted, tmp_path):
        mask = write_labels(tmp_path / "mask.nii.gz", box())
        scores = evaluate_pair(
            PairFiles(
                fixed_labels=shifted.fixed_labels,
                moving_labels=shifted.moving_labels,
                transforms=shifted.transforms,
                mask=mask,
            )
        )
        assert scores.jacobian.voxels == 125

    def test_messages(self, shifted, tmp_path):
        other = write_labels(tmp_path / "other.nii.gz", np.where(box(), 5, 0))
        with pytest.raises(InputError, match=r"share no label: they hold \[2\] and \[5\]"):
            evaluate_pair(PairFiles(fixed_labels=shifted.fixed_labels, moving_labels=other))
        with pytest.raises(InputError, match="nothing to score"):
            evaluate_pair(PairFiles())
        with pytest.raises(InputError, match="give fixed and moving labels, whose grids define"):
            evaluate_pair(PairFiles(learn2reg=tmp_path / "disp.nii.gz"))
        small = write_labels(
            tmp_path / "small.nii.gz",
            np.ones((5, 5, 5)),
            Geometry((5, 5, 5), (1.0,) * 3, (0.0,) * 3, np.eye(3)),
        )
        with pytest.raises(InputError, match="mask must lie on the fixed image's grid"):
            evaluate_pair(
                PairFiles(
                    fixed_labels=shifted.fixed_labels,
                    moving_labels=shifted.moving_labels,
                    transforms=shifted.transforms,
                    mask=small,
                )
            )


@pytest.fixture
def cohort(tmp_path):
    """Pairs a (with a transform), b (with a displacement image) and c (without a result)."""
    data, results = tmp_path / "data", tmp_path / "results"
    write_labels(data / "f.nii.gz", box())
    write_labels(data / "m4.nii.gz", box(4))
    write_labels(data / "m2.nii.gz", box(2))
    rows = ["pair,kind,fixed,fixed_label,moving,moving_label,note"]
    for name, kind, moving in (("a", "near", "m4"), ("b", "near", "m2"), ("c", "far, too", "m2")):
        rows.append(f'{name},"{kind}",f.nii.gz,f.nii.gz,{moving}.nii.gz,{moving}.nii.gz,x')
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    write_translation(results / "a" / "transform.h5", (4.0, 0.0, 0.0))
    vectors = np.zeros((*PLAIN.shape_zyx, 3), np.float32)
    vectors[..., 0] = 1.0  # one voxel short
    (results / "b").mkdir()
    sitk.WriteImage(image_of(vectors, PLAIN), str(results / "b" / "displacement.nii.gz"))
    return tmp_path


def read_cohort(folder):
    return read_pairs(folder / "pairs.csv", folder / "data", folder / "results")


class TestCohort:
    def test_scores_and_missing(self, cohort):
        a, b, c = evaluate_pairs(read_cohort(cohort))
        assert a.after.dice == {2: 1.0}
        assert b.after.dice == {2: pytest.approx(4 / 5)}
        assert (c.status, c.kind) == ("missing", "far, too")
        assert "no transform.h5 or displacement.nii.gz" in c.message

    def test_summary(self, cohort):
        overall, near, far = summarise(list(evaluate_pairs(read_cohort(cohort))))
        assert (overall.kind, overall.pairs, overall.scored) == ("all", 3, 2)
        assert (near.kind, near.scored, far.pairs, far.scored) == ("near", 2, 1, 0)
        dice = overall.metrics["dice_after"]
        assert (dice.mean, dice.cases) == (pytest.approx(0.9), 2)
        assert (dice.low, dice.high) == (pytest.approx(0.8), pytest.approx(1.0))
        assert far.metrics == {}
        assert "tre_mm_after" not in overall.metrics

    def test_one_bad_file_does_not_stop_the_others(self, cohort):
        (cohort / "results" / "a" / "transform.h5").write_bytes(b"not a transform")
        a, b, _ = evaluate_pairs(read_cohort(cohort))
        assert a.status == "failed"
        assert "transform.h5" in a.message
        assert b.status == "ok"

    def test_means_go_over_the_cases_that_have_the_metric(self):
        scores = [PairScores("a", tre_after_mm=(1.0, 3.0)), PairScores("b")]
        assert summarise(scores)[0].metrics["tre_mm_after"].mean == 2
        assert summarise(scores)[0].metrics["tre_mm_after"].cases == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("pair,fixed\n", "no column moving"),
            ("pair,fixed,moving\n", "lists no pair"),
            ("pair,fixed,moving\np,f,m\np,f,m\n", "pairs more than once: p"),
            ("pair,fixed,moving,fixed\np,f,m,g\n", "columns more than once: fixed; only the last"),
            (
                "pair,fixed,moving,fixed_lable\np,f,m,l\n",
                "'fixed_lable' would be ignored; is 'fixed",
            ),
            ("pair,fixed,moving,Kind\np,f,m,k\n", "the column 'Kind' would be ignored; is 'kind'"),
            ("pair,fixed,moving\np,f,m,x\n", "row 1 has more fields than .*: x would be ignored"),
            ("pair,fixed,moving\np,f,m\nq,f\n", "row 2 has no moving"),
            ("p,f,m\n", "no column pair, fixed, moving, only p, f, m; name the columns in the"),
        ],
    )
    def test_bad_tables(self, tmp_path, text, message):
        (tmp_path / "pairs.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            read_pairs(tmp_path / "pairs.csv", tmp_path, tmp_path)

    def test_no_table(self, tmp_path):
        with pytest.raises(InputError, match="cannot be read: No such file"):
            read_pairs(tmp_path / "pairs.csv", tmp_path, tmp_path)


def run(*arguments):
    return CliRunner().invoke(evaluate, [str(a) for a in arguments], catch_exceptions=False)


class TestCommand:
    def test_one_pair_as_tables(self, shifted, tmp_path):
        names = tmp_path / "names.json"
        names.write_text('{"2": "spleen"}')
        result = run(
            "-f", shifted.fixed_labels, "-m", shifted.moving_labels, "-t", shifted.transforms[0],
            "--labels-names", names, "--quiet", "--csv", tmp_path / "s.csv",
        )  # fmt: skip
        assert (result.exit_code, result.stdout) == (0, "")
        with (tmp_path / "s.csv").open() as file:
            label, pair = csv.DictReader(file)
        assert (label["row"], label["label_name"], label["dice_before"]) == (
            "label",
            "spleen",
            "0.2",
        )
        assert (pair["row"], pair["dice_after"], pair["tre_mm_after"]) == ("pair", "1", "")
        shown = run("-f", shifted.fixed_labels, "-m", shifted.moving_labels).stdout
        assert "0.200" in shown
        assert "HD95 mm" in shown

    def test_names_are_not_markup(self, shifted, tmp_path):
        odd = tmp_path / "[bold]fixed.nii.gz"
        odd.write_bytes(shifted.fixed_labels.read_bytes())
        assert "[bold]fixed" in run("-f", odd, "-m", shifted.moving_labels).stdout

    def test_a_lost_label_has_a_star(self, tmp_path):
        labels = np.zeros(PLAIN.shape_zyx, np.uint8)
        labels[2:10, 2:12, 2:12] = 1
        labels[0:2, 0:2, 0:2] = 9
        path = write_labels(tmp_path / "labels.nii.gz", labels)
        away = write_translation(tmp_path / "away.tfm", (2.0, 2.0, 2.0))
        diagonal = f"{math.sqrt(12**2 + 14**2 + 16**2):.3f}"
        lines = run("-f", path, "-m", path, "-t", away).stdout.splitlines()
        lost, kept, mean = (
            next(line for line in lines if f" {name} " in line) for name in ("9", "1", "mean")
        )
        assert lost.count(f"{diagonal}*") == 2
        assert lost.count("*") == mean.count("*") == 2  # after, in mm and in voxels
        assert "*" not in kept
        assert any("* the label has no voxel left; its HD95 is" in line for line in lines)

    def test_cohort_as_json_and_csv(self, cohort):
        result = run(
            "--pairs", cohort / "pairs.csv", "--data", cohort / "data", "--quiet",
            "--results", cohort / "results", "--json", "-", "--csv", cohort / "scores.csv",
        )  # fmt: skip
        assert result.exit_code == 0
        report = json.loads(result.stdout)
        assert report["status"] == "incomplete"
        assert [p["status"] for p in report["pairs"]] == ["ok", "ok", "missing"]
        assert report["pairs"][0]["labels"][0]["dice_after"] == 1
        assert report["pairs"][2]["means"]["dice_after"] is None
        assert report["summary"][0]["metrics"]["dice_after"]["cases"] == 2
        with (cohort / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [r["row"] for r in rows[:5]] == ["label", "pair", "label", "pair", "pair"]
        means = {r["kind"]: r["dice_after"] for r in rows if r["row"] == "mean"}
        assert means == {"all": "0.9", "near": "0.9", "far, too": ""}

    def test_cohort_tables_name_missing_pairs(self, cohort):
        result = run(
            "--pairs", cohort / "pairs.csv", "--data", cohort / "data",
            "--results", cohort / "results",
        )  # fmt: skip
        assert result.exit_code == 0
        assert "missing: no transform.h5" in result.stdout
        assert "0.900 [0.800, 1.000]" in result.stdout
        assert "2 of 3 pairs" in result.stdout

    def test_unusable_results_are_an_exit_code(self, cohort):
        (cohort / "results" / "a" / "transform.h5").write_bytes(b"not a transform")
        arguments = ("--pairs", cohort / "pairs.csv", "--data", cohort / "data")
        result = run(*arguments, "--results", cohort / "results")
        assert result.exit_code == InputError.exit_code
        assert "could not be scored: a" in result.stderr
        nowhere = run(*arguments, "--results", cohort / "nowhere")
        assert nowhere.exit_code == InputError.exit_code

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "nothing to score"),
            (("-f", "a.nii"), "needs --moving-labels"),
            (("--moving-points", "a.csv"), "needs --fixed-points"),
            (("--pairs", "p.csv"), "needs --results"),
            (("--pairs", "p.csv", "--results", "r", "-f", "a.nii"), "together with --pairs"),
            (("-t", "a.h5", "--data", "d"), "go with --pairs"),
            (("-t", "a.h5", "--learn2reg", "d.nii"), "give one of them"),
        ],
    )
    def test_wrong_usage(self, arguments, message):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.replace("│", " ").split())

    def test_label_names_that_are_none(self, shifted, tmp_path):
        (tmp_path / "names.json").write_text("[1, 2]")
        with pytest.raises(InputError, match="not a JSON object of label names"):
            run("-f", shifted.fixed_labels, "-m", shifted.moving_labels,
                "--labels-names", tmp_path / "names.json")  # fmt: skip

    @pytest.mark.parametrize("option", ["--csv", "--json"])
    def test_no_input_is_overwritten(self, shifted, tmp_path, option):
        before = shifted.fixed_labels.read_bytes()
        with pytest.raises(OutputError, match="is an input"):
            run("-f", shifted.fixed_labels, "-m", shifted.moving_labels,
                option, shifted.fixed_labels)  # fmt: skip
        assert shifted.fixed_labels.read_bytes() == before

    def test_help_defines_the_metrics(self):
        text = " ".join(run("--help").stdout.replace("│", " ").split())
        for words in ("in mm and in voxels", "log(clip(det J + 3", "Examples", "Exit codes"):
            assert words in text


def test_only_the_grid_of_the_fixed_image_matters(shifted, tmp_path):
    sitk.WriteImage(image_of(np.zeros(PLAIN.shape_zyx, np.float32), PLAIN), tmp_path / "zero.nii")
    scores = evaluate_pair(
        PairFiles(fixed_image=tmp_path / "zero.nii", transforms=shifted.transforms)
    )
    assert scores.jacobian is not None
