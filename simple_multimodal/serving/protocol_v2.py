"""The Open Inference Protocol, version 2, with JSON bodies and binary tensors of inputs."""

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import fastapi
import torch
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

import simple_multimodal
from simple_multimodal.serving.documents import Name, TopK, Whole, json_body, one_of, refusal, request_of
from simple_multimodal.serving.forms import Upload, Uploads, content_type, parse_json, read_all, uploads_of
from simple_multimodal.serving.limits import ServingLimits
from simple_multimodal.serving.models import ServedModel
from simple_multimodal.serving.refusals import JsonResponse, Refused, readiness
from simple_multimodal.serving.service import Question, Service, check_number

VERSION = "1"
HEADER_LENGTH = "inference-header-content-length"
LENGTH_BYTES = 4  # of an element of a binary tensor of BYTES

InputName = Literal["video", "audio", "text"]
OutputName = Literal["scores", "labels", "embedding"]
INPUTS: tuple[InputName, ...] = get_args(InputName)


class Lenient(BaseModel):
    """A body that may have entries of extensions of the protocol, but no value of another type."""

    model_config = ConfigDict(strict=True)


class InputTensor(Lenient):
    """A tensor of files or texts: `BYTES`, files as base64."""

    name: InputName
    shape: Annotated[list[Annotated[int, Field(ge=1), Whole]], Field(min_length=1, max_length=4)]
    datatype: Literal["BYTES"]
    parameters: dict[str, Any] = {}
    data: list[str | list[str]] | None = None


class OutputTensor(Lenient):
    """An output that is asked for."""

    name: OutputName
    parameters: dict[str, Any] = {}


class Parameters(Lenient):
    """Parameters of a request; others are ignored."""

    top_k: TopK | None = None


