"""Where C and C++ programs find the libraries: ``python -m dinoreg_kernels --cmake-dir``."""

from __future__ import annotations

import argparse

from ._errors import KernelUnavailable
from ._library import library_file

_PARTS = {
    "library": ("libdinoreg.so.1", "print the path of libdinoreg; libdinoreg_host is beside it"),
    "include-dir": ("include", "print the folder of the headers"),
    "cmake-dir": ("cmake", "print the folder for CMake's dinoreg_DIR or CMAKE_PREFIX_PATH"),
    "pkgconfig-dir": ("pkgconfig", "print the folder for PKG_CONFIG_PATH"),
}


def main() -> None:
    """Print the path that the option names."""
    parser = argparse.ArgumentParser(prog="python -m dinoreg_kernels", description=__doc__)
    options = parser.add_mutually_exclusive_group(required=True)
    for option, (name, text) in _PARTS.items():
        options.add_argument(
            f"--{option}", dest="name", action="store_const", const=name, help=text
        )
    name = parser.parse_args().name
    try:
        path = library_file().parent / name
    except KernelUnavailable as error:
        parser.exit(1, f"{error}\n")
    if not path.exists():
        parser.exit(1, f"{path} does not exist; install the package with `pip install .`\n")
    print(path)


if __name__ == "__main__":
    main()
