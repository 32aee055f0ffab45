"""Command-line options derived from the fields of `RegistrationConfig`.

Each field becomes an option with the field's name; its help is the field's description and
default, its type the field's annotation. The model checks the ranges.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import rich_click as click
from pydantic.fields import FieldInfo

from ..config.files import preset_names
from ..config.parameters import RegistrationConfig

Command = TypeVar("Command", bound=Callable[..., Any])

#: Panels of the help that several commands have.
INPUTS, OUTPUT, REPORTING = "Inputs", "Output", "Reporting"
#: Help of ``--pairs`` and ``--data``.
PAIRS_HELP = (
    "CSV file with columns pair, fixed, moving and, optionally, kind, fixed_label, moving_label, "
    "fixed_points, moving_points and mask."
)
DATA_HELP = "Folder that the table's paths are relative to. [default: the table's folder]"
_LONGEST_METAVAR = 40
#: Panels of the help and the parameters in each.
_PANELS = {
    "Machine": "device threads gpu_memory_gb",
    "Initial alignment": "initial linear",
    "Images": "orientation fixed_modality moving_modality body_mask ct_window_hu mr_percentile "
    "working_megavoxels",
    "Encoder": "encoder encoder_depth engine token_grid slice_padding slice_scale "
    "slice_stride slice_spacing_mm axis encoder_ct_window_hu encoder_normalisation "
    "token_memory_gb cache cache_gb",
    "Encoder features": "components layers token_centre token_scale token_smoothing_mm "
    "position_components mind_weight search_features refinement_features",
    "MIND-SSC and intensities": "mind_radius_mm mind_dilation_mm intensity intensity_windows_mm "
    "intensity_scale feature_scale",
    "Search": "search_spacing_mm search_radius_mm search_levels search_trust_cost cost_smoothing "
    "field_smoothing coupling search_memory_mb inverse_consistency_rounds",
    "Refinement": "control_spacing_mm iterations learning_rate_mm adam_epsilon smoothing_mm "
    "smoothness feature_weight feature_similarity correlation_weight correlation_window_mm "
    "correlation_noise trust_cost fold_penalty fold_margin transform",
    OUTPUT: "inverse confidence trust",
}
#: Parameters that ``--help`` shows; ``--help-all`` shows the others too.
_COMMON = {"device", "threads", "initial", "encoder", "transform"}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names.split()}


class FilePath(click.Path):
    """A path that need not exist, but is not empty, as it would be from an unset variable.

    Missing files are reported later, by messages and an exit code that say more than click's.
    """

    def __init__(self, *, allow_dash: bool = False) -> None:
        super().__init__(path_type=Path, allow_dash=allow_dash)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as click does, but refuse an empty path, which would mean the working folder."""
        if not os.fspath(value):
            self.fail("the path is empty; name a file or folder", param, ctx)
        return super().convert(value, param, ctx)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas, such as ``0.003,0.01,0.03``.

    Raises:
        click.BadParameter: the text is anything else.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(
            f"'{text}' is not a list of numbers; give numbers separated by commas, such as 0.5,1"
        ) from error


def parse_names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas, such as ``encoder,mind``; the model checks them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_gigabytes(text: str) -> float:
    """Parse an amount of memory, such as ``8GB``, ``512MB`` or ``8``, in GB of 2^30 bytes.

    Raises:
        click.BadParameter: the text is anything else.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*(?:([MGT])i?B?)?\s*", text, re.IGNORECASE)
    try:
        if found is not None:
            return float(found[1]) * 1024.0 ** ("MGT".index((found[2] or "G").upper()) - 1)
    except ValueError:
        pass
    raise click.BadParameter(f"'{text}' is not an amount of memory; give one such as 8GB or 512MB")


#: Option ``--orientation`` of commands that have no other parameters.
orientation_option = click.option(
    "--orientation",
    type=click.Choice(["auto", "sform", "qform"]),
    default="auto",
    show_default=True,
    panel=INPUTS,
    help="Which placement of a NIfTI header counts where its sform and its qform differ; auto "
    "takes the sform unless it is sheared.",
)

#: Options whose name and type do not follow from their field.
_OWN = {"gpu_memory_gb": ("--gpu-memory", {"type": parse_gigabytes, "metavar": "SIZE"})}


def config_options(command: Command) -> Command:
    """Decorate a command with ``--preset``, ``--config`` and an option for each parameter.

    The options of parameters are None where they are not given.
    """
    return some_config_options(RegistrationConfig.model_fields)(command)


def some_config_options(names: Container[str]) -> Callable[[Command], Command]:
    """Decorate a command with ``--preset``, ``--config`` and options for these parameters alone."""

    def decorate(command: Command) -> Command:
        command = _help_all(command)
        for name, field in reversed(RegistrationConfig.model_fields.items()):
            if name in names:
                command = _option(name, field)(command)
        command = path_option(
            "--config",
            "config_file",
            panel="Parameters",
            help="TOML file of parameters, which override those of the preset.",
        )(command)
        return click.option(
            "--preset",
            metavar="NAME",
            panel="Parameters",
            help=f"Predefined set of parameters: {', '.join(preset_names())}.",
        )(command)

    return decorate


def _help_all(command: Command) -> Command:
    """Decorate a command with ``--help-all``, which also shows the hidden options."""
    return click.option(
        "--help-all",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_all_help,
        help="Show the help with all options, parameters of the method included, and exit.",
    )(command)


def _print_all_help(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if not wanted or ctx.resilient_parsing:
        return
    # An option without a text exists only for its error message.
    hidden = [p for p in ctx.command.params if isinstance(p, click.Option) and p.hidden and p.help]
    for option in hidden:
        option.hidden = False
    try:
        click.echo(ctx.get_help(), color=ctx.color)
    finally:
        for option in hidden:
            option.hidden = True
    ctx.exit()


def path_option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """Decorate a command with an option that takes a path; `settings` are click's."""
    return click.option(*names, type=FilePath(), **settings)


