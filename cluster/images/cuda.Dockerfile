# raydpo for NVIDIA GPUs. torch brings CUDA's libraries with it, so the base needs the driver of the host alone.
#   docker build -f cluster/images/cuda.Dockerfile -t registry.example.com/raydpo:0.1.0 .
# VLLM=1 installs vLLM for rounds, too, with the torch that it pins.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# gcc and Python's headers: Triton compiles its launchers where kernels are used. libnuma: NCCL and vLLM look for it.
# hadolint ignore=DL3008 # the release of the base decides their versions
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        gcc libnuma1 procps python3 python3-dev python3-venv wget \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --create-home --uid 1001 --gid 100 ray

ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 DS_BUILD_OPS=0
WORKDIR /opt/raydpo
COPY constraints.txt pyproject.toml README.md LICENSE ./
ARG TORCH_INDEX=""
# hadolint ignore=DL3013 # constraints.txt has the version
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY raydpo ./raydpo
ARG VLLM=""
# hadolint ignore=DL3013
RUN if [ -n "$VLLM" ]; then pip install ".[vllm]"; else pip install --constraint constraints.txt .; fi \
    && raydpo --help > /dev/null

USER 1001
WORKDIR /home/ray
