"""How the shipped library is linked and compiled, read from its ELF file."""

from __future__ import annotations

import struct
import sys

import pytest

from dinoreg_kernels._library import library_file

PT_DYNAMIC, PT_GNU_RELRO, PT_GNU_STACK, PF_X = 2, 0x6474E552, 0x6474E551, 1
DT_NULL, DT_FLAGS, DT_FLAGS_1, DF_BIND_NOW, DF_1_NOW = 0, 30, 0x6FFFFFFB, 8, 1
DF_1_NODELETE = 8

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ELF files are those of Linux")


@pytest.fixture(scope="module")
def elf() -> bytes:
    return library_file().read_bytes()


def segments(elf: bytes) -> dict[int, tuple[int, int, int]]:
    """Return flags, file offset and size of each kind of segment (64 bits, little-endian)."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    (start,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    found = {}
    for i in range(count):
        kind, flags, offset = struct.unpack_from("<IIQ", elf, start + i * size)
        (length,) = struct.unpack_from("<Q", elf, start + i * size + 32)
        found[kind] = flags, offset, length
    return found


def dynamic(elf: bytes) -> dict[int, int]:
    """Return the entries of the dynamic section that occur once."""
    _, offset, length = segments(elf)[PT_DYNAMIC]
    return dict(struct.iter_unpack("<QQ", elf[offset : offset + length]))


def test_full_relro(elf):
    """All symbols are bound on loading, and their table is read-only afterwards."""
    assert PT_GNU_RELRO in segments(elf)
    tags = dynamic(elf)
    assert tags.get(DT_FLAGS, 0) & DF_BIND_NOW or tags.get(DT_FLAGS_1, 0) & DF_1_NOW


def test_code_of_the_threads_stays(elf):
    """The library is never unloaded, because its threads wait in it."""
    assert dynamic(elf).get(DT_FLAGS_1, 0) & DF_1_NODELETE


def test_stack_is_guarded_and_not_executable(elf):
    assert not segments(elf)[PT_GNU_STACK][0] & PF_X
    assert b"\0__stack_chk_fail\0" in elf


def test_fortified_calls(elf):
    """The messages are formatted by the C library's checking function (glibc)."""
    assert b"\0__vsnprintf_chk\0" in elf
