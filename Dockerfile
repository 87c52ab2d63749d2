# One image for migrate, api, relay and worker: the packages `orders` and `relay`, and the migrations.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /build && python -m venv --without-pip /opt/orders
WORKDIR /source
COPY requirements-build.lock requirements.lock ./
RUN /build/bin/pip install --require-hashes -r requirements-build.lock \
 && /build/bin/pip --python /opt/orders/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src/orders src/orders
COPY relay relay
# --no-deps: everything else is in the lock. Compiled here, so that no process compiles at its start.
RUN /build/bin/pip wheel --no-deps --no-build-isolation -w /wheels . \
 && /build/bin/pip --python /opt/orders/bin/python install --no-deps --compile /wheels/*.whl

FROM python:3.13-slim
ARG VERSION=0.1.0
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="orders" \
      org.opencontainers.image.description="An order service with a transactional outbox, and its relay" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="${SOURCE}"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin orders
COPY --from=build /opt/orders /opt/orders
COPY alembic.ini /srv/orders/
COPY migrations /srv/orders/migrations
WORKDIR /srv/orders
ENV PATH=/opt/orders/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ORDERS_HOST=0.0.0.0 RELAY_HOST=0.0.0.0 WORKER_HOST=0.0.0.0
USER 10001:10001
# The api; compose names another command for each of the others.
CMD ["python", "-m", "orders.app"]
