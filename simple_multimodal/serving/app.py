"""The HTTP application over served models: one handler for every task, in several dialects."""

import base64
from typing import Annotated, Any, Literal

import fastapi
import torch
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import simple_multimodal
from simple_multimodal.serving import protocol_v2
from simple_multimodal.serving.forms import FILE_PART, is_form, read_form, read_json, uploads_of
from simple_multimodal.serving.gate import Gate
from simple_multimodal.serving.models import ServedModel
from simple_multimodal.serving.refusals import STATUSES, Refused
from simple_multimodal.serving.service import Question, Service
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.retrieval.retriever import Retriever

TopK = Annotated[int, Field(ge=1, le=10_000, description="Largest number of results.")]
Threshold = Annotated[float, Field(ge=0, le=1, description="Smallest score of a result.")]
Name = Annotated[str, Field(max_length=200)]


class Strict(BaseModel):
    """A body without entries that are not known."""

    model_config = ConfigDict(extra="forbid")


class Settings(Strict):
    """Settings of a request."""

    top_k: TopK | None = None
    threshold: Threshold | None = None


class Search(Strict):
    """A text to search for."""

    text: str
    top_k: TopK | None = None
    model: Name | None = None


class Embeddings(Strict):
    """Texts to embed, as in OpenAI's interface."""

    input: str | list[str]
    model: Name | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


def _form(*names: str) -> dict[str, Any]:
    """Return the description of a multipart form with a clip and these texts."""
    properties: dict[str, Any] = {FILE_PART: {"type": "string", "format": "binary"}}
    for name in names:
        one = {"type": "string"}
        properties[name.rstrip("*")] = {"type": "array", "items": one} if name.endswith("*") else one
    return {"multipart/form-data": {"schema": {"type": "object", "properties": properties}}}


def _json(kind: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": kind.model_json_schema()}}


def _body(*contents: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a body that may have one of several types."""
    return {"requestBody": {"required": True, "content": {k: v for content in contents for k, v in content.items()}}}


PREDICTION_PARTS = (FILE_PART, "script", "text", "labels", "top_k", "threshold")
EMBEDDING_PARTS = (FILE_PART, "text", "model", "encoding_format")
SEARCH_PARTS = (FILE_PART, "text", "model", "top_k")
ANSWER_PARTS = (FILE_PART, "question*", "model", "top_k")


def settings_of(texts: dict[str, list[str]]) -> Settings:
    """
    Return the settings of a form.

    Raises:
        Refused: If one is not a number, or out of range.
    """
    given = {name: texts[name][0] for name in ("top_k", "threshold") if name in texts}
    try:
        return Settings.model_validate(given)
    except ValueError as error:
        raise Refused(
            422, "`top_k` must be an integer from 1 to 10000, and `threshold` a number from 0 to 1."
        ) from error


def create_app(service: Service) -> fastapi.FastAPI:
    """
    Return the application.

    Args:
        service ([`Service`]): What answers the requests.
    """
    app = fastapi.FastAPI(
        title="simple_multimodal",
        version=simple_multimodal.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={
            status: {"description": text, "content": {"application/json": {"schema": REFUSAL_SCHEMA}}}
            for status, text in STATUSES.items()
        },
    )
    app.add_middleware(Gate, service=service)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _refuse)

    def top_k_of(model: ServedModel, top_k: int | None) -> int:
        return model.task.top_k if top_k is None else top_k

    @app.post("/predictions/{model}", openapi_extra=_body(_form(*PREDICTION_PARTS[1:])))
    async def predict(model: str, request: Request) -> Response:
        """Return the labels of a clip, the answers to a question about it (`text`), or an embedding."""
        service.model(model)  # an unknown one is refused before the body is read
        async with uploads_of(service.uploads) as uploads:
            form = await read_form(request, PREDICTION_PARTS, service.limits, uploads)
            settings = settings_of(form.texts)
            question = Question(form.clip, text=form.text("script", "text"))
            served = service.model(model)
            if served.task.item is None:
                (embed,) = await service.ask(served, [question])
                return JSONResponse({"embedding": embed.tolist()})
            top_k = top_k_of(served, settings.top_k)
            (results,) = await service.ask(served, [question], top_k=top_k, threshold=settings.threshold)
            return JSONResponse(results)

    @app.post("/v1/embeddings", openapi_extra=_body(_json(Embeddings), _form("text", "model", "encoding_format")))
    async def embed(request: Request) -> Response:
        """Return the embeddings of texts or of a clip, in OpenAI's format."""
        async with uploads_of(service.uploads) as uploads:
            if is_form(request):
                form = await read_form(request, EMBEDDING_PARTS, service.limits, uploads)
                name, encoding = form.text("model"), form.text("encoding_format") or "float"
                if encoding not in ("float", "base64"):
                    raise Refused(422, "`encoding_format` must be float or base64.")
                questions = [Question(form.clip, text=form.text("text"))]
            else:
                body = await read_json(request, Embeddings, service.limits)
                name, encoding = body.model, body.encoding_format
                questions = [
                    Question(text=text) for text in ([body.input] if isinstance(body.input, str) else body.input)
                ]
            served = service.only_model(Retriever, name)
            embeds = await service.ask(served, questions)
        data = [
            {"object": "embedding", "index": number, "embedding": _encoded(own, encoding)}
            for number, own in enumerate(embeds)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}  # tokens are not counted
        return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})

    @app.post("/search", openapi_extra=_body(_json(Search), _form(*SEARCH_PARTS[1:])))
    async def search(request: Request) -> Response:
        """Return the clips of the index that are closest to a text or a clip."""
        async with uploads_of(service.uploads) as uploads:
            if is_form(request):
                form = await read_form(request, SEARCH_PARTS, service.limits, uploads)
                name, top_k = form.text("model"), settings_of(form.texts).top_k
                question = Question(form.clip, text=form.text("text"))
            else:
                body = await read_json(request, Search, service.limits)
                name, top_k, question = body.model, body.top_k, Question(text=body.text)
            served = service.only_model(Retriever, name)
            (results,) = await service.ask(served, [question], top_k=top_k_of(served, top_k))
        return JSONResponse(results)

    @app.post("/answer", openapi_extra=_body(_form(*ANSWER_PARTS[1:])))
    async def answer(request: Request) -> Response:
        """Return the answers to each of several questions about one clip."""
        async with uploads_of(service.uploads) as uploads:
            form = await read_form(request, ANSWER_PARTS, service.limits, uploads)
            served = service.only_model(QuestionAnswerer, form.text("model"))
            questions = [Question(form.clip, text=text) for text in form.texts.get("question", [])]
            top_k = top_k_of(served, settings_of(form.texts).top_k)
            return JSONResponse(await service.ask(served, questions, top_k=top_k))

    @app.get("/health")
    async def health() -> Response:
        """Return whether the server is ready, and its models."""
        is_ready = service.is_ready
        return JSONResponse({"ready": is_ready, "models": list(service.models)}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return measurements in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    protocol_v2.add_routes(app, service)
    return app


REFUSAL_SCHEMA = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def _encoded(embed: torch.Tensor, encoding: str) -> list[float] | str:
    return base64.b64encode(embed.numpy().astype("<f4").tobytes()).decode() if encoding == "base64" else embed.tolist()


async def _refuse(request: Request, error: Exception) -> Response:
    """Return the response to an error of routing in the format of all others."""
    assert isinstance(error, HTTPException)
    return Refused(error.status_code, headers=dict(error.headers or {})).response()