class InferenceRequest(Lenient):
    """A request for inference."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a red circle"]}]}]
        }
    )

    id: Name | None = None
    parameters: Parameters = Parameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=len(INPUTS))]
    outputs: Annotated[list[OutputTensor], Field(max_length=8)] = []


class OutputData(BaseModel):
    """An output: `FP32` numbers, or `BYTES`, which are texts."""

    name: OutputName
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    data: list[float] | list[str]


class InferenceAnswer(BaseModel):
    """The outputs of a model."""

    model_name: str
    model_version: str
    outputs: list[OutputData]
    id: str | None = None


class TensorMetadata(BaseModel):
    """An input or output; -1 is a size that depends on the request."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """That the server is alive."""

    live: bool


class Ready(BaseModel):
    """Whether the server is ready."""

    ready: bool


class ModelReady(Ready):
    """Whether a model is ready."""

    name: str


def elements_of(tensor: InputTensor, binary: memoryview | None, limits: ServingLimits) -> list[bytes]:
    """
    Return the elements of an input.

    Args:
        tensor ([`InputTensor`]): The input.
        binary (`memoryview`, *optional*): Its binary data, if it has any.
        limits ([`ServingLimits`]): Limits.

    Raises:
        Refused: If the data does not have the shape, or is not what the name says.
    """
    name = tensor.name
    check_number(tensor.shape[0], limits)
    elements = _flat(tensor.data or []) if binary is None else _split(binary, name, tensor.shape[0])
    if len(elements) != math.prod(tensor.shape) or len(elements) != tensor.shape[0]:
        raise Refused(422, f"The input {name} must have the shape [n] or [n, 1], and n elements.")
    try:
        if binary is not None:
            return [bytes(element) for element in elements]
        if name == "text":
            return [element.encode() for element in elements]
        return [base64.b64decode(element, validate=True) for element in elements]
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"The input {name} must be {'texts' if name == 'text' else 'files as base64'}.") from error


def _flat(data: Sequence[str | list[str]]) -> list[Any]:
    return [item for row in data for item in (row if isinstance(row, list) else [row])]


def _split(binary: memoryview, name: str, num_elements: int) -> list[Any]:
    """
    Return the elements of a binary tensor of BYTES: each has its length before it, in little-endian order. At most one
    more than there should be is returned.
    """
    elements: list[Any] = []
    place = 0
    while place < len(binary) and len(elements) <= num_elements:
        length = int.from_bytes(binary[place : place + LENGTH_BYTES], "little")
        place += LENGTH_BYTES
        if place + length > len(binary):
            raise Refused(422, f"The binary data of the input {name} ends within an element.")
        elements.append(binary[place : place + length])
        place += length
    return elements


async def read_inputs(request: Request, limits: ServingLimits) -> tuple[InferenceRequest, dict[str, list[bytes]]]:
    """
    Read the body of a request for inference.

    Args:
        request (`Request`): The request.
        limits ([`ServingLimits`]): Limits.

    Returns:
        `tuple[InferenceRequest, dict[str, list[bytes]]]`: The request, and the elements of its inputs.

    Raises:
        Refused: If it is not valid.
    """
    if content_type(request)[0] not in ("application/json", "application/octet-stream", ""):
        raise Refused(415, "The body must be application/json, or application/octet-stream with binary tensors.")
    body = memoryview(await read_all(request))
    length = request.headers.get(HEADER_LENGTH)
    end = len(body)
    if length is not None:
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > len(body):
            raise Refused(422, "Inference-Header-Content-Length is not the length of a part of the body.")
        end = int(length)
    parsed = parse_json(InferenceRequest, bytes(body[:end]), limits)
    elements: dict[str, list[bytes]] = {}
    for tensor in parsed.inputs:
        size = tensor.parameters.get("binary_data_size")
        binary = None
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(body) - end:
                raise Refused(422, "A `binary_data_size` is not the size of a part of the body.")
            binary, end = body[end : end + size], end + size
        if tensor.name in elements:
            raise Refused(422, "An input occurs twice.")
        elements[tensor.name] = elements_of(tensor, binary, limits)
        tensor.data = None  # base64 of the elements
    if end != len(body):
        raise Refused(422, "The body is longer than its parts.")
    if len({len(values) for values in elements.values()}) > 1:
        raise Refused(422, "The inputs have different numbers of rows.")
    return parsed, elements


def questions_of(elements: dict[str, list[bytes]], uploads: Uploads) -> list[Question]:
    """
    Return a question for each row of the inputs. An empty element stands for nothing.

    Raises:
        Refused: If a text is not UTF-8.
    """
    questions = []
    for number in range(len(next(iter(elements.values())))):
        found: dict[str, bytes] = {name: values[number] for name, values in elements.items() if values[number]}
        try:
            text = found["text"].decode() if "text" in found else None
        except UnicodeDecodeError as error:
            raise Refused(422, "A text is not UTF-8.") from error
        files: dict[str, Upload] = {name: uploads.add(found[name]) for name in ("video", "audio") if name in found}
        clip = files.get("video", files.get("audio"))
        questions.append(Question(clip, files.get("audio") if "video" in files else None, text))
    return questions


def outputs_of(model: ServedModel, results: Sequence[Any], top_k: int) -> list[dict[str, Any]]:
    """Return the output tensors for the results of rows."""
    num_rows = len(results)
    if model.task.item is None:
        embeds = torch.stack(list(results))
        return [_tensor("embedding", "FP32", embeds.shape, embeds.flatten().tolist())]
    if not model.task.has_labels:
        best = [row[0] for row in results]
        texts = [result[model.task.item] for result in best]
        scores = [result["score"] for result in best]
        return [_tensor("text", "BYTES", (num_rows,), texts), _tensor("score", "FP32", (num_rows,), scores)]
    labels = model.labels
    place = {label: number for number, label in enumerate(labels)}
    scores = [[0.0] * len(labels) for _ in results]
    for own, row in zip(scores, results, strict=True):
        for result in row:
            own[place[result[model.task.item]]] = result["score"]
    num_best = min(top_k, len(labels))
    best = [result[model.task.item] for row in results for result in row[:num_best]]
    return [
        _tensor("scores", "FP32", (num_rows, len(labels)), [score for own in scores for score in own]),
        _tensor("labels", "BYTES", (num_rows, num_best), best),
    ]


def _tensor(name: str, datatype: str, shape: Sequence[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def metadata_of(model: ServedModel) -> dict[str, Any]:
    """Return the description of a model."""
    takes = [name for name in INPUTS if model.pipeline.takes(name)]
    outputs: list[tuple[str, str, list[int]]]
    if model.task.item is None:
        outputs = [("embedding", "FP32", [-1, -1])]
    elif model.task.has_labels:
        outputs = [("scores", "FP32", [-1, len(model.labels)]), ("labels", "BYTES", [-1, -1])]
    else:
        outputs = [("text", "BYTES", [-1]), ("score", "FP32", [-1])]
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "simple_multimodal",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in takes],
        "outputs": [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in outputs],
    }


def add_routes(app: fastapi.FastAPI, service: Service) -> None:
    """Add the routes of the protocol to an application."""

    @app.get("/v2", response_model=ServerMetadata)
    async def server_metadata() -> Response:
        """Describe the server."""
        extensions = ["binary_tensor_data"]
        return JsonResponse(
            {"name": "simple_multimodal", "version": simple_multimodal.__version__, "extensions": extensions}
        )

    @app.get("/v2/health/live", response_model=Live)
    async def live() -> Response:
        """Return that the server is alive."""
        return JsonResponse({"live": True})

    @app.get("/v2/health/ready", response_model=Ready, responses={503: refusal(503, Ready)})
    async def ready() -> Response:
        """Return whether the server is ready for new clients."""
        return readiness(service.is_ready)

    async def describe(model: str = one_of(service.models)) -> Response:
        """Describe a model."""
        return JsonResponse(metadata_of(service.model(model)))

    async def model_ready(model: str = one_of(service.models)) -> Response:
        """Return whether a model is ready."""
        return readiness(service.model(model).is_running and not service.is_draining, name=model)

    async def infer(request: Request, model: str = one_of(service.models)) -> Response:
        """Return the scores of all labels and the best labels of each row, its text, or its embedding."""
        service.model(model)  # an unknown one is refused before the body is read
        parsed, elements = await read_inputs(request, service.limits)
        async with uploads_of(service.uploads) as uploads:
            questions = questions_of(elements, uploads)
            elements.clear()  # files are on the disk while the request waits
            served = service.model(model)
            everything = len(served.labels)
            results = await service.ask(served, questions, top_k=everything)
        outputs = outputs_of(served, results, parsed.parameters.top_k or served.task.top_k)
        if wanted := [output.name for output in parsed.outputs]:
            if not set(wanted) <= {output["name"] for output in outputs}:
                raise Refused(422, f"The outputs are {', '.join(output['name'] for output in outputs)}.")
            outputs = [output for output in outputs if output["name"] in wanted]
        answer = {"model_name": served.name, "model_version": VERSION, "outputs": outputs}
        return JsonResponse(answer if parsed.id is None else {**answer, "id": parsed.id})

    body = request_of(json_body(InferenceRequest))
    not_ready: dict[int | str, Any] = {503: refusal(503, ModelReady)}
    checks = [fastapi.Depends(_check_version)]
    for prefix, own in (("/v2/models/{model}", []), ("/v2/models/{model}/versions/{version}", checks)):
        app.get(prefix, dependencies=own, response_model=ModelMetadata)(describe)
        app.get(f"{prefix}/ready", dependencies=own, response_model=ModelReady, responses=not_ready)(model_ready)
        app.post(f"{prefix}/infer", dependencies=own, response_model=InferenceAnswer, openapi_extra=body)(infer)


def _check_version(version: str = one_of([VERSION])) -> None:
    if version != VERSION:
        raise Refused(404, f"There is no such version of the model; the only one is {VERSION}.")
