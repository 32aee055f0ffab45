"""Command-line options made from `RegistrationConfig`, so that no parameter is written down twice.

A new field of the configuration appears as an option by itself: the name is the field's, the help
its description and default, the type its annotation. Ranges are checked by the model.
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

from ..config import RegistrationConfig
from ..demands import OF_AN_ENCODER

Command = TypeVar("Command", bound=Callable[..., Any])

_OTHER_PANEL = "Parameters"
_LONGEST_METAVAR = 40
_PANELS = {
    "Machine": ("device", "threads", "gpu_memory_gb"),
    "Start": ("initial", "linear"),
    "Images": (
        "fixed_modality",
        "moving_modality",
        "body_mask",
        "ct_window_hu",
        "mr_percentile",
        "working_megavoxels",
    ),
    "Encoder": (
        "encoder",
        "engine",
        *OF_AN_ENCODER,
        "token_memory_gb",
        "cache",
        "cache_gb",
    ),
    "Features": (
        "search_features",
        "refinement_features",
        "mind_radius_mm",
        "mind_dilation_mm",
        "intensity",
        "intensity_windows_mm",
        "intensity_scale",
        "feature_scale",
    ),
    "Discrete search": (
        "search_spacing_mm",
        "search_radius_mm",
        "search_levels",
        "search_trust_cost",
        "cost_smoothing",
        "field_smoothing",
        "search_edges",
        "coupling",
        "search_memory_mb",
        "inverse_consistency_rounds",
    ),
    "Refinement": (
        "control_spacing_mm",
        "iterations",
        "learning_rate_mm",
        "adam_epsilon",
        "smoothing_mm",
        "smoothness",
        "feature_weight",
        "feature_similarity",
        "correlation_weight",
        "correlation_window_mm",
        "correlation_noise",
        "trust_cost",
        "fold_penalty",
        "fold_margin",
        "transform",
    ),
    "Output": ("inverse", "confidence", "trust"),
}


class FilePath(click.Path):
    """A path; it need not exist, but an empty one, of an unset variable, is none."""

    def __init__(self, *, allow_dash: bool = False) -> None:
        super().__init__(path_type=Path, allow_dash=allow_dash)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """click's, but for the empty path: that would be the working folder."""
        if not os.fspath(value):
            self.fail("the path is empty; name a file or folder", param, ctx)
        return super().convert(value, param, ctx)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas: ``0.003,0.01,0.03``.

    Raises:
        click.BadParameter: anything else.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(f"'{text}' is not a list of numbers with commas") from error


def parse_names(text: str) -> tuple[str, ...]:
    """Names separated by commas: ``encoder,mind``. The configuration checks them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_gigabytes(text: str) -> float:
    """A size of memory in GB of 2^30 bytes: ``8GB``, ``512MB`` or ``8``.

    Raises:
        click.BadParameter: anything else.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*(?:([MGT])i?B?)?\s*", text, re.IGNORECASE)
    try:
        if found is not None:
            return float(found[1]) * 1024.0 ** ("MGT".index((found[2] or "G").upper()) - 1)
    except ValueError:
        pass
    raise click.BadParameter(f"'{text}' is not a size of memory such as 8GB or 512MB")


#: Options that are not just the name of their field.
_OWN = {"gpu_memory_gb": ("--gpu-memory", {"type": parse_gigabytes, "metavar": "SIZE"})}


def config_options(command: Command) -> Command:
    """Decorator: one option for each field of `RegistrationConfig`, ``None`` when not given."""
    return some_config_options(RegistrationConfig.model_fields)(command)


def some_config_options(names: Container[str]) -> Callable[[Command], Command]:
    """Decorator: the same for the fields among `names` alone; click refuses the others."""

    def decorate(command: Command) -> Command:
        for name, field in reversed(RegistrationConfig.model_fields.items()):
            if name in names:
                command = _option(name, field)(command)
        return command

    return decorate


def given_config(options: dict[str, Any]) -> dict[str, Any]:
    """The configuration values that were given on the command line, out of all its options."""
    return {
        name: options[name]
        for name in RegistrationConfig.model_fields
        if options.get(name) is not None
    }


def read_config(options: dict[str, Any], **defaults: Any) -> RegistrationConfig:
    """The preset, then ``--config``, then options; the later wins, and errors name the options.

    Args:
        options: all of the command's.
        defaults: of the command, where no option is given; they win over presets and files.

    Raises:
        ConfigError: as `RegistrationConfig.from_sources`.
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
        "panel": _panel_of(name),
        "help": _help(field),
    }
    if field.annotation is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    else:
        settings |= own or _type_of(field.annotation)
        names = getattr(settings.get("type"), "choices", ())
        if len("|".join(names)) > _LONGEST_METAVAR:  # it would be broken inside of a name
            settings["metavar"] = "NAME"
            settings["help"] = f"{', '.join(names)}: {_help(field)}"
    return click.option(flag, name, **settings)


def _type_of(annotation: Any) -> dict[str, Any]:
    """click's words for a type: plain, choice, fixed tuple or list of numbers; or None."""
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
    """The type itself, without the bounds that `Annotated` puts on it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _help(field: FieldInfo) -> str:
    sentence = _sentence(field.description or "")
    # Open lengths say in their description what they default to.
    return sentence if field.default is None else f"{sentence} [default: {_text(field.default)}]"


def _panel_of(name: str) -> str:
    return next((panel for panel, names in _PANELS.items() if name in names), _OTHER_PANEL)


def _sentence(text: str) -> str:
    # A description that begins with a value ("auto, ct or mr") keeps the value as it is typed.
    begin = text[:1] if re.match(r"\w+[,:]", text) else text[:1].upper()
    return f"{begin}{text[1:]}." if text else ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
