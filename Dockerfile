# A server of trained models, on a CPU or, with `docker run --gpus all`, on a GPU:
#   docker build -t simple-multimodal .
#   docker run --rm -p 8000:8000 -v "$PWD/outputs/toy:/models/toy:ro" -e SIMPLE_MULTIMODAL_TOKEN simple-multimodal /models/toy
# See docs/serving.md.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_WAIT_POLICY=PASSIVE

WORKDIR /app
COPY requirements.lock .
RUN pip install -r requirements.lock
COPY pyproject.toml README.md ./
COPY simple_multimodal simple_multimodal
RUN pip install --no-deps --no-build-isolation . \
    && useradd --uid 10001 --no-create-home server \
    && install -d -o server -m 700 /uploads

USER 10001
ENV HOME=/tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["simple-multimodal", "serve", "--host", "0.0.0.0", "--upload_dir", "/uploads"]
