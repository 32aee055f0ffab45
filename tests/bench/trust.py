"""The verdict on trust, on right pairs and on pairs that are wrong on purpose; and confidence.

    PYTHONPATH=tests python tests/bench/trust.py --data DATA --results FILE [--random BUNDLE]

DATA has pairs.csv as peers/prepare_pairs.py reads it, and `init/` with starts. Each run adds a line
of JSON to FILE; runs that it has already are left out, so that a measurement can be continued, and
several processes can share it (`--part 1/2`). At the end come the tables.

Right: all pairs in both directions from `--initial auto` and from their `init/*.tfm`. Wrong: an
image and its own mirror image (left and right exchanged), 0 to 24 mm elsewhere; the pairs with such
a moving image, with one upside down, and with its slices shuffled; images of different organs; the
upper part of one body and the lower of another. With `--random`, a bundle of random weights, the
pairs with that encoder: whether these are wrong is for their Dice to say. Then, for right pairs
with labels, the share of labelled voxels whose label is right, by quartile of confidence, and how
many regions of the body that match well or badly have little mutual information.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matched_regions import region_scores, region_table
from wrong_pairs import exchanged_sides, mirrored, part, shuffled

from dinoreg_rt import RegistrationConfig, RegistrationResult, Volume, io, register, warp_labels
from dinoreg_rt.quality.metrics import dice, mean_over_labels
from dinoreg_rt.quality.trust import judge, quality_warnings
from dinoreg_rt.summaries import RunQuality

SHIFTS_MM = (0, 3, 6, 12, 24)
MEASURES = (
    "decoy_ratio",
    "sides_ratio",
    "symmetry",
    "unrelated_ratio",
    "alignment_similarity",
    "overlap_percent",
)
Change = Callable[[Volume], Volume]


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of the folder, with its labels if it has any, and what is done to it."""

    path: Path
    labels: Path | None
    change: Change | None = None

    def read(self) -> Volume:
        """Read and change the image."""
        volume = io.read_volume(self.path)
        return volume if self.change is None else self.change(volume)


@dataclasses.dataclass(frozen=True)
class Case:
    """A registration of the measurement."""

    kind: str
    name: str
    fixed: Image
    moving: Image
    start: Path | None = None
    backwards: bool = False
    encoder: Path | None = None

    @property
    def organ(self) -> str:
        """Name the organ by the name of the pair."""
        return {"card": "heart", "brain": "brain"}.get(self.name.partition("_")[0], "abdomen")

    def exchanged(self) -> Case:
        """Return the registration in the other direction."""
        more = {"name": f"{self.name} exchanged", "backwards": True}
        return dataclasses.replace(self, fixed=self.moving, moving=self.fixed, **more)

    def changed(self, kind: str, change: Change) -> Case:
        """Return the registration with a changed moving image."""
        moving = dataclasses.replace(self.moving, change=change)
        return dataclasses.replace(self, kind=kind, moving=moving)

    def run(self) -> dict[str, Any]:
        """Register with the defaults; return the line for the results."""
        with tempfile.TemporaryDirectory() as folder:
            config = RegistrationConfig(
                initial=self._initial(Path(folder)),
                confidence=self.kind == "right",
                encoder=None if self.encoder is None else str(self.encoder),
                cache=False,
            )
            result = register(
                self.fixed.read(),
                self.moving.read(),
                config=config,
                keep_features=self.kind.startswith("right"),
            )
        return {
            "kind": self.kind,
            "name": self.name,
            "organ": self.organ,
            "verdict": result.trust.verdict,
            "reasons": list(result.trust.reasons),
            "warnings": result.warnings,
            "quality": dataclasses.asdict(result.quality),
            **self._labelled(result),
        }

    def _initial(self, folder: Path) -> str:
        if self.start is None or not self.backwards:
            return "auto" if self.start is None else str(self.start)
        inverse = sitk.ReadTransform(str(self.start)).GetInverse()
        sitk.WriteTransform(inverse, str(folder / "start.tfm"))
        return str(folder / "start.tfm")

    def _labelled(self, result: RegistrationResult) -> dict[str, Any]:
        if self.fixed.labels is None or self.moving.labels is None or self.moving.change:
            return {}
        fixed = io.read_labels(self.fixed.labels).array
        moving = io.read_labels(self.moving.labels)
        warped = warp_labels(moving, result.displacement, nearest=True).array
        common = np.intersect1d(fixed, moving.array)
        found = dice(fixed, warped, [int(label) for label in common if label])
        if not found:
            return {}
        more: dict[str, Any] = {"dice": mean_over_labels(found), "least_dice": min(found.values())}
        if result.features is not None:
            more["regions"] = region_scores(result, fixed, warped, common[common != 0])
        if result.confidence is not None:
            of_both = np.isin(fixed, common) & (fixed != 0)
            order = np.argsort(result.confidence.array[of_both], kind="stable")
            quarters = np.array_split((fixed == warped)[of_both][order], 4)
            more["quartiles"] = [float(quarter.mean()) for quarter in quarters]
        return more


