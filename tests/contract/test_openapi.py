"""The API's document is whole, and its page shows it; `test_openapi_fuzz.py` beside it holds the answers against it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runcode.controlplane.app import make_app
from runcode.controlplane.openapi import render_document
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes.api_page import render_api_page
from runcode.core.errors import ERRORS
from support.controlplane_fakes import open_plane
from support.front import list_routes, open_door

# What programs call; pages, forms and their assets are for browsers.
JSON_PREFIXES = ("/api/", "/healthz", "/readyz")
# 503 of the one is a list of reasons, 400 of the other has a word of RFC 8628.
WITH_REFUSALS_OF_THEIR_OWN = ("/readyz", "/auth/device-token")
OF_THE_DOCUMENT_ITSELF = {"/api/docs", "/api/openapi.json"}


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path) as opened:
        yield opened


@pytest.fixture
def document(plane: ControlPlane) -> dict[str, Any]:
    return render_document(make_app(plane))


def operations_of(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


async def test_every_json_route_is_in_it(plane: ControlPlane, document: dict[str, Any]) -> None:
    served = {f"{method} {path}" for method, path in list_routes(make_app(plane)) if path.startswith(JSON_PREFIXES)}
    assert {name for name, _ in operations_of(document)} == {
        name for name in served if name.partition(" ")[2] not in OF_THE_DOCUMENT_ITSELF
    }


async def test_every_operation_says_what_it_answers_and_to_whom(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["components"]["securitySchemes"]["ApiToken"]["name"] == "Authorization"
    names = [operation["operationId"] for _, operation in operations_of(document)]
    assert len(names) == len(set(names))
    for name, operation in operations_of(document):
        public = operation["security"] == []
        assert public or operation["security"] == [{"ApiToken": []}], f"{name}: give it `**answers(…)` of routes/shapes"
        assert operation.get("description") or operation.get("summary"), name
        told = set(operation["responses"])
        assert {"200", "400", "408", "413", "421", "429", "500", "503"} <= told, name
        assert public or {"401", "403"} <= told, name
        for status, answer in operation["responses"].items():
            schema = answer["content"]["application/json"]["schema"]
            assert schema, (name, status)
            if int(status) >= 400 and not name.endswith(WITH_REFUSALS_OF_THEIR_OWN):
                assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}, (name, status)
        assert "422" not in told, name


async def test_the_error_body_is_the_tables(document: dict[str, Any]) -> None:
    error = document["components"]["schemas"]["ErrorAnswer"]
    assert error["required"] == ["error", "message", "code", "resolution"]
    assert set(error["properties"]["code"]["enum"]) == set(ERRORS)


async def test_examples_are_of_their_own_shape(document: dict[str, Any]) -> None:
    seen = 0
    for name, shape in document["components"]["schemas"].items():
        for field, schema in shape.get("properties", {}).items():
            for example in schema.get("examples", ()):
                jsonschema.validate(example, schema, cls=jsonschema.Draft202012Validator)
                seen += 1
            assert "$ref" in schema or schema, (name, field)
    assert seen > 10


class Page(HTMLParser):
    """What a browser would do with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        assert "style" not in found, "an inline style, which the policy forbids"
        assert not any(name.startswith("on") for name in found), "a handler, which the policy forbids"
        self.ids.add(found.get("id") or "")
        if tag == "a":
            self.links.add(found.get("href") or "")
        elif "src" in found or tag == "link":
            self.loads.add(found.get("src") or found.get("href") or "")


async def test_the_page_shows_every_call_and_loads_nothing_from_elsewhere(plane: ControlPlane) -> None:
    async with open_door(plane) as door:
        reply = await door.get("/api/docs")
        document = (await door.get("/api/openapi.json")).json
    assert reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search("unsafe|http|\\*|data:", policy)
    page = Page(reply.raw.decode())
    assert not {"iframe", "object"} & set(page.tags)
    assert all(path.startswith("/assets/") for path in page.loads)
    assert all(link.startswith(("#", "/")) and not link.startswith("//") for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert len([link for link in page.links if re.match(r"#(get|post|put|patch|delete)-", link)]) == len(
        operations_of(document)
    )


async def test_the_page_takes_no_text_for_markup(document: dict[str, Any]) -> None:
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: poison(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner, key) for inner in value]
        return hostile if isinstance(value, str) and key in ("description", "title", "version", "summary") else value

    page = Page("".join(render_api_page(poison(document), document_path="/api/openapi.json")))
    assert not {"script", "img"} & set(page.tags)
