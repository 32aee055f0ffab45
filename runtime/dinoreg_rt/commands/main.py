"""The `dinoreg-rt` entry point: finds commands, and turns errors into messages and exit codes.

Command modules are imported only when they run, because they pull in NumPy and SimpleITK:
``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import sys
from collections import Counter
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

#: New objects between two searches for cycles of garbage. Most objects of a command are those of
#: modules, and they stay: with Python's 700 the searches took a thirtieth of a whole run.
_GC_THRESHOLD = 50_000


class _Entry(NamedTuple):
    """A command that has not been imported; `module` defines it under the command's name."""

    module: str
    help: str


_COMMANDS = {
    "run": _Entry("dinoreg_rt.commands.run", "Register a moving image to a fixed image."),
    "cohort": _Entry("dinoreg_rt.commands.cohort", "Register and score many pairs."),
    "apply": _Entry("dinoreg_rt.commands.apply", "Apply transforms to an image, labels or points."),
    "evaluate": _Entry("dinoreg_rt.commands.evaluate", "Score registrations by labels or points."),
    "bench": _Entry("dinoreg_rt.commands.bench", "Time registrations on this machine."),
    "models": _Entry("dinoreg_rt.commands.models", "List and check the installed encoders."),
    "probe": _Entry("dinoreg_rt.commands.probe", "Find the encoder layer that suits your images."),
    "sweep": _Entry("dinoreg_rt.commands.sweep", "Compare settings by accuracy and time."),
    "doctor": _Entry("dinoreg_rt.commands.doctor", "Check this machine and its libraries."),
    "export": _Entry("", "Turn DINOv3 and DINOv2 checkpoints into encoders (ONNX, TensorRT)."),
}
#: Entry-point group of the commands that live in other packages, which this one does not import.
_PLUGINS = "dinoreg_rt.commands"

#: Shown below each command's help. The blank lines keep the renderer from joining lines.
EXIT_CODE_TEXT = "\n\n".join(
    ["Exit codes:", *(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items())]
)


class LazyGroup(click.RichGroup):
    """A group that imports a command only when it runs, and reports the errors it raises."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the workflow instead of the alphabet."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a stub with name and help line; `resolve_command` loads the real command."""
        entry = _COMMANDS.get(cmd_name)
        return click.RichCommand(name=cmd_name, help=entry.help) if entry else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Replace the stub of the command that is about to run by the command itself."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in _COMMANDS:
            command = _load(name)
            _refuse_repeated(command, name, ctx, rest)
        return name, command, rest

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether errors must be printed as JSON, before parsing, which may itself fail."""
        ctx.meta["dinoreg.json"] = _wants_json(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and turn foreseeable errors into messages and exit codes."""
        try:
            return super().invoke(ctx)
        except (Exit, click.Abort):
            raise  # click's own way of ending a command: success, or Ctrl-C at a prompt
        except click.ClickException as error:
            _print_json(ctx, error, error.exit_code, error.format_message())
            raise  # click prints it, with the usage line
        except (Exception, KeyboardInterrupt) as error:
            code, message = explain(error)
            _print_json(ctx, error, code, message)
            if code == DinoregError.exit_code and not isinstance(error, DinoregError):
                raise  # a bug of ours: a report needs its traceback
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


def _refuse_repeated(
    command: click.Command, name: str, parent: click.Context, args: list[str]
) -> None:
    """Refuse an option that takes one value and is given twice: click would take the last.

    Raises:
        click.UsageError: one is.
    """
    # Faults of other kinds are left to the parser that runs next.
    context = click.Context(command, parent=parent, info_name=name, resilient_parsing=True)
    _, rest, order = command.make_parser(context).parse_args(list(args))
    counts = Counter(param for param in order if isinstance(param, click.Option))
    for option, count in counts.items():
        switch = option.is_flag and not option.secondary_opts
        if count > 1 and not (option.multiple or option.count or switch):
            text = f"{option.opts[-1]} is given {count} times; give it once"
            raise click.UsageError(text, click.Context(command, parent=parent, info_name=name))
    if isinstance(command, click.Group) and rest:
        inner = command.get_command(context, rest[0])
        if inner is not None:
            _refuse_repeated(inner, rest[0], context, rest[1:])


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and message of an exception; an unforeseen one has code 1."""
    if isinstance(error, DinoregError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted; {_kept(error)}"
    if isinstance(error, MemoryError):
        return ResourceError.exit_code, (
            f"out of memory{f' ({error})' if str(error) else ''}; a smaller --working-megavoxels "
            "or a larger --control-spacing-mm needs less (--dry-run tells how much)"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" for {error.filename}" if error.filename else ""
        return OutputError.exit_code, f"no space left on the device{place}; free some space"
    if isinstance(error, ImportError) and is_for_want_of_memory(error):
        return ResourceError.exit_code, f"out of memory while loading a library ({error})"
    return DinoregError.exit_code, f"unexpected {type(error).__name__}: {error}"


def _kept(error: BaseException) -> str:
    """Return what remains of an interrupted command's work, as told by the exception's notes."""
    return "; ".join(getattr(error, "__notes__", [])) or "nothing was written"


def _wants_json(args: list[str]) -> bool:
    """Return whether stdout is JSON: ``--json`` alone or ``--json -``, but not ``--json FILE``."""
    if "--json" not in args:
        return False
    following = args[args.index("--json") + 1 :]
    return not following or following[0].startswith("-")


def _print_json(ctx: click.Context, error: BaseException, code: int, message: str) -> None:
    if not ctx.meta.get("dinoreg.json"):
        return
    problem = {"type": type(error).__name__, "message": message}
    document = {"status": "error", "exit_code": code, "error": problem}
    with suppress(OSError):  # stdout itself may have failed
        click.echo(json.dumps(document, indent=2))


def _print_error(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    # soft_wrap: a terminal wraps lines by itself, and logs are easier to search unwrapped.
    with suppress(OSError):  # the terminal may be gone; the exit code remains
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
    """Register 3D medical images (CT, MR) quickly, on CPUs and GPUs, without torch.

    'dinoreg-rt COMMAND --help' explains each command; 'dinoreg-rt run' registers two images.

    Coordinates are in LPS millimetres. As in ITK, transforms map points of the fixed image to
    points of the moving image.
    """


def main() -> None:
    """The `dinoreg-rt` executable."""
    gc.set_threshold(_GC_THRESHOLD)
    try:
        with signals_as_exceptions():
            code = cli.main(prog_name="dinoreg-rt", standalone_mode=False)
    except click.Abort:
        _print_error("interrupted; nothing was written")
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except OSError as error:  # stdout could not even take the help
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
