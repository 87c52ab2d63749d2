"""The route /metrics, the same for api and worker."""

from typing import Any

from litestar import Request, Response, get
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder


@get("/metrics")
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return the metrics of this process: as OpenMetrics if the client accepts that, else as Prometheus text."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    # A header instead of a media type: Litestar would add a second charset to that.
    return Response(encode(REGISTRY), headers={"Content-Type": content_type})
