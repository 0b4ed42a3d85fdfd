"""What requests and responses hold, and the OpenAPI document that says so."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import fastapi
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from simple_multimodal.serving.forms import FILE_PART
from simple_multimodal.serving.gate import OPEN_ROUTES, Gate
from simple_multimodal.serving.limits import ServingLimits
from simple_multimodal.serving.refusals import STATUSES, Refused
from simple_multimodal.serving.service import Service

COMPONENT = "#/components/schemas/{model}"

Whole = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
"""Lets an integer be written as 2.0, which is one in JSON."""

TopK = Annotated[int, Field(ge=1, le=10_000, description="Largest number of results."), Whole]
Threshold = Annotated[float, Field(ge=0, le=1, description="Smallest score of a result.")]
Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(json_schema_extra={"pattern": r"\S"})]  # checked with the model, by `ServedModel.check`
Encoding = Literal["float", "base64"]


class Strict(BaseModel):
    """A body without entries that are unknown, or values of another type than they should have."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Settings(Strict):
    """Settings of a request."""

    top_k: TopK | None = None
    threshold: Threshold | None = None


class SearchRequest(Strict):
    """A text to search for."""

    text: Text
    top_k: TopK | None = None
    model: Name | None = None


class EmbeddingRequest(Strict):
    """Texts to embed, as in OpenAI's interface."""

    input: Text | Annotated[list[Text], Field(json_schema_extra={"minItems": 1})]
    model: Name | None = None
    encoding_format: Encoding = "float"
    user: str | None = None


class LabelScore(BaseModel):
    """A label of a clip."""

    label: str
    score: float


class AnswerScore(BaseModel):
    """An answer to a question."""

    answer: str
    score: float


class TextScore(BaseModel):
    """The text of a clip, with the mean log-probability of its tokens."""

    text: str
    score: float


class ClipScore(BaseModel):
    """A clip of the index."""

    clip: str
    score: float


class Embedding(BaseModel):
    """The embedding of a text or a clip."""

    embedding: list[float]


class EmbeddingEntry(BaseModel):
    """The embedding of one of the texts; as base64, its values are 32-bit floats in little-endian order."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens, which are not counted."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """Embeddings, as in OpenAI's interface."""

    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: Usage


class Health(BaseModel):
    """Whether the server is ready, and its models."""

    ready: bool
    models: list[str]


class Refusal(BaseModel):
    """Why a request is refused."""

    error: str


class Application(fastapi.FastAPI):
    """
    An application behind the gate, whose document describes its routes as they are.

    Args:
        service ([`Service`]): What answers the requests, and whether clients need a token for it.
        bodies (`Sequence[type[BaseModel]]`): JSON bodies to which [`json_body`] refers and FastAPI does not.
        settings: Further arguments of the class.
    """

    def __init__(self, *, service: Service, bodies: Sequence[type[BaseModel]], **settings: Any):
        super().__init__(responses={status: refusal(status) for status in STATUSES}, **settings)
        self.service = service
        self.bodies = bodies

    def build_middleware_stack(self) -> ASGIApp:
        """Return what a request passes before its route: the gate, which answers errors, too, in place of FastAPI's
        and Starlette's middleware.
        """
        return Gate(AsyncExitStackMiddleware(self.router), self.service)

    def openapi(self) -> dict[str, Any]:
        """Return the document: what FastAPI knows of the routes, bodies that they read themselves, and the token."""
        if self.openapi_schema is None:
            document = super().openapi()
            bodies: list[type[BaseModel]] = [Refusal, *self.bodies]
            _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=COMPONENT)
            document["components"]["schemas"] |= schemas["$defs"]
            if self.service.token is not None:
                document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                for path, operations in document["paths"].items():
                    for operation in operations.values():
                        operation["security"] = [] if path in OPEN_ROUTES else [{"token": []}]
        return super().openapi()


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the content of a JSON body."""
    return {"application/json": {"schema": {"$ref": COMPONENT.format(model=kind.__name__)}}}


def refusal(status: int, body: type[BaseModel] = Refusal) -> dict[str, Any]:
    """Return the description of a refusal: its meaning, body and headers."""
    headers = {name: {"required": True, "schema": {"type": "string"}} for name in Refused(status).headers}
    return {"description": STATUSES[status], "content": json_body(body), "headers": headers}


def form_body(parts: Mapping[str, Any], limits: ServingLimits, *needed: Sequence[str]) -> dict[str, Any]:
    """
    Return the content of a multipart form: a clip, and texts.

    Args:
        parts (`Mapping[str, Any]`): Types of the texts by name; the names of those that may occur several times end
            in `*`, as for [`Form`].
        limits ([`ServingLimits`]): Limits.
        needed (`Sequence[str]`): Names of the parts that a form must have; if there are several such lists, it has
            those of one of them, and none of the others.
    """
    schemas: dict[str, Any] = {FILE_PART: {"type": "string", "format": "binary"}}
    most = max(1, min(limits.max_inputs, limits.max_parts - len(parts)))  # beside the clip and the other texts
    for name, kind in parts.items():
        one = TypeAdapter(kind).json_schema()
        several = {"type": "array", "items": one, "minItems": 1, "maxItems": most}
        schemas[name.rstrip("*")] = several if name.endswith("*") else one
    forms = []
    for names in needed or [()]:
        others = {name for other in needed for name in other} - {*names}
        own = {name: schema for name, schema in schemas.items() if name not in others}
        forms.append({"type": "object", "properties": own, "required": [*names], "additionalProperties": False})
    return {"multipart/form-data": {"schema": forms[0] if len(forms) == 1 else {"oneOf": forms}}}


def request_of(*contents: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a body that may have one of several types."""
    return {"requestBody": {"required": True, "content": {k: v for content in contents for k, v in content.items()}}}


def one_of(values: Iterable[str]) -> Any:
    """Return the declaration of a part of a path that has one of some values; others are not found."""
    return fastapi.Path(json_schema_extra={"enum": [*values]})
