"""The reference of the HTTP interface, as Markdown and as a page, made from what `/schema` says.

`docs/api.md` is this for a server with everything switched on (`make docs` renews it), and
`/schema/docs` for the server that is asked: plain HTML that needs no script and no other server.
"""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from markdown_it import MarkdownIt

_Json = Mapping[str, Any]

_PREFACE = """\
Made from the server's own description of itself, which is at `/schema` as OpenAPI 3.1 and at
`/schema/docs` as this page. `/` is a page to try the models.

An `{id}` has one part or two: `name`, or `owner/name`. A key is sent as `Authorization: Bearer
KEY`: an ApiKey is one of `--api-key-file`, the AdminKey that of `--admin-key-file`. Without the
first file no key is needed; without the second there are no routes below `/admin`.
"""
#: A bound like this is as good as none.
_NO_BOUND = 2**31 - 1
_OPTIONAL = "optional"
_NOT_IN_A_SLUG = re.compile(r"[^\w\- ]")


def reference(document: _Json) -> str:
    """Markdown: every route, then every body with each field, its range and its default."""
    lines = [f"# {document['info']['title']}: every route and field", "", _PREFACE]
    operations = [
        (f"`{method.upper()} {path.replace('{name}', '{id}')}`", operation)
        for path, methods in document["paths"].items()
        if "{owner}" not in path  # the same with an id of two parts
        for method, operation in methods.items()
    ]
    lines += ["## Routes", "", *_header("route", "")]
    for name, operation in operations:
        lines += [_row(f"[{name}](#{_slug(name)})", _sentence(operation["summary"]))]
    lines += [""]
    for name, operation in operations:
        lines += _operation(name, operation)
    lines += ["## Headers of answers", "", *_headers(document), ""]
    lines += ["## Bodies", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _body(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _slug(heading: str) -> str:
    """What leads to a heading: the same as on GitHub."""
    return _NOT_IN_A_SLUG.sub("", heading.lower()).replace(" ", "-")


def _headers(document: _Json) -> Iterator[str]:
    """Each header once, with the statuses that it comes with."""
    found: dict[tuple[str, str], set[str]] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                for name, header in answer.get("headers", {}).items():
                    found.setdefault((name, header["description"]), set()).add(status)
    everywhere = max(map(len, found.values()))
    yield from _header("header", "status", "meaning")
    for (name, meaning), statuses in found.items():
        where = "all" if len(statuses) == everywhere else ", ".join(sorted(statuses))
        yield _row(f"`{name}`", where, meaning)


def _operation(name: str, operation: _Json) -> Iterator[str]:
    yield from (f"### {name}", "", _sentence(operation["summary"]), "")
    if text := operation.get("description"):
        yield from (text, "")
    for key in operation.get("security", ()):
        yield from (f"Takes a key: {', '.join(key)}.", "")
    parameters = operation.get("parameters", ())
    if parameters:
        yield from _header("parameter", "in", "type", "default", "meaning")
        for one in parameters:
            schema = one["schema"]
            parameter = "id" if one["name"] == "name" else one["name"]
            default = "required" if one["required"] else _default(schema)
            meaning = _meaning(schema, one.get("description", ""))
            yield _row(f"`{parameter}`", one["in"], _kind(schema), default, meaning)
        yield ""
    if "requestBody" in operation:
        (content,) = operation["requestBody"]["content"].values()
        yield from (f"Body: {_kind(content['schema'])}", "")
    yield from _header("status", "body", "meaning")
    for status, answer in sorted(operation["responses"].items()):
        bodies = [
            f"{_content(content['schema'])} as `{media_type}`"
            for media_type, content in answer.get("content", {}).items()
        ]
        yield _row(status, ", ".join(bodies), answer["description"])
    yield ""


def _content(schema: _Json) -> str:
    """The body of an answer, or of the events in a stream."""
    data = schema.get("properties", {}).get("data")
    if data is None:
        return _kind(schema)
    return f"events of {_kind(data['contentSchema'])}" if "contentSchema" in data else "events"


def _sentence(text: str) -> str:
    return text if text.endswith(("?", ".")) else text + "."


def _body(name: str, schema: _Json) -> Iterator[str]:
    yield from (f"### {name}", "")
    if text := schema.get("description"):
        yield from (inspect.cleandoc(text), "")
    yield from _header("field", "type", "default", "meaning")
    required = schema.get("required", ())
    for field, kind in schema.get("properties", {}).items():
        default = "required" if field in required else _default(kind)
        yield _row(f"`{field}`", _kind(kind), default, _meaning(kind, kind.get("description", "")))
    yield ""


def _meaning(schema: _Json, text: str) -> str:
    examples = ", ".join(f"`{_literal(example)}`" for example in schema.get("examples", ()))
    return f"{text} Example: {examples}." if examples else text


def _default(schema: _Json) -> str:
    return f"`{_literal(schema['default'])}`" if "default" in schema else _OPTIONAL


def _kind(schema: _Json) -> str:
    """A schema in few words: "integer, 1 to 5, or null"."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema or "const" in schema:
        return " or ".join(
            f"`{_literal(one)}`" for one in schema.get("enum", [schema.get("const")])
        )
    # Where both are, `anyOf` is only what msgspec can tell of it.
    for many in ("oneOf", "anyOf"):
        if many in schema:
            return " or ".join(dict.fromkeys(map(_kind, schema[many])))
    kind = schema.get("type", "anything")
    if kind == "array":
        items = _kind(schema.get("items", {}))
        several = " or " in items or " (" in items
        return f"list{_length(schema, 'Items')} of {f'({items})' if several else items}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return "object of " + _kind(schema["additionalProperties"])
    return f"{kind}{_range(schema)}{_length(schema, 'Length', ' characters')}"


def _range(schema: _Json) -> str:
    bounds = []
    for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">")):
        if name in schema:
            bounds.append(f"{sign} {_number(schema[name])}")
    for name, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")):
        if name in schema and schema[name] != _NO_BOUND:
            bounds.append(f"{sign} {_number(schema[name])}")
    return " " + " and ".join(bounds) if bounds else ""


def _length(schema: _Json, of: str, unit: str = "") -> str:
    low, high = schema.get(f"min{of}"), schema.get(f"max{of}")
    if high is not None:
        return f" (up to {high}{unit})" if not low else f" ({low} to {high}{unit})"
    return f" (at least {low}{unit})" if low else ""


def _number(value: float) -> str:
    return "2⁶³-1" if value == 2**63 - 1 else f"{value:g}"


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _header(*names: str) -> tuple[str, str]:
    return _row(*names), "|" + "---|" * len(names)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="{root}playground/reference.css">
<main>
{body}
</main>
</html>
"""


def page(document: _Json, root: str = "../") -> str:
    """The reference as HTML; its style sheet is one of the playground's files.

    `root` leads from the page's address to where the routes begin.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(reference(document))
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", _slug(inline.content))
    body = markdown.renderer.render(tokens, markdown.options, {})
    title = f"{document['info']['title']}: every route and field"
    return _PAGE.format(title=html.escape(title), body=body, root=root)
