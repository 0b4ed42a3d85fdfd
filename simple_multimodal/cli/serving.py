"""Verbs `serve` and `export_mar`: any trained model behind HTTP."""

import contextlib
import functools
import importlib
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

from simple_multimodal.cli.options import Model, only_writer
from simple_multimodal.defaults import BATCH_SIZE, Precision
from simple_multimodal.errors import MissingPackageError
from simple_multimodal.missing import Named
from simple_multimodal.serving.limits import ServingLimits

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def serve(
    models: Annotated[Sequence[str], "folders or hub names of trained models", "MODEL", Named.MODEL],
    *,
    index: Annotated[
        str | None, "clips for /search: a folder that `encode` wrote with one of the models", "DIR", Named.PATH
    ] = None,
    host: Annotated[str, "name or address to listen on; others than this machine's own need a token"] = "127.0.0.1",
    port: Annotated[int, "port to listen on; 0: any free one"] = 8000,
    token_file: Annotated[
        str | None,
        "file with the bearer token of clients; default: the environment variable SIMPLE_MULTIMODAL_TOKEN, if set",
        "FILE",
        Named.FILE,
    ] = None,
    upload_dir: Annotated[
        str | None, "folder for clips while they are read; default: one in the folder of temporary files", "DIR"
    ] = None,
    max_batch_size: Annotated[int, "number of rows that a model runs on at once"] = BATCH_SIZE,
    num_readers: Annotated[int, "number of processes that read clips, per model"] = 2,
    precision: Annotated[
        Precision | None,
        "precision of the models' computations; default: that of their training (run.json), else fp32",
    ] = None,
    drain_seconds: Annotated[float, "time in which the server is not ready, but still answers, before it ends"] = 5.0,
    limits: ServingLimits,
) -> int:
    """Serve trained models over HTTP. SIGTERM ends the server, SIGHUP reloads the models."""
    require_serve()
    from simple_multimodal.serving.listening import open_socket, read_token
    from simple_multimodal.serving.uploads import UploadFolder

    token = read_token(token_file)
    with (
        open_socket(host, port, has_token=token is not None) as opened,
        contextlib.closing(UploadFolder(upload_dir)) as uploads,
    ):
        print(f"Loading {', '.join(models)}", file=sys.stderr)
        from simple_multimodal.serving.models import ServedModel, load_all
        from simple_multimodal.serving.server import log_as_json, run_server
        from simple_multimodal.serving.service import Service

        load = functools.partial(
            load_all,
            models,
            index,
            functools.partial(
                ServedModel.load,
                precision=precision,
                limits=limits,
                max_batch_size=max_batch_size,
                num_readers=num_readers,
            ),
        )
        service = Service(load(), uploads, limits=limits, token=token)
        log_as_json()
        run_server(service, load, opened, drain_seconds=drain_seconds)
    return 0


def export_mar(
    model: Model,
    *,
    output: Annotated[str, "folder for the archive: the model store of TorchServe", "DIR"],
    overwrite: Annotated[bool, "replace an archive of the same name"] = False,
) -> int:
    """Write an archive of a trained model for TorchServe, named after the model's folder."""
    require_serve()
    from simple_multimodal.models.loading import without_bars
    from simple_multimodal.serving.torchserve import export_mar

    with only_writer(output, "export_mar"), without_bars():
        print(export_mar(model, output, overwrite=overwrite))
    store = shlex.quote(output)
    print(
        f"Next: torchserve --start --ncs --model-store {store} --disable-token-auth --enable-model-api",
        file=sys.stderr,
    )
    return 0


def require_serve() -> None:
    """
    Import the packages of the extra `serve`.

    Raises:
        ImportError: If one is not installed.
    """
    try:
        for package in PACKAGES:
            importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            "Serving needs further packages: pip install 'simple-multimodal[serve]', or pip install fastapi uvicorn "
            "prometheus-client python-multipart."
        ) from error
