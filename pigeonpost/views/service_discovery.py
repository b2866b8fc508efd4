"""Targets for the HTTP service discovery of Prometheus: `GET /api/v1/http_sd`.

Source: https://prometheus.io/docs/prometheus/latest/http_sd/.
"""

from __future__ import annotations

from pigeonpost.core.addresses import join_address, split_address
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import json_answer
from pigeonpost.views.query import whole_number

_NODE_EXPORTER_PORT = 9100


def targets(context: RequestContext) -> Response:
    """Return the hosts of the nodes as targets for `context`: `GET /api/v1/http_sd?port=9100`.

    Each host is one target with the name of its first node as the label `node`. Nodes that connect to this server have
    no known address. With `of=server`, the only target is this server, under the name in the request.

    Args:
        context: The request.

    Raises:
        HTTPError: 400 for an invalid query.
    """
    query, request = context.request.query, context.request
    port = whole_number(query, "port", _NODE_EXPORTER_PORT, 65_535)
    what = query.get("of", "nodes")
    if what == "server":
        scheme, _, host = request.site.partition("://")
        labels = {"server": context.app.name, "__scheme__": scheme, "__metrics_path__": f"{request.prefix}/metrics"}
        return json_answer([{"targets": [host.partition("/")[0]], "labels": labels}])
    if what != "nodes":
        raise HTTPError(400, "`of` must be nodes or server.", "of")
    names: dict[str, str] = {}
    for node in context.snapshot().summaries:
        try:
            host = split_address(node.address)[0]
        except ValueError:
            continue
        if node.condition != "retired" and node.name:
            names.setdefault(host, node.name)
    return json_answer([
        {"targets": [join_address(host, port)], "labels": {"node": name}} for host, name in names.items()
    ])  # fmt: skip
