"""The OpenAPI document, with this service's models, limits and keys, and schemas that routes refer to by name."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import QuotaExceeded, Unauthorized
from service.paths import ADMIN_FOLDER, needs_no_key
from service.web.dialects import SHAPES, dialect_of, document
from service.web.generation import RequestHandler
from service.web.routes.edits import EditRequest
from service.web.routes.openai import ImageRequest, own_limits
from service.web.schemas import GenerateBody, GenerateResponse, Limits
from service.web.tensors import InferenceRequest

Schema = dict[str, Any]

TITLE = "Stepwise"
REQUIRED = {  # of the bodies
    "GenerateBody": ["model"],
    "ImageRequest": ["model", "prompt"],
    "EditRequest": ["model", "image"],
}
REQUIRED_QUERY = ["model", "seed", "deterministic"]  # of GET /generate
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def install(app: FastAPI, handler: RequestHandler) -> None:
    """Make app.openapi() state the models, limits and keys of this service."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes, summary=app.summary)
            # relative to the document itself, so that it holds behind any path prefix of a proxy
            schema["servers"] = [{"url": "."}]
            _add_components(schema)
            _mark_required(schema)
            _add_bounds(schema, handler.limits | own_limits(handler.limits))
            _narrow(schema, "model", "string", enum=list(handler.names))
            if handler.engine.samplers:  # known once the engine has started
                _narrow(schema, "sampler", "string", enum=handler.engine.samplers)
                _narrow(schema, "spacing", "string", enum=handler.engine.spacings)
            if handler.settings.api_keys:
                _add_security(schema)
            if handler.settings.admin_key is not None:
                _add_admin_security(schema)
            if not handler.engine.samplers:
                return schema
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi


def _add_components(schema: Schema) -> None:
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for model in (
        *SHAPES,
        GenerateBody,
        GenerateResponse,
        ImageRequest,
        EditRequest,
        InferenceRequest,
    ):
        own = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(own.pop("$defs", {}))
        components[model.__name__] = own
    # FastAPI adds its own shape of errors where a route names none; this service never sends it.
    for _, operation in _operations(schema):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)


def _operations(schema: Schema) -> Iterator[tuple[str, Schema]]:
    return ((path, operation) for path, methods in schema["paths"].items() for operation in methods.values())


def _mark_required(schema: Schema) -> None:
    """Mark fields as required. The classes allow None for them, so that errors can list the models and classes."""
    for name, required in REQUIRED.items():
        body = schema["components"]["schemas"][name]
        body["required"] = required
        for field in required:
            body["properties"][field] = _not_null(body["properties"][field])
    for parameter in schema["paths"]["/generate"]["get"]["parameters"]:
        if parameter["name"] in REQUIRED_QUERY:
            parameter |= {"required": True, "schema": _not_null(parameter["schema"])}
        if parameter["name"] == "deterministic":
            parameter["schema"]["enum"] = [True]


def _not_null(schema: Schema) -> Schema:
    """Remove null from anyOf, and anyOf itself if one option is left."""
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    return rest | (options[0] if len(options) == 1 else {"anyOf": options} if options else {})


def _add_bounds(schema: Schema, limits: Limits) -> None:
    for field, (low, high) in limits.items():
        kind = "integer" if isinstance(low, int) else "number"
        _narrow(schema, field, kind, minimum=low, maximum=high)


def _narrow(schema: Schema, field: str, kind: str, **facts: Any) -> None:
    """Write facts into the schema of a field, wherever a request has it: query, path or body."""
    places = [schema["components"]["schemas"][name]["properties"].get(field) for name in REQUIRED]
    for _, operation in _operations(schema):
        places += [p["schema"] for p in operation.get("parameters", []) if p["name"] == field]
    for place in filter(None, places):
        for option in place.get("anyOf", [place]):
            if option.get("type") == kind:
                option.update(facts)


def _add_security(schema: Schema) -> None:
    schema["components"]["securitySchemes"] = SECURITY
    schema["security"] = [{name: []} for name in SECURITY]
    for path, operation in _operations(schema):
        if needs_no_key(path):
            operation["security"] = []
            continue
        for status, response in document(dialect_of(path), (Unauthorized, QuotaExceeded)).items():
            operation["responses"].setdefault(str(status), response)


def _add_admin_security(schema: Schema) -> None:
    schema["components"]["securitySchemes"] = SECURITY
    for path, operation in _operations(schema):
        if path.startswith(ADMIN_FOLDER):
            operation["security"] = [{name: []} for name in SECURITY]
