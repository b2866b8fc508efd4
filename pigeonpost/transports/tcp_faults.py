"""Fault texts that tell users why a TCP session with a node ended, each with its remedy.

NodeState.fault contains such a text. It follows the node's name on the page, in `control.py check`, in the JSON
interface and in the log. Text from the node is untrusted, so it is shown only if there is no better text here.
"""

from __future__ import annotations

_LONGEST = 300  # maximum length of a fault in characters; it may quote the node

# Remedies. `get-token` shows an existing token; `token` creates one.
_SET_TOKEN = "give the node the token that `control.py get-token {node}` shows, as PIGEONPOST_NODE_TOKEN"
_READ_TOKEN = "`control.py token {node} --set` reads the node's token; or create a new one and give it to the node"
_CREATE_TOKEN = "`control.py token {node}` creates one; start the node with PIGEONPOST_NODE_TOKEN set to it"

WRONG_TOKEN = "does not have the token that this server has for it: " + _SET_TOKEN
NO_TOKEN = "has no token, but this server has one for it: " + _SET_TOKEN + ", or `control.py revoke {node}`"
UNKNOWN_TOKEN = (
    "has a token that this server does not know: "
    + _READ_TOKEN
    + "; if it was renamed, `control.py rename FORMER {node}`"
)
REVOKED = "is not collected from because its token was revoked: " + _CREATE_TOKEN
REPLACED = "still has the token before the last `control.py rotate`: " + _SET_TOKEN
REJECTED = "does not accept this server's token: " + _SET_TOKEN
PROTECTED = "has no token, so it answers only its own machine: " + _CREATE_TOKEN
OTHER_NODE = (
    "answers as node {other}: correct {node}@HOST:PORT in --node or [server] nodes; or, if it was renamed, `control.py"
    " rename {node} {other}`"
)
OTHER_VERSION = "speaks another version of the link: update the older one of node and server ({text})"
OTHER_CERTIFICATE = (
    "has another certificate: expected SHA-256 {expected}, found {found}; if the node's certificate is new"
    " (`node.py --show` prints its fingerprint), set fingerprint in [[node]] to it"
)
UNPROVEN = "has TLS, but neither a token nor a fingerprint proves that it is this node: " + _CREATE_TOKEN
PLAIN_TEXT = (
    "is required to use TLS, but is configured without its name: write {node}@HOST:PORT in [server] nodes or --node"
)
INTERCEPTED = WRONG_TOKEN + "; if it has that token, another machine intercepts its TLS, with the certificate {found}"
TOO_MANY = "has too many connections: {text}"
NOT_THE_LINK = "does not speak this protocol: is another program at its address? ({text})"
SILENT = "has sent nothing for {text}"
NO_ANSWER = "closes the connection without an answer: does a Pigeonpost node listen there?"
NO_ANSWER_TO_PROOF = "closes the connection without an answer to this server's token: " + _SET_TOKEN
STORE_DAMAGED = "is not collected from: this server's database is damaged"
INTERNAL = "is not collected from: internal error of this server, see its log ({text})"

# Codes of ERROR for which this program has a better text than the node.
_OF_CODE = {"version": OTHER_VERSION, "too-many": TOO_MANY}


# Faults because of a wrong token, certificate or name, up to their first field or remedy.
_REFUSALS = tuple(
    fault.partition("{")[0].partition(":")[0]
    for fault in (
        WRONG_TOKEN, NO_TOKEN, UNKNOWN_TOKEN, REPLACED, REJECTED, OTHER_NODE, OTHER_CERTIFICATE, UNPROVEN, INTERCEPTED,
    )
)  # fmt: skip


def is_refusal(fault: str) -> bool:
    """Return True if the text `fault` is about a wrong token, certificate or name of the node."""
    return fault.startswith(_REFUSALS)


def describe(fault: str, node: str, **fields: object) -> str:
    """Return the text `fault` with its fields filled in, at most 300 characters of it.

    Args:
        fault: A constant of this module.
        node: Name of the node, or empty if it is not known; then the text contains NODE.
        **fields: The other fields of the text.
    """
    return fault.format(node=node or "NODE", **fields)[:_LONGEST]


def described_error(code: str, text: str, node: str, has_proven: bool) -> str:
    """Return the fault text for an ERROR line that the node has sent.

    Args:
        code: The code in the ERROR.
        text: The text in the ERROR.
        node: Name of the node.
        has_proven: True if this server has sent a proof of the node's token.
    """
    if code == "auth":
        return describe(REJECTED if has_proven else UNKNOWN_TOKEN, node)
    if code == "protected" and "TLS" not in text:  # with TLS, the node's own text names the setting
        return describe(PROTECTED, node)
    return describe(_OF_CODE.get(code, "refuses: {text}"), node, text=text)
