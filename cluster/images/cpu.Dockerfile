# raydpo for CPUs: the quickstart, the tests of a cluster, preparation, judges that ask a server.
#   docker build -f cluster/images/cpu.Dockerfile --build-arg TORCH_INDEX=... -t registry.example.com/raydpo:0.1.0-cpu .
# TORCH_INDEX names an index with a build of torch for CPUs, which is a tenth of the size; without it pip's default build comes.
FROM python:3.11-slim-bookworm

# wget: KubeRay's probes of older versions ask with it. procps: `ray stop` and people who look.
# hadolint ignore=DL3008 # the release of the base decides their versions
RUN apt-get update \
    && apt-get install --yes --no-install-recommends procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --gid 100 ray

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 DS_BUILD_OPS=0
WORKDIR /opt/raydpo
COPY constraints.txt pyproject.toml README.md LICENSE ./
ARG TORCH_INDEX=""
# hadolint ignore=DL3013 # constraints.txt has the version
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY raydpo ./raydpo
RUN pip install --constraint constraints.txt . && raydpo --help > /dev/null

USER 1000
WORKDIR /home/ray
