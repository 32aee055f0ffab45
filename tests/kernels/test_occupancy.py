"""The occupancy that the CUDA compile check prints, against that of cuda_occupancy.h."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "cuda"))

import resources
from occupancy import LIMITS, occupancy


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "threads", "blocks", "limit"),
    [
        # From cudaOccMaxActiveBlocksPerMultiprocessor of CUDA 13.0, with all shared memory.
        ("75", 64, 0, 256, 4, "warps"),
        ("75", 16, 0, 32, 16, "blocks"),
        ("80", 80, 9216, 128, 6, "registers"),
        ("86", 40, 0, 256, 6, "warps"),
        ("89", 128, 49152, 512, 1, "registers"),
        ("90", 32, 0, 256, 8, "warps"),
        ("90", 255, 0, 288, 0, "registers"),
        ("100", 32, 6144, 512, 4, "warps"),
        ("120", 168, 0, 384, 1, "registers"),
        ("120", 56, 30000, 256, 3, "shared"),
    ],
)
def test_blocks_on_a_multiprocessor(
    architecture, registers, shared, threads, blocks, limit
) -> None:
    found = occupancy(architecture, registers, shared, threads)
    assert (found.blocks, found.limit) == (blocks, limit)
    warps = -(-threads // 32)
    assert found.percent == pytest.approx(100 * blocks * warps / LIMITS[architecture].warps)


def test_more_registers_never_allow_more() -> None:
    for architecture in LIMITS:
        percents = [occupancy(architecture, n, 0, 256).percent for n in range(16, 256)]
        assert percents[0] == 100
        assert percents == sorted(percents, reverse=True)


PTX = """
.visible .entry _ZN2dr4cuda6run_opINS0_8FoldLackEEEvT_(
.param .align 8 .b8 _ZN2dr4cuda6run_opINS0_8FoldLackEEEvT__param_0[72]
)
.maxntid 256, 1, 1
{
.visible .entry _ZN2dr4cuda9run_tiledILi9EEEvNS0_9ShiftCostE(
.param .align 8 .b8 a[72]
)
.maxntid 32, 4, 1
.minnctapersm 6
{
"""
LOG = """
ptxas info    : Compiling entry function '_ZN2dr4cuda6run_opINS0_8FoldLackEEEvT_' for 'sm_90'
ptxas info    : Function properties for _ZN2dr4cuda6run_opINS0_8FoldLackEEEvT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
ptxas info    : Compiling entry function '_ZN2dr4cuda9run_tiledILi9EEEvNS0_9ShiftCostE' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 5120 bytes smem
"""


def test_no_kernel_hides_another_of_its_name() -> None:
    """A fused kernel is named after its first op alone; here the first of two spills."""
    quiet = LOG.replace("Used 40", "Used 48")
    spilling = LOG.replace("0 bytes spill stores, 0", "16 bytes spill stores, 12")
    found = resources.read_log(spilling + quiet)["FoldLack"]
    assert (found.registers, found.spills) == (48, 28)


def test_the_table_of_hot_kernels(capsys) -> None:
    threads = resources.read_threads(PTX)
    assert threads == {"FoldLack": 256, "ShiftCost tiled 9": 128}
    resources.print_occupancy({"90": resources.read_log(LOG)}, threads)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # 1280 registers per warp allow 12 warps in each quarter of a multiprocessor: six blocks.
    assert lines[-2] == ["FoldLack", "256", "75", "r"]
    assert lines[-1] == ["ShiftCost", "tiled", "9", "128", "38", "r"]


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN2dr4cuda6run_opINS0_8FoldLackEEEvT_", "FoldLack"),
        (
            "_ZN2dr4cuda12run_featuresINS0_4BothINS0_17FeatureDifferenceENS2_INS0_21AddSmoothness"
            "GradientENS0_15AddFoldGradientEEEEEEEvT_",
            "FeatureDifference +",
        ),
        (
            "_ZN2dr4cuda6run_opINS0_13SmoothColumnsINS0_16WeightedProductsEEEEEvT_",
            "SmoothColumns WeightedProducts",
        ),
        (
            "_ZN2dr4cuda17run_smooth_planesINS0_8AdamStepEEEvNS0_12SmoothPlanesIT_EE",
            "SmoothPlanes AdamStep",
        ),
        ("_ZN2dr4cuda9run_tiledILi9EEEvNS0_9ShiftCostE", "ShiftCost tiled 9"),
        ("_Z5probev", "_Z5probev"),
    ],
)
def test_names_of_kernels(mangled: str, name: str) -> None:
    assert resources.op_name(mangled) == name


def test_every_architecture_of_the_check_has_limits() -> None:
    script = Path(resources.__file__).with_name("check.sh").read_text("utf-8")
    (line,) = [line for line in script.splitlines() if line.startswith("architectures=(")]
    assert set(line.partition("(")[2].rstrip(")").split()) == LIMITS.keys()
