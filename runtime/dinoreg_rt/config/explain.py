"""What is said of a wrong parameter: which it is, what came and what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Origin:
    """Where the values of a configuration come from, for messages.

    Attributes:
        spelled: how the user writes a parameter, where it isn't ``name =``: ``--name``.
        files: the file that a parameter was read from, where it was.
    """

    spelled: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def check_kind(value: Any, annotation: Any) -> Any:
    """The value as it came, unless pydantic would make another kind of it: a number of ``"1"`` or
    true, a truth value of ``"yes"`` or 1.

    Raises:
        PydanticCustomError: it would.
    """
    kinds = _kinds(annotation)
    if bool in kinds:
        fits = isinstance(value, bool | np.bool_)
    elif str in kinds or Literal in kinds:
        return value  # pydantic makes nothing else of these
    elif _of_names(annotation):
        fits = value is None or isinstance(value, list | tuple)  # not one string's letters
    else:
        parts = value if isinstance(value, list | tuple) else [value]
        fits = not any(isinstance(part, str | bytes | bool | np.bool_) for part in parts)
    if not fits:
        raise PydanticCustomError("other_kind", "a value of another kind")
    return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that a field may have: of ``float | None`` both, of ``Literal[...]`` Literal."""
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {get_origin(annotation) or annotation}


def _of_names(annotation: Any) -> bool:
    """Whether it is a tuple of strings, or one may be given."""
    for part in get_args(annotation):
        if get_origin(part) is tuple:
            element = get_args(part)[0]
            element = get_args(element)[0] if get_origin(element) is Annotated else element
            return element is str or get_origin(element) is Literal
    return False


def explain(error: ValidationError, model: type[BaseModel], values: Any, origin: Origin) -> str:
    """All faults of `values` in one line.

    Args:
        error: that `model` raised.
        model: the configuration.
        values: that it was made from.
        origin: of the values.
    """
    if not isinstance(values, Mapping):
        return f"a configuration is made of names and values; got {type(values).__name__}"
    fields = model.model_json_schema()["properties"]
    lines = []
    for problem in error.errors():
        key = str(problem["loc"][0])
        where = f"{origin.files[key]}: " if key in origin.files else ""
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}unknown option '{key}'; {_nearest(key, model)}")
            continue
        own = problem["type"] == "value_error"  # a check of ours, which says what is wrong itself
        reason = str(problem["ctx"]["error"]) if own else f"wanted {_wanted(fields[key])}"
        name = origin.spelled.get(key, f"{key} =")
        lines.append(f"{where}{name} {_text(values[key])}: {reason}")
    return "; ".join(dict.fromkeys(lines))  # two wrong numbers of one list are one fault


def _nearest(key: str, model: type[BaseModel]) -> str:
    near = get_close_matches(key.replace("-", "_"), model.model_fields, n=1)
    return f"did you mean {near[0]}?" if near else "'dinoreg-rt run --help' lists them"


def _wanted(schema: Mapping[str, Any]) -> str:
    """A field's JSON schema in words."""
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
