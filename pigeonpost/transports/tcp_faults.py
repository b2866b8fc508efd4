"""Sentences for people on why a TCP session with a node ended, each with its remedy.

They stand in NodeState.fault, and are read after the node's name: on the page, in `control.py check`, in the JSON
interface and in the log. What the node itself said is untrusted input: it is shown only where nothing better is known.
"""

from __future__ import annotations

_LONGEST = 300  # characters of a fault, which may have the node's own words in it

# Remedies. `get-token` shows a token that there is; `token` makes one.
_GIVE = "give the node the token that `control.py get-token {node}` shows, as PIGEONPOST_NODE_TOKEN"
_TAKE = "`control.py token {node} --set` reads the node's token; or make a new one and give it to the node"
_MAKE = "`control.py token {node}` makes one; start the node with PIGEONPOST_NODE_TOKEN set to it"

WRONG_TOKEN = "does not have the token that this server has for it: " + _GIVE
NO_TOKEN = "has no token, but this server has one for it: " + _GIVE + ", or `control.py revoke {node}`"
UNKNOWN_TOKEN = (
    "has a token that this server does not know: " + _TAKE + "; if it was renamed, `control.py rename FORMER {node}`"
)
REVOKED = "is not collected from, its token was revoked: " + _MAKE
REPLACED = "still has the token before the last `control.py rotate`: " + _GIVE
REJECTED = "does not accept this server's token: " + _GIVE
PROTECTED = "has no token, so it answers only its own machine: " + _MAKE
OTHER_NODE = (
    "answers as node {other}: correct {node}@HOST:PORT in --node or [server] nodes; or, if it was renamed, `control.py"
    " rename {node} {other}`"
)
OTHER_VERSION = "speaks another version of the link: update the older one of node and server ({text})"
OTHER_CERTIFICATE = (
    "shows another certificate: expected SHA-256 {expected}, found {found}; if it has a new one (`node.py --show` there"
    " tells it), set that as fingerprint in [[node]]"
)
UNPROVEN = "has TLS, but neither token nor fingerprint prove that it is this node: " + _MAKE
PLAIN_TEXT = "is to speak TLS, but its address has no name: write {node}@HOST:PORT in [server] nodes or --node"
IN_BETWEEN = WRONG_TOKEN + "; if it has that, somebody in between ends its TLS, with the certificate {found}"
NO_ROOM = "has no room for another connection: {text}"
NOT_THE_LINK = "does not speak the link, is another program at its address? ({text})"
SILENT = "has said nothing for {text}"
NO_WORD = "closes the connection without a word: is it a Pigeonpost node that listens there?"
NO_WORD_TO_PROOF = "closes the connection without a word on this server's token: " + _GIVE
STORE_DAMAGED = "is not collected from: this server's database is damaged"
INTERNAL = "is not collected from: a fault of this server, its log has more ({text})"

# The wire's codes of ERROR for which there is a better sentence than the node's own.
_OF_CODE = {"version": OTHER_VERSION, "too-many": NO_ROOM}


def describe(fault: str, node: str, **more: object) -> str:
    """Return a text of this module, filled in. `node`: its name; empty: not known, which gives NODE."""
    return fault.format(node=node or "NODE", **more)[:_LONGEST]


def described_error(code: str, text: str, node: str, has_proven: bool) -> str:
    """Return why the node has said ERROR.

    code, text  as the node said them
    has_proven  this server has sent a proof of the node's token
    """
    if code == "auth":
        return describe(REJECTED if has_proven else UNKNOWN_TOKEN, node)
    if code == "protected" and "TLS" not in text:  # else its own words say what to set
        return describe(PROTECTED, node)
    return describe(_OF_CODE.get(code, "refuses: {text}"), node, text=text)
