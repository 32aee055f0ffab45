"""CPU time of `qc.png` and `report.html` for the shipped brains: python tests/bench/page.py.

It counts user and system time of the process, with the import of everything that only they need.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path

import SimpleITK  # noqa: F401, a run has it before it writes

from dinoreg_rt import RegistrationConfig, io, register
from dinoreg_rt.run.report import build_report

BRAIN = Path(__file__).parents[1] / "data" / "brain"


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", action="store_true", help="with the contours of the labels")
    labelled = parser.parse_args().labels
    fixed, moving = (io.read_volume(BRAIN / f"{role}_t1.nii.gz") for role in ("fixed", "moving"))
    labels = {"labels": io.read_labels(BRAIN / "moving_labels.nii.gz")} if labelled else {}
    result = register(fixed, moving, config=RegistrationConfig(device="cpu"))
    report = build_report(
        result,
        command=["dinoreg-rt", "run"],
        started_at=datetime.now().astimezone(),
        inputs={},
        outputs={},
        timings_ms={},
    )
    begun = cpu_seconds()
    from dinoreg_rt.page.picture import draw_picture
    from dinoreg_rt.page.report_page import render_page
    from dinoreg_rt.page.stacks import cut_stacks

    stacks = cut_stacks(result, fixed, moving, labels)
    cut = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        draw_picture(result, fixed, moving, stacks, Path(folder) / "qc.png")
    drawn = cpu_seconds()
    page = render_page(json.loads(report.to_json()), result, (fixed, moving), stacks)
    ended = cpu_seconds()
    print(
        f"slices and imports {cut - begun:.2f} s, qc.png {drawn - cut:.2f} s, "
        f"report.html {ended - drawn:.2f} s ({len(page.encode()) / 1e6:.2f} MB), "
        f"together {ended - begun:.2f} s"
    )


if __name__ == "__main__":
    main()