def json_option(content: str) -> Callable[[Command], Command]:
    """Decorate a command with ``--json``, which prints `content` on stdout."""
    text = f"Print {content} as JSON on stdout."
    return click.option("--json", "as_json", is_flag=True, panel=REPORTING, help=text)


def quiet_option(command: Command) -> Command:
    """Decorate a command with ``--quiet``."""
    text = "Print only results and errors."
    return click.option("-q", "--quiet", is_flag=True, panel=REPORTING, help=text)(command)


def given_config(options: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that were given on the command line, from all of its options."""
    return {
        name: options[name]
        for name in RegistrationConfig.model_fields
        if options.get(name) is not None
    }


def read_config(options: dict[str, Any], **defaults: Any) -> RegistrationConfig:
    """Make the configuration from preset, ``--config`` and options, each overriding the former.

    Args:
        options: all options of the command.
        defaults: the command's own values, which override the preset and the file but no option.

    Raises:
        ConfigError: see `RegistrationConfig.from_sources`; messages name the options.
    """
    given = given_config(options)
    spelled = {name: _flag(name) for name in given}
    return RegistrationConfig.from_sources(
        options["preset"], options["config_file"], defaults | given, spelled
    )


def _flag(name: str) -> str:
    return _OWN[name][0] if name in _OWN else "--" + name.replace("_", "-")


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    flag, own = _flag(name), _OWN.get(name, ("", {}))[1]
    settings: dict[str, Any] = {
        "default": None,
        "panel": _PANEL_OF[name],
        "hidden": name not in _COMMON,
        "help": _help(field),
    }
    if field.annotation is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    else:
        settings |= own or _type_of(field.annotation)
        names = getattr(settings.get("type"), "choices", ())
        if len("|".join(names)) > _LONGEST_METAVAR:  # the line would break inside a name
            settings["metavar"] = "NAME"
            settings["help"] = _help(field, f" One of {', '.join(names)}.")
    return click.option(flag, name, **settings)


def _type_of(annotation: Any) -> dict[str, Any]:
    """Return click's settings for an annotated type: plain, choice, tuple, list, or None."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(a for a in get_args(annotation) if a is not NoneType)
    if get_origin(annotation) is Literal:
        return {"type": click.Choice([str(choice) for choice in get_args(annotation)])}
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        kind = _plain(parts[0])
        if parts[-1] is Ellipsis:
            parse = parse_numbers if kind in (int, float) else parse_names
            return {"type": parse, "metavar": "A,B,..."}
        names = "ROWS COLUMNS" if kind is int else "LOW HIGH"
        return {"type": kind, "nargs": len(parts), "metavar": names}
    if annotation in (int, float, str):
        return {"type": annotation}
    raise TypeError(f"no command-line option for a configuration field of type {annotation!r}")


def _plain(annotation: Any) -> Any:
    """Return the type without the bounds that `Annotated` adds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _help(field: FieldInfo, more: str = "") -> str:
    sentence = _sentence(field.description or "") + more
    # Where the default depends on the images, the description gives it.
    return sentence if field.default is None else f"{sentence} [default: {_text(field.default)}]"


def _sentence(text: str) -> str:
    # A value at the beginning, as in "auto, cpu or cuda:N", stays as it has to be typed.
    begin = text[:1] if re.match(r"\w+[,:]", text) else text[:1].upper()
    return f"{begin}{text[1:]}." if text else ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
