"""The OpenAPI document of the JSON routes: what FastAPI makes of `routes/shapes.py`, made exact.

Owns: what is in the document beside the routes' own words (title, authentication),
and the repair of what FastAPI assumes but we do not do. Called by `routes/docs.py`,
once for each app.

Source: OpenAPI 3.1.0.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from runcode import __version__

_ABOUT: Final = """The API that `runcode` and other clients speak. Every call but the public ones carries an API token:
`Authorization: Token rct_…` (`runcode login`, or `runcode-server token create`), and in that header only.

Every failure has one body: `{"error": true, "message", "code", "resolution"}`, where `code` is stable and `message`
is for people. Answers may have more keys than are told here: pass over what you do not know."""
_SCHEME: Final = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "`Token ` and an API token: `Authorization: Token rct_…`.",
}
_SERVED: Final = ("/api/", "/healthz", "/readyz")


def render_document(app: FastAPI) -> dict[str, Any]:
    """Every JSON route that the app has now."""
    document = get_openapi(
        title="RunCode control plane",
        version=__version__,
        description=_ABOUT,
        routes=app.routes,
        license_info={"name": "MIT", "identifier": "MIT"},
    )
    document["paths"] = {
        path: {method: _mend(method, operation) for method, operation in operations.items()}
        for path, operations in document["paths"].items()
        if path.startswith(_SERVED)
    }
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"ApiToken": _SCHEME}
    for unused in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(unused, None)
    return document


def _mend(method: str, operation: dict[str, Any]) -> dict[str, Any]:
    """Without FastAPI's own answer to bad input (ours is 400), its guesses at our parameters, and bodies of a GET."""
    operation["responses"].pop("422", None)
    if method == "get":
        operation.pop("requestBody", None)
    # Ours come after FastAPI's, and the last one counts.
    told = {(parameter["in"], parameter["name"]): parameter for parameter in operation.get("parameters", ())}
    if told:
        operation["parameters"] = list(told.values())
    return operation
