"""Measure the verdict on trust on matching and on deliberately wrong pairs, and confidence.

    PYTHONPATH=tests python tests/bench/trust.py --data DATA [--given]

`--data` is a folder made by peers/prepare_pairs.py. Every pair begins at `--initial auto`; with
`--given` it begins at its `init/*.tfm` if it has one. The matching pairs are all pairs, in both
directions. The wrong pairs are the same with the moving image mirrored left to right or turned
upside down, every fixed image with every moving image of another organ, and the upper part of one
body with the lower part of another. For matching pairs with labels, the share of labelled voxels
whose label is right after the registration follows, by quartile of confidence.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from wrong_pairs import mirrored, part

from dinoreg_rt import RegistrationConfig, RegistrationResult, Volume, io, register, warp_labels
from dinoreg_rt.quality.trust import judge

MEASURES = (
    "decoy_ratio",
    "unrelated_ratio",
    "alignment_similarity",
    "overlap_percent",
    "folded_percent",
    "sdlogj",
    "inverse_consistency_mean_mm",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A pair of images and the initial alignment of its registration."""

    name: str
    fixed: Volume
    moving: Volume
    initial: str = "auto"

    @property
    def organ(self) -> str:
        """The organ, derived from the pair's name."""
        return {"card": "heart", "brain": "brain"}.get(self.name.partition("_")[0], "abdomen")

    def exchanged(self) -> Pair:
        """Return the pair with the images exchanged, which begins at `auto`."""
        return Pair(f"{self.name} exchanged", self.moving, self.fixed)

    def run(self, *, confidence: bool = False) -> RegistrationResult:
        """Register with the defaults."""
        config = RegistrationConfig(initial=self.initial, confidence=confidence)
        return register(self.fixed, self.moving, config=config)


def wrong_pairs(pairs: dict[str, Pair]) -> Iterator[Pair]:
    """Yield the deliberately wrong pairs."""
    for pair in pairs.values():
        for one in (pair, pair.exchanged()):
            for text, axis in (("mirrored", 2), ("upside down", 0)):
                turned = mirrored(one.moving, axis)
                yield dataclasses.replace(one, name=f"{one.name} {text}", moving=turned)
    for one, other in itertools.permutations(pairs.values(), 2):
        if one.organ != other.organ:
            yield Pair(f"{one.name} with {other.name}", one.fixed, other.moving)
    for name in ("tune_ctct_1", "tune_ctct_2", "abd_mrct_1"):
        upper, lower = part(pairs[name].fixed, 0.65, 1.0), part(pairs[name].moving, 0.0, 0.35)
        yield Pair(f"{name} upper with lower", upper, lower)


def show(name: str, result: RegistrationResult) -> bool:
    """Print one line and return whether the result is trusted."""
    verdict = judge(result.quality).verdict
    numbers = "  ".join(f"{getattr(result.quality, m):8.3f}" for m in MEASURES)
    print(f"{name:32} {verdict:9} {numbers}", flush=True)
    return verdict == "trusted"


def quartiles(row: dict[str, str], data: Path, result: RegistrationResult) -> str:
    """Return the share of rightly labelled voxels by quartile, least confident first."""
    fixed = io.read_labels(data / row["fixed_label"]).array
    moving = io.read_labels(data / row["moving_label"])
    warped = warp_labels(moving, result.displacement, nearest=True).array
    of_both = np.isin(fixed, np.intersect1d(fixed, moving.array)) & (fixed != 0)
    assert result.confidence is not None
    order = np.argsort(result.confidence.array[of_both], kind="stable")
    right = (fixed == warped)[of_both][order]
    return "  ".join(f"{quarter.mean():.2f}" for quarter in np.array_split(right, 4))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs.csv")
    parser.add_argument("--given", action="store_true", help="begin at init/*.tfm")
    args = parser.parse_args()
    data = args.data
    with (data / "pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["pair"]: row for row in csv.DictReader(file)}
    print(f"{'pair':32} {'verdict':9} {'  '.join(MEASURES)}")
    pairs, confidences, trusted = {}, {}, []
    for name, row in rows.items():
        start = data / "init" / f"{name}.tfm"
        initial = str(start) if args.given and start.exists() else "auto"
        images = (io.read_volume(data / row[role]) for role in ("fixed", "moving"))
        pairs[name] = pair = Pair(name, *images, initial=initial)
        result = pair.run(confidence=bool(row["fixed_label"]))
        trusted.append(show(name, result))
        if row["fixed_label"]:
            confidences[name] = quartiles(row, data, result)
    if not args.given:
        trusted += [show(p.name, p.run()) for p in (pair.exchanged() for pair in pairs.values())]
    print(f"{sum(trusted)} of {len(trusted)} matching pairs are trusted\n")
    flagged = [not show(pair.name, pair.run()) for pair in wrong_pairs(pairs)]
    print(f"{sum(flagged)} of {len(flagged)} wrong pairs are flagged\n")
    for name, text in confidences.items():
        print(f"{name:16} {text}")


if __name__ == "__main__":
    main()
