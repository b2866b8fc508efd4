"""Pages of the manual (`/help/NAME.md`): the Markdown files of the folder `docs`, as HTML.

Only the elements in these files are supported: headings, paragraphs, quotes, lists, tables and indented code; within a
line code, bold text, emphasis and links. Everything else, including HTML, is shown as written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence

from pigeonpost.core.html import Html, join_html

# In a copy of the source folder, the manual is next to the package.
FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "docs")
PAGE_BYTES = 1 << 20

_HEADING = re.compile(r"(#{1,4}) +(.+)").fullmatch
_ITEM = re.compile(r"(-|\d{1,3}\.) +(.*)").fullmatch
_CELLS = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r"[|: -]+").fullmatch
_INLINE = re.compile(
    r"`(?P<code>[^`\n]+)`"
    r"|\[(?P<words>[^\]\n]{1,300})\]\((?P<to>[^)\s]{1,300})\)"
    r"|\*\*(?P<bold>[^*\n]{1,300})\*\*"
    r"|(?<![\w*])\*(?P<emphasis>[^*\s][^*\n]{0,300})\*(?![\w*])"
)
_LINK = re.compile(r"([a-z0-9-]{1,60}\.md)?(#[a-z0-9-]{1,100})?").fullmatch


def pages() -> list[str]:
    """Return the names of all pages; an empty list if the manual is missing, as in a .pyz file."""
    try:
        return sorted(name for name in os.listdir(FOLDER) if name.endswith(".md"))
    except OSError:
        return []


def read_page(name: str) -> str:
    """Return the text of the page `name`, one of `pages`. Raises OSError."""
    with open(os.path.join(FOLDER, name), encoding="utf-8", errors="replace") as file:
        return file.read(PAGE_BYTES)


def render(text: str, known: Collection[str] = ()) -> Html:
    """Return the Markdown `text` as HTML. `known` contains the names of the pages to which links may lead."""
    parts: list[Html] = []
    items: list[str] = []
    for kind, lines in (*_blocks(text.split("\n")), ("", [])):
        if items and (kind != "item" or _is_numbered(items[0]) != _is_numbered(lines[0])):
            parts.append(_list(items, known))
            items = []
        if kind == "item":
            items.append(" ".join(line.strip() for line in lines))
        elif kind:
            parts.append(_RENDER[kind](lines, known))
    return join_html(parts, "\n")


def _blocks(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the kind and the lines of each block: a paragraph, heading, list item, table, quote or code block."""
    before = ""
    block: list[str] = []
    for line in lines:
        kind = _kind(line, before)
        if block and (kind != before or kind == "heading" or (kind == "item" and _ITEM(line))):
            yield before, block
            block = []
        if kind:
            block.append(line)
        before = kind
    if block:
        yield before, block


def _kind(line: str, before: str) -> str:
    """Return the kind of a line, or an empty string for an empty line; `before` is the kind of the previous line."""
    if not line.strip():
        return ""
    if line.startswith(" ") and before in ("item", "text"):  # a continuation line
        return before
    if line.startswith("    "):
        return "code"
    if _HEADING(line):
        return "heading"
    if _ITEM(line):
        return "item"
    return "table" if line.startswith("|") else "quote" if line.startswith("> ") else "text"


def _is_numbered(item: str) -> bool:
    return item[:1].isdigit()


def _heading(lines: Sequence[str], known: Collection[str]) -> Html:
    marks, words = _HEADING(lines[0]).groups()  # type: ignore[union-attr]
    anchor = re.sub(r"[^a-z0-9 -]", "", words.lower()).replace(" ", "-")
    return Html('<h{0} id="{1}">{2}</h{0}>').format(len(marks), anchor, _inline(words, known))


def _text(lines: Sequence[str], known: Collection[str]) -> Html:
    return Html("<p>{}</p>").format(_inline(" ".join(line.strip() for line in lines), known))


def _quote(lines: Sequence[str], known: Collection[str]) -> Html:
    return Html("<blockquote>{}</blockquote>").format(_text([line.removeprefix("> ") for line in lines], known))


def _code(lines: Sequence[str], known: Collection[str]) -> Html:
    return Html("<pre>{}</pre>").format("\n".join(line.removeprefix("    ") for line in lines))


def _list(items: Sequence[str], known: Collection[str]) -> Html:
    rows = join_html(Html("<li>{}</li>\n").format(_inline(_ITEM(item)[2], known)) for item in items)  # type: ignore[index]
    return Html("<{0}>{1}</{0}>").format("ol" if _is_numbered(items[0]) else "ul", rows)


def _table(lines: Sequence[str], known: Collection[str]) -> Html:
    head, *rows = [_cells(line) for line in lines if not _RULE(line)] or [[]]
    titles = join_html(Html("<th>{}</th>" if cell else "<td>{}</td>").format(_inline(cell, known)) for cell in head)
    body = join_html(
        Html("<tr>{}</tr>\n").format(join_html(
            Html('<td data-label="{}"><span>{}</span></td>').format(label, _inline(cell, known))
            for label, cell in zip(head, row)
        ))
        for row in rows
    )  # fmt: skip
    return Html('<table class="list"><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>').format(titles, body)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELLS.split(line.strip().removeprefix("|").removesuffix("|"))]


def _inline(text: str, known: Collection[str]) -> Html:
    """Return a line as HTML; all characters outside the supported marks are escaped."""
    parts: list[object] = []
    at = 0
    for found in _INLINE.finditer(text):
        parts += [text[at : found.start()], _marked(found, known)]
        at = found.end()
    return join_html([*parts, text[at:]])


def _marked(found: re.Match[str], known: Collection[str]) -> object:
    if found["code"]:
        return Html("<code>{}</code>").format(found["code"])
    if found["bold"]:
        return Html("<b>{}</b>").format(_inline(found["bold"], known))
    if found["emphasis"]:
        return Html("<em>{}</em>").format(_inline(found["emphasis"], known))
    words = _inline(found["words"], known)
    link = _LINK(found["to"])
    if link is None or (link[1] and link[1] not in known):  # not a page of the manual
        return words
    return Html('<a href="{}">{}</a>').format(f"/help/{found['to']}" if link[1] else found["to"], words)


_RENDER = {"heading": _heading, "text": _text, "quote": _quote, "code": _code, "table": _table}
