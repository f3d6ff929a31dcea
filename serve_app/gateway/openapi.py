"""The gateway's description in OpenAPI 3.1, made of the models that check its bodies.

Owns what no model says: summaries, roles and path parameters. A test holds it against the routes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from cluster.types import Role
from serve_app.gateway import admin_wire, wire
from serve_app.gateway.feedback import FeedbackRequest
from serve_app.gateway.labels import ClaimRequest, SubmitRequest

_REF = "#/components/schemas/{model}"
_IGNORED = "\0ignored"
_JSON = "application/json"


@dataclass(frozen=True)
class Operation:
    """A route as its callers see it."""

    method: str
    path: str
    summary: str
    role: Role | None
    """None: anybody may ask."""
    body: type[BaseModel] | None = None
    optional: bool = False
    """Whether the body may be left out."""
    query: tuple[str, ...] = ()
    status: int = 200
    answer: str = _JSON
    may_be_null: bool = False


_ASK, _LABEL, _ADMIN, _OPERATE = Role.INFERENCE, Role.LABEL, Role.ADMIN, Role.OPERATOR
_STREAM = "a stream of events where `stream` is true"
OPERATIONS = (
    Operation("POST", "/v1/chat/completions", f"Answer a chat; {_STREAM}", _ASK, wire.ChatRequest),
    Operation("POST", "/v1/completions", f"Continue text; {_STREAM}", _ASK, wire.CompletionRequest),
    Operation("POST", "/v1/embeddings", "Embed texts", _ASK, wire.EmbeddingsRequest),
    Operation("GET", "/v1/models", "The models within reach", _ASK),
    Operation("GET", "/v1/models/{model}", "One model", _ASK),
    Operation("GET", "/health", "Whether the gateway answers", None),
    Operation("GET", "/openapi.json", "This description", None),
    Operation("POST", "/v1/feedback", "Say what became of an answer", _ASK, FeedbackRequest),
    Operation("POST", "/v1/labels/claim", "Lease label tasks", _LABEL, ClaimRequest),
    Operation("POST", "/v1/labels", "Submit labels", _LABEL, SubmitRequest),
    Operation("GET", "/v1/labels", "The state of the label queue", _LABEL),
    Operation("POST", "/key/generate", "Issue a key", _ADMIN, admin_wire.GenerateKey),
    Operation("POST", "/key/update", "Change a key", _ADMIN, admin_wire.UpdateKey),
    Operation("POST", "/key/delete", "End keys", _ADMIN, admin_wire.DeleteKeys),
    Operation("GET", "/key/list", "List keys", _ADMIN, query=("team_id", "return_full_object")),
    Operation("GET", "/key/info", "What is known of a key", _ASK, query=("key",)),
    Operation("POST", "/team/update", "Bound a tenant", _OPERATE, admin_wire.LimitTenant),
    Operation("GET", "/v1/usage", "A tenant's bill", _ADMIN, query=("team_id", "since")),
    Operation("GET", "/v1/adapters", "List adapter versions", _ADMIN),
    Operation("GET", "/v1/adapters/{version}/card", "A model card", _ADMIN, answer="text/markdown"),
    Operation(
        "POST", "/v1/adapters/{name}/kill", "Switch an adapter off", _ADMIN, admin_wire.Reason
    ),
    Operation(
        "POST",
        "/v1/adapters/{name}/revive",
        "Let an adapter serve again",
        _ADMIN,
        admin_wire.Revive,
        optional=True,
        may_be_null=True,
    ),
    Operation("POST", "/v1/adapters/{name}/grant", "Let a tenant in", _OPERATE, admin_wire.Grantee),
    Operation(
        "POST", "/v1/adapters/{name}/withdraw", "Keep a tenant out", _ADMIN, admin_wire.Grantee
    ),
    Operation("GET", "/v1/rollouts", "List rollouts", _ADMIN),
    Operation(
        "POST", "/v1/rollouts", "Begin a rollout", _ADMIN, admin_wire.StartRollout, status=201
    ),
    Operation(
        "POST", "/v1/rollouts/appeal", "Try a refused version again", _OPERATE, admin_wire.Appeal
    ),
    Operation("POST", "/v1/rollouts/{name}/end", "End a rollout", _ADMIN, admin_wire.Reason),
    Operation("POST", "/v1/rollouts/{name}/promote", "Agree to a candidate", _ADMIN),
)


def describe() -> dict[str, Any]:
    """The description, as a JSON document."""
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    key = {"type": "http", "scheme": "bearer", "description": "A key, `hr-...`"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace gateway", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": key}},
    }


def _operation(one: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in one.path.split("/")
        if part.startswith("{")
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
        for name in one.query
    ]
    kind = "object" if one.answer == _JSON else "string"
    answer: dict[str, Any] = {"type": [kind, "null"] if one.may_be_null else kind}
    content: dict[str, Any] = {one.answer: {"schema": answer}}
    if one.body in (wire.ChatRequest, wire.CompletionRequest):
        content["text/event-stream"] = {}
    error = {"schema": {"$ref": _REF.format(model="Error")}}
    found: dict[str, Any] = {
        "summary": one.summary,
        "operationId": f"{one.method.lower()} {one.path}",
        "parameters": parameters,
        "responses": {
            str(one.status): {"description": "What was asked for", "content": content},
            "default": {"description": "Why it was refused", "content": {_JSON: error}},
        },
    }
    if one.role is not None:
        found["description"] = f"For keys with the role `{one.role.value}`."
        found["security"] = [{"key": []}]
    if one.body is not None:
        schema = {"$ref": _REF.format(model=_add(one.body, schemas))}
        found["requestBody"] = {
            "required": not one.optional,
            "content": {_JSON: {"schema": schema}},
        }
    return found


def _add(model: type[BaseModel], schemas: dict[str, Any]) -> str:
    """Enter the schema of `model` and of what it holds; its name."""
    found = model.model_json_schema(ref_template=_REF)
    for name, schema in found.pop("$defs", {}).items():
        schemas[name] = _plain(schema)
    schema = _plain(found)
    if getattr(model, "LENIENT", False):
        schema["additionalProperties"] = True
    schemas[model.__name__] = schema
    return model.__name__


def _plain(value: Any) -> Any:
    """Without what a model hands on to itself."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if name != _IGNORED}
    return [_plain(item) for item in value] if isinstance(value, list) else value


_TEXT: dict[str, Any] = {"type": "string"}
_TEXT_OR_NULL: dict[str, Any] = {"type": ["string", "null"]}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
