# The service for a CPU (target cpu) and for an NVIDIA GPU (target cuda, the default), on x86-64.
#
#   docker build --target cpu -t stepwise:cpu .
#   docker build --target cuda -t stepwise:cuda .
#   docker run --read-only --tmpfs /tmp:exec --cap-drop ALL -p 127.0.0.1:8000:8000 stepwise:cpu
#
# Both grow from one plain Python image: torch's wheels bring the CUDA libraries, Triton's brings ptxas, and
# NVIDIA's container toolkit lends the driver, so that a CUDA base would only add a second copy of several GB.
# Pin the base by --build-arg BASE_DIGEST=@sha256:..., which this prints:
#   docker buildx imagetools inspect python:3.11-slim-bookworm
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG BASE_DIGEST=

FROM ${BASE}${BASE_DIGEST} AS pip
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
RUN python3 -m venv /opt/venv
WORKDIR /build

# What the service needs and tracing, each file by its hash; docker/lock.sh writes the lists. Nothing but kernels
# for a GPU needs Triton, 700 MB: in the cpu image the reference of each kernel runs, as it does outside Linux.
# PIP_EXTRA is for options of pip, as --index-url; here it says where torch is without CUDA, which PyPI has not.
FROM pip AS dependencies-cpu
ARG PIP_EXTRA="--extra-index-url https://download.pytorch.org/whl/cpu"
COPY docker/locks/cpu.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/venv/bin/pip install ${PIP_EXTRA} --require-hashes -r cpu.txt

FROM pip AS dependencies-cuda
ARG PIP_EXTRA=
COPY docker/locks/cuda.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/venv/bin/pip install ${PIP_EXTRA} --require-hashes -r cuda.txt

# The project: what pyproject.toml lists and nothing else, with the metadata that tells its version. training/ is
# in it because run.py reads its options from there; what training itself needs is not installed. setuptools wants
# a folder checkpoints: it stays empty here, and the real one is a layer of its own, which the sources do not change.
FROM pip AS project
ARG PIP_EXTRA=
COPY constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/venv/bin/pip install ${PIP_EXTRA} -c constraints.txt setuptools
COPY pyproject.toml README.md LICENSE run.py stepwise.py ./
COPY kernels kernels
COPY models models
COPY training training
COPY service service
RUN --mount=type=cache,target=/var/cache/pip \
    mkdir checkpoints && /opt/venv/bin/pip install --no-build-isolation --no-deps --target /app .

# What both targets have in common. No layer of it changes with the sources.
FROM ${BASE}${BASE_DIGEST} AS runtime
# A name for the number: Python libraries ask who they run as. Its home is the one folder that can be written to.
RUN useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin \
    stepwise
# One thread: at its import NumPy's OpenBLAS starts one for each core of the machine, whatever the container's quota.
# On 64 cores an engine and 8 workers had 596 threads, with it 29; beyond a limit of 256 pids none of them starts.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    OPENBLAS_NUM_THREADS=1 \
    TRITON_CACHE_DIR=/tmp/triton \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
EXPOSE 8000
STOPSIGNAL SIGTERM
# A script and not curl, which the base does not have. /livez is red when the engine is dead, never when it is busy.
COPY --chmod=0444 docker/healthcheck.py /usr/local/lib/stepwise/healthcheck.py
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-IS", "/usr/local/lib/stepwise/healthcheck.py"]
# In exec form, so that the supervisor is process 1 and gets the signals itself. No tini: run.py handles SIGTERM and
# SIGINT before anything else, and the supervisor waits for the processes that it started.
ENTRYPOINT ["python", "run.py", "serve"]
CMD ["--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
COPY checkpoints checkpoints
COPY --from=project /app ./
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="stepwise-diffusion" \
      org.opencontainers.image.description="Diffusion models, batched at every denoising step; for a CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001

FROM runtime AS cuda
# Triton 3.7 compiles its launcher, one C file, at the first kernel, and cannot go on without a compiler. gcc and
# libc's headers suffice: Python's headers are in the base (the last line makes sure), CUDA's come with Triton. The
# result is loaded from TRITON_CACHE_DIR, so /tmp must be mounted with exec; Docker's --tmpfs alone is noexec.
RUN apt-get update \
    && apt-get install -y --no-install-recommends "gcc=4:12.*" "libc6-dev=2.36-*" \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* \
    && test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include", "posix_prefix"))')/Python.h"
# Without a GPU this image stops at the start, instead of serving from a CPU unnoticed.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DIFFUSION_DEVICE=cuda
COPY --from=dependencies-cuda /opt/venv /opt/venv
COPY checkpoints checkpoints
COPY --from=project /app ./
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="stepwise-diffusion" \
      org.opencontainers.image.description="Diffusion models, batched at every denoising step; for CUDA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
