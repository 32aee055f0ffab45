"""Entry point of the command line: finds the command, turns errors into messages and exit codes.

Command modules are imported when they are called for, so that ``--help`` and ``--version`` answer
at once; they pull in NumPy and SimpleITK.
"""

from __future__ import annotations

import errno
import importlib
import json
import sys
from contextlib import suppress
from typing import Any, NamedTuple, cast

import rich_click as click
from click.exceptions import Exit

from ..console.interruption import Terminated, signals_as_exceptions
from ..console.stdout import discard_unwritable
from ..errors import (
    EXIT_CODES,
    DeviceError,
    DinoregError,
    OutputError,
    ResourceError,
    is_for_want_of_memory,
)


class _Entry(NamedTuple):
    """A command that is not imported yet; `module` defines it under its own name."""

    module: str
    help: str


_COMMANDS = {
    "run": _Entry("dinoreg_rt.commands.run", "Register a moving image to a fixed image."),
    "apply": _Entry("dinoreg_rt.commands.apply", "Apply transforms to an image, labels or points."),
    "evaluate": _Entry("dinoreg_rt.commands.evaluate", "Score registrations: Dice, HD95, TRE."),
    "bench": _Entry("dinoreg_rt.commands.bench", "Measure registrations on this machine."),
    "models": _Entry("dinoreg_rt.commands.models", "List and check the encoders that are there."),
    "probe": _Entry("dinoreg_rt.commands.probe", "Find an encoder's best layer for your images."),
    "sweep": _Entry("dinoreg_rt.commands.sweep", "Compare configurations: accuracy, time."),
    "doctor": _Entry("dinoreg_rt.commands.doctor", "Show what this machine can do, and what not."),
    "export": _Entry("", "Make encoders: DINOv3, DINOv2 checkpoints to ONNX and to TensorRT."),
}
#: Entry points of commands that live in other packages: this one doesn't import them.
_PLUGINS = "dinoreg_rt.commands"

#: Shown below the help of the commands. The blank lines keep the help renderer from joining lines.
EXIT_CODE_TEXT = "\n\n".join(
    ["Exit codes:", *(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items())]
)


class LazyGroup(click.RichGroup):
    """A group that imports a command only when it runs, and reports what it raises."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the workflow, not of the alphabet."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A stub that carries the name and the help line; `resolve_command` loads the real one."""
        entry = _COMMANDS.get(cmd_name)
        return click.RichCommand(name=cmd_name, help=entry.help) if entry else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the module of the command that is about to run."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in _COMMANDS:
            command = _load(name)
        return name, command, rest

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Notes early whether errors must be printed as JSON: parsing may be what fails."""
        ctx.meta["dinoreg.json"] = _wants_json(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every error a user can meet becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except (Exit, click.Abort):
            raise  # how click itself ends a command: nothing went wrong, or Ctrl-C at a prompt
        except click.ClickException as error:
            _print_json(ctx, error, error.exit_code, error.format_message())
            raise  # click prints it, with the usage line
        except (Exception, KeyboardInterrupt) as error:
            code, message = explain(error)
            _print_json(ctx, error, code, message)
            if code == DinoregError.exit_code and not isinstance(error, DinoregError):
                raise  # a fault of ours: its traceback is what a report needs
            _print_error(message)
            raise Exit(code) from error


def _load(name: str) -> click.Command:
    entry = _COMMANDS[name]
    if entry.module:
        return cast(click.Command, getattr(importlib.import_module(entry.module), name))
    from importlib.metadata import entry_points

    for point in entry_points(group=_PLUGINS, name=name):
        return cast(click.Command, point.load())
    raise DeviceError(
        f"the command '{name}' is not installed; install the package with pip instead of running "
        "it from the source folder"
    )


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an exception; code 1 for one that nobody foresaw."""
    if isinstance(error, DinoregError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted; {_kept(error)}"
    if isinstance(error, MemoryError):
        return ResourceError.exit_code, (
            f"out of memory{f' ({error})' if str(error) else ''}; a smaller "
            "--working-megavoxels or a larger --control-spacing-mm needs less (see --dry-run)"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" for {error.filename}" if error.filename else ""
        return OutputError.exit_code, f"no space left on the device{place}; free some"
    if isinstance(error, ImportError) and is_for_want_of_memory(error):
        return ResourceError.exit_code, f"out of memory while a library was loaded ({error})"
    return DinoregError.exit_code, f"unexpected {type(error).__name__}: {error}"


def _kept(error: BaseException) -> str:
    """What is there although the command was stopped: the notes that it left on its way."""
    return "; ".join(getattr(error, "__notes__", [])) or "nothing was written"


def _wants_json(args: list[str]) -> bool:
    """Whether stdout is to be JSON: ``--json`` alone or ``--json -``, but not ``--json FILE``."""
    if "--json" not in args:
        return False
    following = args[args.index("--json") + 1 :]
    return not following or following[0].startswith("-")


def _print_json(ctx: click.Context, error: BaseException, code: int, message: str) -> None:
    if not ctx.meta.get("dinoreg.json"):
        return
    problem = {"type": type(error).__name__, "message": message}
    document = {"status": "error", "exit_code": code, "error": problem}
    with suppress(OSError):  # stdout may be what went wrong
        click.echo(json.dumps(document, indent=2))


def _print_error(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    # soft_wrap: a terminal wraps by itself, and a log or a grep wants one line.
    with suppress(OSError):  # the terminal may be gone: the exit code still says it
        console.print(Text.assemble(("Error: ", "bold red"), (message, "red")), soft_wrap=True)


def _print_version(ctx: click.Context, _: click.Parameter, *values: bool) -> None:
    if not any(values) or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"dinoreg-rt {version('dinoreg-rt')}")
    except PackageNotFoundError:
        click.echo("dinoreg-rt (not installed)")
    ctx.exit()


_EPILOG = f"""Example:

dinoreg-rt run -f fixed.nii.gz -m moving.nii.gz -o result

{EXIT_CODE_TEXT}"""


@click.group(
    cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Registration of 3D medical images (CT, MR): fast, on CPUs and GPUs, without torch.

    Coordinates are LPS millimetres; transforms map points of the fixed image to points of the
    moving image, as in ITK.
    """


def main() -> None:
    """The `dinoreg-rt` executable."""
    try:
        with signals_as_exceptions():
            code = cli.main(prog_name="dinoreg-rt", standalone_mode=False)
    except click.Abort:
        _print_error("interrupted; nothing was written")
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except OSError as error:  # stdout is full already for the help
        code, message = explain(error)
        if code == DinoregError.exit_code:
            raise
        _print_error(message)
    except Terminated as error:
        code = error.code
        how = EXIT_CODES[code].partition(" (")[0]
        _print_error(f"{how}; {_kept(error)}")
    discard_unwritable()
    sys.exit(code if isinstance(code, int) else 0)
