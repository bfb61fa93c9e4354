# docker build --build-arg TORCH=cu126 -t registry.example.com/tileseg:0.1.0-cu126 .
# TORCH is torch's build, as with make: cpu, cu126, cu130, ... Pin the base by its digest
# where you build: infra/README.md has the command.

FROM python:3.11.15-slim-bookworm AS build
ARG TORCH=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/ requirements/
RUN pip install -r requirements/base.txt -r requirements/ray.txt \
    && pip install --index-url "https://download.pytorch.org/whl/$TORCH" -r requirements/torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY tileseg/ tileseg/
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11.15-slim-bookworm
# rasterio's wheel brings every library but expat. Not pinned: Debian takes a version off
# its mirrors with the next security fix, and a pin would then break the build.
# On a GPU, Triton compiles a small C program the first time that it runs a kernel.
ARG TORCH=cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && if [ "$TORCH" != cpu ]; then \
        apt-get install --yes --no-install-recommends gcc libc6-dev; fi \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 tileseg \
    && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin tileseg
COPY --from=build /opt/venv /opt/venv
COPY jobs/ /app/jobs/
# HOME: the root file system may be read-only, and /tmp is the one place that is not.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
# KubeRay replaces the entrypoint by /bin/bash and `ray start`. Ray starts jobs where it was
# started, so `python jobs/segment.py` means /app/jobs/segment.py.
WORKDIR /app
USER 65532:65532
ENTRYPOINT ["tileseg"]
CMD ["--help"]
