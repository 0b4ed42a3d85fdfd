"""The HTTP application over served models: one handler for every task, in several dialects."""

import base64

import fastapi
import torch
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import simple_multimodal
from simple_multimodal.serving import protocol_v2
from simple_multimodal.serving.documents import (
    AnswerScore,
    Application,
    ClipScore,
    Embedding,
    EmbeddingAnswer,
    EmbeddingRequest,
    Encoding,
    Health,
    LabelScore,
    Name,
    SearchRequest,
    Settings,
    Text,
    TextScore,
    Threshold,
    TopK,
    form_body,
    json_body,
    one_of,
    refusal,
    request_of,
)
from simple_multimodal.serving.forms import FILE_PART, is_form, read_form, read_json, uploads_of
from simple_multimodal.serving.models import ServedModel
from simple_multimodal.serving.refusals import JsonResponse, Refused, readiness
from simple_multimodal.serving.service import Question, Service
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.retrieval.retriever import Retriever

PREDICTION_PARTS = {"script": str, "text": str, "labels": str, "top_k": TopK, "threshold": Threshold}
EMBEDDING_PARTS = {"text": Text, "model": Name, "encoding_format": Encoding}
SEARCH_PARTS = {"text": Text, "model": Name, "top_k": TopK}
ANSWER_PARTS = {"question*": Text, "model": Name, "top_k": TopK}


def settings_of(texts: dict[str, list[str]]) -> Settings:
    """
    Return the settings of a form.

    Raises:
        Refused: If one is not a number, or out of range.
    """
    given = {name: texts[name][0] for name in ("top_k", "threshold") if name in texts}
    try:
        return Settings.model_validate_strings(given, strict=False)
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
    app = Application(
        title="simple_multimodal",
        version=simple_multimodal.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        service=service,
        bodies=[EmbeddingRequest, SearchRequest, protocol_v2.InferenceRequest],
    )

    def top_k_of(model: ServedModel, top_k: int | None) -> int:
        return model.task.top_k if top_k is None else top_k

    @app.post(
        "/predictions/{model}",
        response_model=list[LabelScore] | list[AnswerScore] | list[TextScore] | Embedding,
        openapi_extra=request_of(form_body(PREDICTION_PARTS, service.limits)),
    )
    async def predict(request: Request, model: str = one_of(service.models)) -> Response:
        """Return the labels of a clip, the answers to a question about it (`text`), its text, or an embedding."""
        service.model(model)  # an unknown one is refused before the body is read
        async with uploads_of(service.uploads) as uploads:
            form = await read_form(request, (FILE_PART, *PREDICTION_PARTS), service.limits, uploads)
            settings = settings_of(form.texts)
            question = Question(form.clip, text=form.text("script", "text"))
            served = service.model(model)
            if served.task.item is None:
                (embed,) = await service.ask(served, [question])
                return JsonResponse({"embedding": embed.tolist()})
            top_k = top_k_of(served, settings.top_k)
            (results,) = await service.ask(served, [question], top_k=top_k, threshold=settings.threshold)
            return JsonResponse(results)

    @app.post(
        "/v1/embeddings",
        response_model=EmbeddingAnswer,
        openapi_extra=request_of(
            json_body(EmbeddingRequest), form_body(EMBEDDING_PARTS, service.limits, [FILE_PART], ["text"])
        ),
    )
    async def embed(request: Request) -> Response:
        """Return the embeddings of texts or of a clip, in OpenAI's format."""
        async with uploads_of(service.uploads) as uploads:
            if is_form(request):
                form = await read_form(request, (FILE_PART, *EMBEDDING_PARTS), service.limits, uploads)
                name, encoding = form.text("model"), form.text("encoding_format") or "float"
                if encoding not in ("float", "base64"):
                    raise Refused(422, "`encoding_format` must be float or base64.")
                questions = [Question(form.clip, text=form.text("text"))]
            else:
                body = await read_json(request, EmbeddingRequest, service.limits)
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
        return JsonResponse({"object": "list", "data": data, "model": served.name, "usage": usage})

    @app.post(
        "/search",
        response_model=list[ClipScore],
        openapi_extra=request_of(
            json_body(SearchRequest), form_body(SEARCH_PARTS, service.limits, [FILE_PART], ["text"])
        ),
    )
    async def search(request: Request) -> Response:
        """Return the clips of the index that are closest to a text or a clip."""
        async with uploads_of(service.uploads) as uploads:
            if is_form(request):
                form = await read_form(request, (FILE_PART, *SEARCH_PARTS), service.limits, uploads)
                name, top_k = form.text("model"), settings_of(form.texts).top_k
                question = Question(form.clip, text=form.text("text"))
            else:
                body = await read_json(request, SearchRequest, service.limits)
                name, top_k, question = body.model, body.top_k, Question(text=body.text)
            served = service.only_model(Retriever, name, searches=True)
            (results,) = await service.ask(served, [question], top_k=top_k_of(served, top_k))
        return JsonResponse(results)

    @app.post(
        "/answer",
        response_model=list[list[AnswerScore]],
        openapi_extra=request_of(form_body(ANSWER_PARTS, service.limits, [FILE_PART, "question"])),
    )
    async def answer(request: Request) -> Response:
        """Return the answers to each of several questions about one clip."""
        async with uploads_of(service.uploads) as uploads:
            form = await read_form(request, (FILE_PART, *ANSWER_PARTS), service.limits, uploads)
            served = service.only_model(QuestionAnswerer, form.text("model"))
            questions = [Question(form.clip, text=text) for text in form.texts.get("question", [])]
            top_k = top_k_of(served, settings_of(form.texts).top_k)
            return JsonResponse(await service.ask(served, questions, top_k=top_k))

    @app.get("/health", response_model=Health, responses={503: refusal(503, Health)})
    async def health() -> Response:
        """Return whether the server is ready, and its models."""
        return readiness(service.is_ready, models=list(service.models))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return measurements in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    protocol_v2.add_routes(app, service)
    return app


def _encoded(embed: torch.Tensor, encoding: str) -> list[float] | str:
    return base64.b64encode(embed.numpy().astype("<f4").tobytes()).decode() if encoding == "base64" else embed.tolist()
