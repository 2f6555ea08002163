# A worker of the role ROLE: prefill, decode or unified.
#
#   docker compose build prefill decode
#   docker build -f services/worker.Dockerfile --build-arg ROLE=unified --target mock .
#
# Three targets: `sglang-cpu`, the default, with SGLang and PyTorch for the CPU, `mock`, with neither, and `sglang-cuda`,
# which takes SGLang's own dependencies from pip's index, on CUDA_IMAGE, and has pyverbs as well. It has not been tried.
# TORCH_INDEX is one more package index to look for PyTorch in. pip's own may have only a build with CUDA libraries,
# which is gigabytes larger and needless here. A CPU wheel in the build context `wheels` is preferred too.

ARG ROLE
ARG PYTHON_IMAGE=python:3.11-slim
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

FROM ${PYTHON_IMAGE} AS python
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# What it needs with the mock engine, in the locked versions.
FROM python AS needs
RUN python -m venv --without-pip /opt/venv
COPY requirements/base.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked \
    pip --python /opt/venv/bin/python install -qq -c requirements/base.txt \
    grpcio grpcio-health-checking grpcio-reflection numpy \
    opentelemetry-api opentelemetry-exporter-otlp-proto-grpc opentelemetry-sdk prometheus-client protobuf pydantic-settings uvicorn tokenizers xxhash

# The same with SGLang. PyTorch comes first and alone: the libraries that its build needs are not locked here.
FROM scratch AS wheels

FROM python AS needs-sglang-cpu
ARG TORCH_INDEX=""
RUN python -m venv --without-pip /opt/venv
COPY requirements/base.txt requirements/sglang-cpu.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked --mount=type=bind,from=wheels,target=/wheels \
    pip --python /opt/venv/bin/python install -qq --find-links /wheels ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    -c requirements/base.txt -c requirements/sglang-cpu.txt torch
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked \
    pip --python /opt/venv/bin/python install -qq --no-deps -r requirements/base.txt -r requirements/sglang-cpu.txt
COPY libs/sglang-cpu-shim libs/sglang-cpu-shim/
RUN pip --python /opt/venv/bin/python install -qq --no-deps --no-build-isolation ./libs/sglang-cpu-shim

# Tandem itself, in a folder of its own.
FROM python AS tandem
ARG ROLE
COPY requirements/base.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked pip install -qq -c requirements/base.txt setuptools
COPY libs/protos libs/protos/
COPY libs/core libs/core/
COPY libs/rpc libs/rpc/
COPY libs/rdma libs/rdma/
COPY libs/engine libs/engine/
COPY services/${ROLE:?missing} services/${ROLE}/
RUN pip install -qq --no-deps --no-build-isolation --target /opt/tandem \
    ./libs/protos ./libs/core ./libs/rpc ./libs/rdma ./libs/engine ./services/${ROLE}

# SGLang for NVIDIA's GPUs. Its kernels are compiled where they run, so the image holds compilers.
FROM ${CUDA_IMAGE} AS sglang-cuda
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    g++ ibverbs-providers libnuma1 ninja-build python3-dev python3-pip python3-pyverbs python3-venv && \
    rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv && ln -s /usr/lib/python3/dist-packages/pyverbs /opt/venv/lib/python3*/site-packages/
COPY requirements/base.txt requirements/sglang-cpu.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked \
    /opt/venv/bin/pip install -qq "$(grep '^sglang==' requirements/sglang-cpu.txt)" && \
    /opt/venv/bin/pip install -qq --no-deps -r requirements/base.txt
RUN echo 'tandem:x:10001:10001::/tmp:/bin/false' >>/etc/passwd && echo 'tandem:x:10001:' >>/etc/group
# A volume that is mounted here for the first time belongs to whom its folder belongs to.
RUN mkdir /certs /hf && chown 10001:10001 /certs /hf
USER 10001:10001
WORKDIR /tmp
ENV HOME=/tmp PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/tandem PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=tandem /opt/tandem /opt/tandem
ARG ROLE
ENV ROLE=${ROLE} TANDEM_SGLANG_DEVICE=cuda
ENTRYPOINT ["sh", "-c", "exec python -m tandem.$ROLE \"$@\"", "worker"]

FROM python AS runtime
RUN echo 'tandem:x:10001:10001::/tmp:/bin/false' >>/etc/passwd && echo 'tandem:x:10001:' >>/etc/group
# A volume that is mounted here for the first time belongs to whom its folder belongs to.
RUN mkdir /certs && chown 10001:10001 /certs
USER 10001:10001
WORKDIR /tmp
ENV HOME=/tmp PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/tandem PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

FROM runtime AS mock
COPY --from=needs /opt/venv /opt/venv
COPY --from=tandem /opt/tandem /opt/tandem
ARG ROLE
ENV ROLE=${ROLE} TANDEM_PREFILL_ENGINE=mock TANDEM_DECODE_ENGINE=mock TANDEM_UNIFIED_ENGINE=mock
ENTRYPOINT ["sh", "-c", "exec python -m tandem.$ROLE \"$@\"", "worker"]

FROM runtime AS sglang-cpu
COPY --from=needs-sglang-cpu /opt/venv /opt/venv
COPY --from=tandem /opt/tandem /opt/tandem
ARG ROLE
ENV ROLE=${ROLE} TANDEM_SGLANG_DEVICE=cpu
ENTRYPOINT ["sh", "-c", "exec python -m tandem.$ROLE \"$@\"", "worker"]
