"""Messages about wrong parameters: the parameter, the value given and the values allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Origin:
    """Where the values of a configuration come from, for messages.

    Attributes:
        spelled: parameters that the user did not write as ``name =``, and how they were written,
            such as ``--name``.
        files: parameters that were read from a file, and the file.
    """

    spelled: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def check_kind(value: Any, annotation: Any) -> Any:
    """Return the value unchanged, unless pydantic would convert it to another kind.

    Pydantic would take ``"1"`` and true for numbers, and ``"yes"`` and 1 for truth values.

    Raises:
        PydanticCustomError: the value is of another kind than the field.
    """
    import numpy as np

    kinds = _kinds(annotation)
    if bool in kinds:
        fits = isinstance(value, bool | np.bool_)
    elif str in kinds or Literal in kinds:
        return value  # pydantic converts nothing to these
    elif _of_names(annotation):
        fits = value is None or isinstance(value, list | tuple)  # a string would become its letters
    else:
        parts = value if isinstance(value, list | tuple) else [value]
        fits = not any(isinstance(part, str | bytes | bool | np.bool_) for part in parts)
    if not fits:
        raise PydanticCustomError("other_kind", "a value of another kind")
    return value


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that a field may have: for ``float | None`` both, for literals Literal."""
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {get_origin(annotation) or annotation}


def _of_names(annotation: Any) -> bool:
    """Return whether the field may be a tuple of strings."""
    for part in get_args(annotation):
        if get_origin(part) is tuple:
            element = get_args(part)[0]
            element = get_args(element)[0] if get_origin(element) is Annotated else element
            return element is str or get_origin(element) is Literal
    return False


def explain(error: ValidationError, model: type[BaseModel], values: Any, origin: Origin) -> str:
    """Describe all wrong values in one line.

    Args:
        error: raised by `model`.
        model: class of the configuration.
        values: from which the configuration was to be made.
        origin: where the values come from.
    """
    if not isinstance(values, Mapping):
        got = type(values).__name__
        return f"a configuration is made from a mapping of names to values; got {got}"
    fields = model.model_json_schema()["properties"]
    lines = []
    for problem in error.errors():
        key = str(problem["loc"][0])
        where = f"{origin.files[key]}: " if key in origin.files else ""
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}unknown option '{key}'; {_nearest(key, model)}")
            continue
        own = problem["type"] == "value_error"  # one of our validators, with its own message
        reason = str(problem["ctx"]["error"]) if own else f"wanted {_wanted(fields[key])}"
        name = origin.spelled.get(key, f"{key} =")
        lines.append(f"{where}{name} {_text(values[key])}: {reason}")
    return "; ".join(dict.fromkeys(lines))  # two wrong numbers in one list give the same line


def _nearest(key: str, model: type[BaseModel]) -> str:
    near = get_close_matches(key.replace("-", "_"), model.model_fields, n=1)
    return f"did you mean {near[0]}?" if near else "'dinoreg-rt run --help' lists them"


def _wanted(schema: Mapping[str, Any]) -> str:
    """Describe a field's JSON schema in words."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    kind = kinds[0]
    if "enum" in kind:
        *most, last = kind["enum"]
        return f"{', '.join(most)} or {last}"
    if "prefixItems" in kind:
        return f"{len(kind['prefixItems'])} values, each {_wanted(kind['prefixItems'][0])}"
    if kind["type"] == "array":
        least, most = kind.get("minItems", 0), kind.get("maxItems")
        return f"{least} to {most} values, each {_wanted(kind['items'])}"
    if kind["type"] in ("number", "integer"):
        return ("a whole number" if kind["type"] == "integer" else "a number") + _range(kind)
    if kind["type"] == "boolean":
        return "true or false"
    return str(schema["description"])


def _range(kind: Mapping[str, Any]) -> str:
    words = {
        "minimum": "from",
        "exclusiveMinimum": "above",
        "maximum": "up to",
        "exclusiveMaximum": "below",
    }
    return "".join(f" {word} {_text(kind[key])}" for key, word in words.items() if key in kind)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_text(part) for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, float) else str(value)
