"""Requests of commands to the server that runs on a data folder, and to a node itself.

Errors: Failed, with what the server or the node said, or why there is no answer.
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

ANSWER_S = 10.0  # for a running server or a node
_ANSWER_BYTES = 64 << 20


def ask_server(data: str, method: str, path: str, content: Any = None) -> Any:
    """Return the decoded answer of the server that runs on `data`; Failed when none runs there, or it refuses."""
    host, port, key, certificate = _running(data)
    here = local_host(host)
    place = join_address(here, port)
    connection = _connection(here, port, certificate)
    body = None if content is None else json.dumps(content)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        answer = connection.request(method, path, headers, body, limit_bytes=_ANSWER_BYTES)
    except CertificateMismatch as error:
        raise Failed(f"another certificate is at {place}: expected {error.expected}, found {error.found}") from None
    except HttpError as error:  # perhaps from another program, which has the port now
        raise Failed(f"the server at {place} does not answer: {error}") from None
    finally:
        connection.close()
    is_json = answer.headers.get_content_type() == "application/json"
    found = json.loads(answer.body) if is_json else answer.body.decode()
    if answer.status >= 400:
        raise Failed(found["error"]["text"] if isinstance(found, dict) else str(found).strip())
    return found


def _running(data: str) -> tuple[str, int, str, str]:
    """Return host, port, key and certificate of the server that runs on `data`, from running.json. Raises Failed."""
    try:
        with open(os.path.join(data, RUNNING), encoding="utf-8") as file:
            about = json.load(file)
        host, port = about["web"][0]
        return str(host), int(port), str(about["key"]), str(about.get("certificate", ""))
    except FileNotFoundError:
        raise Failed(f"no server runs on {data} (--data DIR names another folder)") from None
    except PermissionError:
        text = f"{data}/{RUNNING} may be read only by the user who runs the server: put sudo before the command"
        raise Failed(text) from None
    except (ValueError, TypeError, LookupError, AttributeError):
        text = f"{data}/{RUNNING} is damaged: restart the server, which writes it at each start"
        raise Failed(text) from None


def _connection(host: str, port: int, certificate: str) -> HttpConnection:
    """A connection to the server on this machine; over TLS where it has a certificate, which is pinned."""
    if not certificate:
        return HttpConnection(server_url(host, port, secure=False), ANSWER_S)
    from pigeonpost.web.tls import fingerprint_of

    return HttpConnection(server_url(host, port, secure=True), ANSWER_S, ServerTrust(fingerprint_of(certificate)))


def local_host(host: str) -> str:
    """Where this machine reaches a program that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _link(context: Context, address: tuple[str, int]) -> socket.socket:
    """Connect to a node; by TLS where its certificate is known by --fingerprint or a [[node]] table.

    Raises Failed when it shows another certificate: nothing is said to it then, the token neither. OSError.
    """
    name = getattr(context.arguments, "node", None) or ""
    pins = read_nodes(context.settings)[1]
    pinned = getattr(context.arguments, "fingerprint", "") or pins.get(name, "")
    if not pinned and name in pins:
        raise Failed(f"{name} speaks TLS: give --fingerprint, as `python3 node.py --show` tells it on the node")
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
        raise Failed(f"another certificate is at {join_address(*address)}: expected {pinned}, found {found}")
    return link


def ask_node(context: Context, word: str, *arguments: Any) -> str:
    """Send one word to the node at --link in a plain session, with its token if there is one; return its answer."""
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
        raise Failed(f"{place}: closed without an answer")
    answer = decode(line)
    if answer is not None and answer.word == "ERROR":
        raise Failed(f"{place}: {answer.args[1].get('text', answer.args[0])}")
    return line.decode().rstrip()
