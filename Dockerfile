# stagecli in a container:  docker build -t stagecli . && docker run --rm stagecli
# TORCH_INDEX: another package index for torch and torchaudio, such as that of PyTorch for CPUs.
FROM python:3.12-slim

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# torch changes less often than the code: it has a layer of its own.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==2.11.*" "torchaudio==2.11.*"

COPY pyproject.toml README.md LICENSE /src/
COPY recipes /src/recipes
COPY stagecli /src/stagecli
RUN pip install /src

# Not root. Anybody may write /work, so that `docker run --user` works; it is also where caches go.
RUN useradd --create-home --uid 1000 stagecli \
    && install -d -m 1777 /work
USER stagecli
WORKDIR /work
ENV HOME=/work

ENTRYPOINT ["stagecli"]
CMD ["doctor"]
