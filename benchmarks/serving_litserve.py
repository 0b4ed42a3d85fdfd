"""The models of `serving.py` on LitServe, for a comparison: run by `serving.py --litserve PYTHON`.

PYTHON is the interpreter of an environment with litserve==0.2.19 and this library. Texts and clips of a batch go
through the pipelines together, as a user of both libraries would write it.
"""

import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import fastapi
import litserve

import simple_multimodal as smm

MAX_BATCH_SIZE = 16  # as that of `simple-multimodal serve`
BATCH_SECONDS = 0.005  # 0.001, 0.005, 0.01 and 0.02 were tried


class Texts(litserve.LitAPI):
    """Embeddings of texts."""

    def setup(self, device: str) -> None:
        self.retriever = smm.Retriever.from_pretrained(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> str:
        if not request["input"].strip():
            raise ValueError("The text is blank.")
        return request["input"]

    def predict(self, texts: list[str]) -> list[list[float]]:
        return self.retriever.embed_texts(list(texts)).tolist()

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return {"embedding": output}


class Clips(litserve.LitAPI):
    """Labels of clips."""

    def setup(self, device: str) -> None:
        self.classifier = smm.VideoClassifier.from_pretrained(sys.argv[2])

    def decode_request(self, request: fastapi.Request) -> str:  # by this type, a form is parsed
        with tempfile.NamedTemporaryFile(suffix=".mp4", delete=False) as file:
            file.write(request["data"].file.read())
        return file.name

    def predict(self, files: list[str]) -> list[Any]:
        return self.classifier(list(files))

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: list[Any]) -> list[Any]:
        return output


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"max_batch_size": MAX_BATCH_SIZE, "batch_timeout": BATCH_SECONDS}
    server = litserve.LitServer(
        [
            Texts(api_path="/v1/embeddings", **settings),
            Clips(api_path=f"/predictions/{Path(sys.argv[2]).name}", **settings),
        ],
        accelerator="cpu",
        fast_queue=True,
    )
    print(f"http://127.0.0.1:{port}", flush=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
