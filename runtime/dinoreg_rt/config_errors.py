"""What is said of a wrong parameter: which it is, what came and what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(
    error: ValidationError,
    model: type[BaseModel],
    values: Mapping[str, Any],
    spelled: Mapping[str, str],
) -> str:
    """All faults of `values` in one line.

    Args:
        error: that `model` raised.
        model: the configuration.
        values: that it was made from.
        spelled: how the user writes a parameter, where it isn't ``name =``: ``--name``.
    """
    fields = model.model_json_schema()["properties"]
    lines = []
    for problem in error.errors():
        key = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown option '{key}'; known are: {', '.join(model.model_fields)}")
            continue
        own = problem["type"] == "value_error"  # a check of ours, which says what is wrong itself
        reason = str(problem["ctx"]["error"]) if own else f"wanted {_wanted(fields[key])}"
        lines.append(f"{spelled.get(key, f'{key} =')} {_text(values[key])}: {reason}")
    return "; ".join(dict.fromkeys(lines))  # two wrong numbers of one list are one fault


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
    return f"{value:.15g}" if isinstance(value, float) else str(value)
