"""Requests from commands to the server that uses a data folder, and to a node.

Errors: Failed, with the error that the server or the node returned, or the reason why there is no answer.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli.contract import Context, Failed
from pigeonpost.core.addresses import join_address
from pigeonpost.core.data_folder import RUNNING
from pigeonpost.core.http_client import CertificateMismatch, HttpConnection, HttpError, ServerTrust, server_url
from pigeonpost.server.node_settings import read_nodes
from protocol import decode, encode

ANSWER_S = 10.0  # limit for an answer of a server or a node
_ANSWER_BYTES = 64 << 20


def ask_server(data: str, method: str, path: str, content: Any = None) -> Any:
    """Send a request to the server that uses a data folder, and return its decoded answer.

    Args:
        data: Data folder of the server.
        method: HTTP method.
        path: Path of the request.
        content: Content that is sent as JSON, or None.

    Raises:
        Failed: No server is running, it does not answer, or it returned an error.
    """
    host, port, key, certificate = _running(data)
    here = local_host(host)
    place = join_address(here, port)
    connection = _connection(here, port, certificate)
    body = None if content is None else json.dumps(content)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        answer = connection.request(method, path, headers, body, limit_bytes=_ANSWER_BYTES)
    except CertificateMismatch as error:
        raise Failed(f"{place} has another certificate: expected {error.expected}, found {error.found}") from None
    except HttpError as error:  # another program may use the port now
        raise Failed(f"the server at {place} does not answer: {error}") from None
    finally:
        connection.close()
    is_json = answer.headers.get_content_type() == "application/json"
    found = json.loads(answer.body) if is_json else answer.body.decode()
    if answer.status >= 400:
        raise Failed(found["error"]["text"] if isinstance(found, dict) else str(found).strip())
    return found


def _running(data: str) -> tuple[str, int, str, str]:
    """Return host, port, key and certificate of the server from running.json. Raise Failed if no server is running."""
    try:
        with open(os.path.join(data, RUNNING), encoding="utf-8") as file:
            about = json.load(file)
        host, port = about["web"][0]
        return str(host), int(port), str(about["key"]), str(about.get("certificate", ""))
    except FileNotFoundError:
        raise Failed(f"no running server uses the data folder {data} (--data DIR selects another folder)") from None
    except PermissionError:
        text = f"{data}/{RUNNING} can be read only by the user that runs the server: run the command with sudo"
        raise Failed(text) from None
    except (ValueError, TypeError, LookupError, AttributeError):
        text = f"{data}/{RUNNING} is damaged: restart the server, which writes the file again"
        raise Failed(text) from None


def _connection(host: str, port: int, certificate: str) -> HttpConnection:
    """Return a connection to the server on this machine. With a `certificate`, use TLS and accept only that one."""
    if not certificate:
        return HttpConnection(server_url(host, port, secure=False), ANSWER_S)
    from pigeonpost.web.tls import fingerprint_of

    return HttpConnection(server_url(host, port, secure=True), ANSWER_S, ServerTrust(fingerprint_of(certificate)))


def local_host(host: str) -> str:
    """Return the address at which this machine can reach a program that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _link(context: Context, address: tuple[str, int]) -> socket.socket:
    """Connect to a node. TLS is used if its fingerprint is known from --fingerprint or from a [[node]] table.

    Raise Failed if the fingerprint of a node with TLS is not known, or if the node has another certificate. Nothing is
    sent in this case, in particular no token. Raise OSError if the connection fails.
    """
    name = getattr(context.arguments, "node", None) or ""
    pins = read_nodes(context.settings)[1]
    pinned = getattr(context.arguments, "fingerprint", "") or pins.get(name, "")
    if not pinned and name in pins:
        raise Failed(f"{name} uses TLS: add --fingerprint, which `python3 node.py --show` prints on the node")
    plain = socket.create_connection(address, ANSWER_S)
    if not pinned:
        return plain
    import ssl

    from pigeonpost.core.certificate import fingerprint_of_der, pinning_context

    try:
        link = pinning_context(ssl.TLSVersion.TLSv1_3).wrap_socket(plain)
    except BaseException:
        plain.close()
        raise
    found = fingerprint_of_der(link.getpeercert(binary_form=True) or b"")
    if found != pinned:
        link.close()
        raise Failed(f"{join_address(*address)} has another certificate: expected {pinned}, found {found}")
    return link


def ask_node(context: Context, word: str, *arguments: Any) -> str:
    """Send one message to the node at --link, and return its answer. Send the token of the node first, if it is known.

    Args:
        context: Context of the command, with the arguments link, node and fingerprint.
        word: Word of the link protocol.
        arguments: Arguments of the message.

    Raises:
        Failed: The node does not answer, or it returned an error.
    """
    address: tuple[str, int] = context.arguments.link
    place = join_address(*address)
    secret = os.environ.get("PIGEONPOST_NODE_TOKEN") or Tokens(context.data).text_of(
        getattr(context.arguments, "node", None) or ""
    )
    try:
        with _link(context, address) as link:
            if secret:
                link.sendall(encode("AUTH", {"token": secret}))
            link.sendall(encode(word, *arguments))
            line = link.makefile("rb").readline()
    except OSError as error:
        raise Failed(f"{place}: {error.strerror or error}") from None
    if not line:
        raise Failed(f"{place}: the connection was closed without an answer")
    answer = decode(line)
    if answer is not None and answer.word == "ERROR":
        raise Failed(f"{place}: {answer.args[1].get('text', answer.args[0])}")
    return line.decode().rstrip()