def pairs_of(data: Path) -> list[Case]:
    """Return the pairs of the folder, from `--initial auto`."""
    with (data / "pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Case(
            "right",
            row["pair"],
            *(
                Image(data / row[role], data / row[label] if row[label] else None)
                for role, label in (("fixed", "fixed_label"), ("moving", "moving_label"))
            ),
        )
        for row in rows
    ]


def cases_of(data: Path, encoder: Path | None) -> Iterator[Case]:
    """Yield all registrations of the measurement."""
    pairs = pairs_of(data)
    both = [case for pair in pairs for case in (pair, pair.exchanged())]
    yield from both
    for case in both:
        start = data / "init" / f"{case.name.split()[0]}.tfm"
        if start.exists():
            yield dataclasses.replace(case, kind="right, given start", start=start)
    if encoder is not None:
        for case in both:
            yield dataclasses.replace(case, kind="random encoder", encoder=encoder)
    yield from mirror_images(both)
    for case in both:
        yield case.changed("upside down", lambda volume: mirrored(volume, 0))
        yield case.changed("shuffled slices", shuffled)
    for one, other in itertools.permutations(pairs, 2):
        if one.organ != other.organ:
            name = f"{one.name} with {other.name}"
            yield Case("other organ", name, one.fixed, other.moving)
    for pair in pairs:
        if pair.name in ("tune_ctct_1", "tune_ctct_2", "abd_mrct_1"):
            upper = dataclasses.replace(pair.fixed, change=lambda volume: part(volume, 0.65, 1.0))
            lower = dataclasses.replace(pair.moving, change=lambda volume: part(volume, 0.0, 0.35))
            yield dataclasses.replace(pair, kind="other region", fixed=upper, moving=lower)


def mirror_images(both: list[Case]) -> Iterator[Case]:
    """Yield every image with its own mirror image, and every pair with one."""
    images = {case.fixed.path: case for case in reversed(both)}
    for shift_mm in SHIFTS_MM:

        def change(volume: Volume, shift_mm: float = shift_mm) -> Volume:
            return exchanged_sides(volume, shift_mm)

        for case in images.values():
            own = dataclasses.replace(case, moving=case.fixed)
            yield own.changed(f"own mirror image, {shift_mm} mm", change)
        for case in both:
            yield case.changed(f"mirrored, {shift_mm} mm", change)


def interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's formula, in percent."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def tables(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the tables: verdicts by kind, then confidence."""
    yield "| pairs | in all | untrusted | 95 % interval | trusted, but sides not told apart |"
    yield "|---|---|---|---|---|"
    for kind in dict.fromkeys(line["kind"] for line in lines):
        found = [line for line in lines if line["kind"] == kind]
        # By the rules as they are now: limits can be tried without running anything again.
        measured = [RunQuality(**line["quality"]) for line in found]
        refused = [quality for quality in measured if judge(quality).reasons]
        rest = [quality for quality in measured if not judge(quality).reasons]
        sides = sum(any("cannot be told" in w for w in quality_warnings(q)) for q in rest)
        low, high = interval(len(refused), len(found))
        yield f"| {kind} | {len(found)} | {len(refused)} | {low:.0f} to {high:.0f} % | {sides} |"
    yield "\n| pair | 1st | 2nd | 3rd | 4th |\n|---|---|---|---|---|"
    for line in lines:
        if "quartiles" in line and "exchanged" not in line["name"]:
            yield f"| {line['name']} | {' | '.join(f'{q:.2f}' for q in line['quartiles'])} |"
    yield from region_table(lines)


def main() -> None:
    """Run what is missing in the results, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs.csv")
    parser.add_argument("--results", type=Path, required=True, help="file that collects the runs")
    parser.add_argument("--random", type=Path, help="bundle of an encoder with random weights")
    parser.add_argument("--kinds", default="", help="only kinds that begin so; '|' separates them")
    parser.add_argument("--part", default="1/1", help="such as 2/3: the second of every three runs")
    args = parser.parse_args()
    first, step = map(int, args.part.split("/"))
    kinds = tuple(args.kinds.split("|"))
    chosen = [case for case in cases_of(args.data, args.random) if case.kind.startswith(kinds)]
    done = set()
    if args.results.exists():
        lines = [json.loads(line) for line in args.results.read_text().splitlines()]
        done = {(line["kind"], line["name"]) for line in lines}
    for case in chosen[first - 1 :: step]:
        if (case.kind, case.name) in done:
            continue
        line = case.run()
        with args.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        numbers = "  ".join(f"{line['quality'][name]:8.3f}" for name in MEASURES)
        print(f"{case.kind:28} {case.name:32} {line['verdict']:9} {numbers}", flush=True)
    lines = [json.loads(line) for line in args.results.read_text().splitlines()]
    print("\n".join(tables(lines)))


if __name__ == "__main__":
    main()
