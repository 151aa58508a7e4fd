"""The API's document as one page that a person reads: pure, from the OpenAPI document alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")


def render_api_page(document: dict[str, Any], *, document_path: str) -> tuple[str, str]:
    """`document` is an OpenAPI 3.1 document of ours; its texts are escaped. Returns title and content."""
    title = escape(document["info"]["title"])
    operations = [
        (method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in sorted(operations.items(), key=lambda pair: _METHODS.index(pair[0]))
    ]
    toc = "\n".join(
        f'<li><a href="#{_anchor(method, path)}"><code>{method.upper()} {escape(path)}</code></a></li>'
        for method, path, _ in operations
    )
    schemas = document.get("components", {}).get("schemas", {})
    body = f"""<h1>{title} <span class="note">{escape(document["info"]["version"])}</span></h1>
{_prose(document["info"].get("description", ""))}
<p>The same for programs: <a href="{escape(document_path)}"><code>{escape(document_path)}</code></a> (OpenAPI 3.1).</p>
<nav aria-label="Calls"><ul class="calls">
{toc}
</ul></nav>
{"".join(_render_operation(method, path, operation, schemas) for method, path, operation in operations)}
<h2>Shapes</h2>
{"".join(_render_shape(name, schema) for name, schema in schemas.items())}"""
    return title, body


def _render_operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    parts = [
        f'<section id="{_anchor(method, path)}">',
        f'<h2><span class="verb">{method.upper()}</span> <code>{escape(path)}</code></h2>',
        _prose(operation.get("description") or operation.get("summary", "")),
        '<p class="note">No token needed.</p>' if not operation.get("security") else "",
    ]
    if operation.get("parameters"):
        parameters = [
            (
                f"<code>{escape(parameter['name'])}</code>",
                escape(parameter["in"]),
                _type_of(parameter["schema"]),
                _with_code(parameter.get("description", "")) + (" Required." if parameter.get("required") else ""),
            )
            for parameter in operation["parameters"]
        ]
        parts.append("<h3>Parameters</h3>" + _table(("name", "in", "type", "meaning"), parameters))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        optional = "" if operation["requestBody"].get("required") else " (may be absent)"
        parts.append(f"<h3>Body{optional}</h3>" + _fields(body))
        parts.append(_example("Example", _example_of(body, schemas)))
    rows = []
    for status, answer in sorted(operation["responses"].items()):
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        rows.append((f"<code>{escape(status)}</code>", _type_of(schema), _with_code(answer["description"])))
    parts.append("<h3>Answers</h3>" + _table(("status", "body", "when"), rows))
    done = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema")
    if done is not None:
        parts.append(_example("200", _example_of(done, schemas)))
    return "\n".join(filter(None, (*parts, "</section>")))


def _render_shape(name: str, schema: dict[str, Any]) -> str:
    about = _prose(schema.get("description", ""))
    return f'<section id="shape-{escape(name)}"><h3>{escape(name)}</h3>{about}{_fields(schema)}</section>'


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (
            f"<code>{escape(name)}</code>" + ("" if name in required else ' <span class="note">optional</span>'),
            _type_of(field),
            _with_code(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return _table(("key", "type", "meaning"), rows) if rows else ""


def _type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#shape-{name}">{name}</a>'
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(_type_of(part) for part in schema[word])
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    kind = escape(str(schema.get("type", "any")))
    return f"{kind} ({escape(schema['format'])})" if "format" in schema else kind


def _example_of(schema: dict[str, Any], schemas: dict[str, Any], depth: int = 0) -> Any:
    """A value of that shape, out of the examples that stand with its fields."""
    if depth > 8:
        return None
    if "$ref" in schema:
        return _example_of(schemas.get(schema["$ref"].rpartition("/")[2], {}), schemas, depth + 1)
    for word in ("anyOf", "oneOf"):
        if word in schema and not schema.get("examples"):
            return _example_of(schema[word][0], schemas, depth + 1)
    if schema.get("examples"):
        return schema["examples"][0]
    if "const" in schema:
        return schema["const"]
    if "properties" in schema:
        return {name: _example_of(field, schemas, depth + 1) for name, field in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_example_of(schema.get("items", {}), schemas, depth + 1)]
    return {"string": "…", "integer": 1, "number": 1.0, "boolean": True}.get(schema.get("type", ""))


def _example(title: str, value: Any) -> str:
    shown = escape(json.dumps(value, indent=2, ensure_ascii=False))
    return f"<details><summary>{escape(title)}</summary><pre>{shown}</pre></details>"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scrolls"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def _prose(text: str) -> str:
    """Paragraphs, with `code` in backticks; nothing else of Markdown."""
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    return "\n".join(f"<p>{_with_code(part)}</p>" for part in paragraphs)


def _with_code(text: str) -> str:
    parts = text.split("`")
    return "".join(f"<code>{escape(part)}</code>" if index % 2 else escape(part) for index, part in enumerate(parts))


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}{path}".replace("/", "-").replace("{", "").replace("}", ""))
