"""HTML in which everything is escaped that is not HTML already."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

#: Elements without content.
_VOID = {"input", "img"}


class Html(str):
    """Text that is HTML; any other text is escaped where it is put into HTML."""

    __slots__ = ()


def join(*parts: Any) -> Html:
    """Return the parts one after the other, escaped unless they are `Html`."""
    return Html("".join(_safe(part) for part in parts if part is not None))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Return an element.

    Args:
        name: name of the element.
        children: its content; None is left out.
        attributes: its attributes; ``class_`` is class, ``data_path`` is data-path, False and None
            are left out, and True has no value.
    """
    listed = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{listed}>")
    return Html(f"<{name}{listed}>{join(*children)}</{name}>")


def _safe(part: Any) -> str:
    return str(part) if isinstance(part, Html) else html.escape(str(part), quote=False)


def json_block(name: str, content: Any) -> Html:
    """Return a block of data for the script; nothing in it can end the block."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return tag("script", Html(text), type="application/json", id=name)


def asset(name: str) -> bytes:
    """Return a file of this package."""
    return files(__package__).joinpath(name).read_bytes()


def document(
    template: str,
    *,
    scripts: Sequence[str],
    blocks: Mapping[str, Html],
    allowed: Sequence[str] = (),
) -> str:
    """Fill a template with the style sheet, a script, a content security policy and `blocks`.

    Args:
        template: name of the file.
        scripts: names of the files of which the script consists.
        blocks: values of the template's other names.
        allowed: further scripts that the page may add to itself.
    """
    style = asset("page.css").decode("utf-8")
    code = '"use strict";\n' + "\n".join(asset(name).decode("utf-8") for name in scripts)
    sources = " ".join(_source(text) for text in (code, *allowed))
    policy = (
        f"default-src 'none'; script-src {sources}; style-src {_source(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return Template(asset(template).decode("utf-8")).substitute(
        blocks, style=style, script=code, policy=policy
    )


def _source(text: str) -> str:
    """Return the policy's name for inline text, which is its hash."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
