# The image of all roles: a virtual environment with vipscope in it, and nothing that builds one.
#
# A release pins the base by its digest, which for one tag names both architectures:
#   --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/build.txt requirements/run.txt requirements/
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.txt \
 && python3 -m venv --without-pip /opt/vipscope \
 && /opt/build/bin/pip --python /opt/vipscope/bin/python install --no-cache-dir --require-hashes \
      --requirement requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY exporter exporter
RUN /opt/build/bin/python -m hatchling build -t wheel -d /wheel \
 && /opt/build/bin/pip --python /opt/vipscope/bin/python install --no-cache-dir --no-deps --no-index \
      /wheel/vipscope-*.whl

FROM ${BASE}
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.title="vipscope" \
      org.opencontainers.image.description="What a Kubernetes node's kernel really holds for its Services" \
      org.opencontainers.image.source="https://github.com/vipscope/vipscope" \
      org.opencontainers.image.documentation="https://github.com/vipscope/vipscope/blob/main/README.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/vipscope /opt/vipscope
# Modules were compiled when they were installed, and the root may be read-only. The kubernetes library
# wants to know where home is, and user 65532 has none.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/ PATH=/opt/vipscope/bin:${PATH}
# Role node is run as user 0 by the chart: a non-root user gets no capability.
USER 65532:65532
EXPOSE 9908
ENTRYPOINT ["/opt/vipscope/bin/vipscope"]
