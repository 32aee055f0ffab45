"""Values of parameters as people type them in a table or behind ``--grid``."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_origin

from ..errors import ConfigError
from .parameters import RegistrationConfig


def parse_value(name: str, text: str, where: str) -> Any:
    """Return the value of a parameter; the model checks its range.

    Args:
        name: the parameter.
        text: ``default``, or a number, a name, ``true`` or ``false``, or several with colons
            between them, such as ``80:40``.
        where: the beginning of error messages.

    Raises:
        ConfigError: the text is of another kind than the parameter.
    """
    field = RegistrationConfig.model_fields[name]
    if text == "default":
        return field.default
    annotation = field.annotation
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    if get_origin(annotation) is tuple or any(get_origin(kind) is tuple for kind in kinds):
        return [_number(part, f"{where} {name}") for part in text.split(":")]
    if float in kinds or int in kinds:
        return _number(text, f"{where} {name}")
    if bool in kinds:
        if text not in ("true", "false"):
            raise ConfigError(
                f"{where} {name}: '{text}' is neither true nor false; give one of them"
            )
        return text == "true"
    return text


def text_of(value: Any) -> str:
    """Return a value as the text that `parse_value` reads."""
    if isinstance(value, list | tuple):
        return ":".join(text_of(part) for part in value)
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(text: str, where: str) -> float | int:
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"{where}: '{text}' is not a number; give numbers") from error
    return int(value) if value.is_integer() else value
