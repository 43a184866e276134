"""The OpenAPI document: this service's models and bounds, and the schemas that routes name by hand."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.dialects import SHAPES
from service.schemas import GenerateResponse
from service.settings import Settings
from service.tensors import InferenceRequest

Schema = dict[str, Any]


def install(app: FastAPI, settings: Settings, models: list[str]) -> None:
    """Make app.openapi() tell what this service really takes."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _add_components(schema)
            _narrow(schema, "model", "string", enum=models)
            _narrow(schema, "steps", "integer", maximum=settings.max_steps)
            _narrow(schema, "num_inference_steps", "integer", maximum=settings.max_steps)
            _narrow(schema, "n", "integer", maximum=settings.max_images)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi


def _add_components(schema: Schema) -> None:
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for model in (*SHAPES, GenerateResponse, InferenceRequest):
        own = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(own.pop("$defs", {}))
        components[model.__name__] = own
    # FastAPI adds its own shape of errors where a route names none; this service never sends it.
    for operation in _operations(schema):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)


def _operations(schema: Schema) -> Iterator[Schema]:
    return (operation for path in schema["paths"].values() for operation in path.values())


def _narrow(schema: Schema, field: str, kind: str, **facts: Any) -> None:
    """Write facts into the schema of a field, wherever a request has it: query, path or body."""
    bodies = ("GenerateBody", "ImageRequest")
    places = [schema["components"]["schemas"][name]["properties"].get(field) for name in bodies]
    for operation in _operations(schema):
        places += [p["schema"] for p in operation.get("parameters", []) if p["name"] == field]
    for place in filter(None, places):
        for option in place.get("anyOf", [place]):
            if option.get("type") == kind:
                option.update(facts)
