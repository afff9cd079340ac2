"""Text that a model or a stranger wrote -> HTML that cannot do anything, and the marks of what differs.

markdown(text)      Markdown, without HTML, images or links that run or open anything but a web page
marked(texts)       the same, with the words marked in which each differs from the first (the first: from the second)
similarity(texts)   how much of the words they share, from 0 to 1

Every text passes `SafeRenderer`: markdown-it writes tags for the tokens that it knows, and whatever is text goes
through one function, which escapes it. No tag, attribute or style of the text's own is ever written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markupsafe import Markup

LONGEST_MARKDOWN = 100_000
"""Characters from which on a text is shown as it stands: Markdown would take seconds."""
LONGEST_MARKED = 3_000
"""Words of a text, above which differences are looked for by lines."""

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+")
_ALIGN = {"text-align:left": "left", "text-align:center": "center", "text-align:right": "right"}


class SafeRenderer(RendererHTML):
    """Tokens -> HTML. `env` carries the texts of one rendering: `pieces` collects every word in the order in which it
    is written, and the ones whose numbers are in `marks` are wrapped in <mark>."""

    def text(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return written(tokens[idx].content, env)

    def code_inline(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return f"<code>{written(tokens[idx].content, env)}</code>"

    def fence(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        language = (tokens[idx].info.split() or [""])[0][:30]
        head = f"<figcaption>{escape(language)}</figcaption>" if language else ""
        return f'<figure class="code">{head}{_block(tokens[idx].content, env)}</figure>'

    def code_block(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return f'<figure class="code">{_block(tokens[idx].content, env)}</figure>'

    def image(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        token = tokens[idx]
        source = str(token.attrs.get("src", ""))
        shown = source if len(source) <= 80 else source[:80] + "\N{HORIZONTAL ELLIPSIS}"
        return (
            f'<span class="unloaded">image, not loaded: {written(token.content or "-", env)} ({escape(shown)})</span>'
        )

    def link_open(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        address = str(tokens[idx].attrs.get("href", ""))
        env.setdefault("links", []).append(address)
        if not opens_a_page(address):
            return '<span class="link">'
        return f'<a href="{escape(address)}" rel="noopener noreferrer nofollow" target="_blank">'

    def link_close(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        address = env["links"].pop()
        if opens_a_page(address):
            return f'</a> <small class="address">({escape(urlsplit(address).netloc)})</small>'
        return f'</span> <small class="address">({escape(address[:80])})</small>'

    def heading_open(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return f"<h{_level(tokens[idx])}>"  # below the headings of the page, whose outline stays whole

    def heading_close(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return f"</h{_level(tokens[idx])}>\n"

    def table_open(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>\n'

    def table_close(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return _cell(tokens[idx])

    def td_open(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return _cell(tokens[idx])

    def html_block(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
        return written(tokens[idx].content, env)  # the parser makes none; were it to, they are text

    html_inline = html_block


_NESTING = 60
"""Quotes and lists within one another, from which on markdown-it leaves text out: such a text is shown as it stands."""
_OPTIONS = {"html": False, "linkify": False, "breaks": True, "maxNesting": _NESTING}
_MARKDOWN = MarkdownIt("commonmark", _OPTIONS, renderer_cls=SafeRenderer).enable(["table", "strikethrough"])
_MARKDOWN.disable("reference")  # a definition of a link's address would be read, and not shown


def markdown(text: str) -> Markup:
    """HTML of one text. Its tags are markdown-it's own, and every character of the text is escaped."""
    return _render(text, {})


def marked(texts: Sequence[str]) -> list[Markup]:
    """HTML of each text, with a <mark> around the words that the text it is compared with does not have there: the
    first is compared with the second, every other one with the first."""
    pieces: list[list[str]] = []
    for text in texts:
        env: dict[str, Any] = {"pieces": []}
        _render(text, env)
        pieces.append(env["pieces"])
    result = []
    for i, text in enumerate(texts):
        other = pieces[1 if i == 0 else 0]
        result.append(_render(text, {"marks": _differing(pieces[i], other)}))
    return result


def similarity(texts: Sequence[str]) -> float:
    """The smallest share of words that the first text has in common with another, in any order, in [0, 1]."""
    first = _WORDS.findall(texts[0])
    return min(SequenceMatcher(None, first, _WORDS.findall(text)).quick_ratio() for text in texts[1:])


def written(text: str, env: dict[str, Any]) -> str:
    """`text` escaped: the one way of a text into the page."""
    if "pieces" not in env and "marks" not in env:
        return escape(text)
    words = _WORDS.findall(text)
    if "pieces" in env:
        env["pieces"].extend(words)
        return ""
    begin = env.get("at", 0)
    env["at"] = begin + len(words)
    return _with_marks(words, begin, env["marks"])


def opens_a_page(address: str) -> bool:
    """Whether a link may be followed: whole addresses of the web only, so that none is one of this server's pages."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(_HOST.fullmatch(parts.hostname or ""))
    except ValueError:
        return False


def _render(text: str, env: dict[str, Any]) -> Markup:
    if len(text) <= LONGEST_MARKDOWN:
        tokens = _MARKDOWN.parse(text)
        if all(token.level < _NESTING - 2 for token in tokens):
            return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env))
    return Markup(f'<p class="plain">{written(text, env)}</p>')


def _block(text: str, env: dict[str, Any]) -> str:
    return f"<pre><code>{written(text, env)}</code></pre>"


def _level(token: Any) -> int:
    return min(6, int(token.tag[1:]) + 3)


def _cell(token: Any) -> str:
    align = _ALIGN.get(str(token.attrs.get("style", "")))
    return f'<{token.tag} class="{align}">' if align else f"<{token.tag}>"


def _differing(words: list[str], other: list[str]) -> set[int]:
    """The numbers of `words` that are not in the longest blocks which both share in the same order."""
    if max(len(words), len(other)) > LONGEST_MARKED:
        return _differing_lines(words, other)
    matcher = SequenceMatcher(None, words, other)
    spans = (range(i, j) for tag, i, j, _, _ in matcher.get_opcodes() if tag in ("replace", "delete"))
    return {number for span in spans for number in span}


def _differing_lines(words: list[str], other: list[str]) -> set[int]:
    lines, numbers = _lines(words)
    matcher = SequenceMatcher(None, lines, _lines(other)[0])
    changed = (range(i, j) for tag, i, j, _, _ in matcher.get_opcodes() if tag in ("replace", "delete"))
    return {number for span in changed for line in span for number in numbers[line]}


def _lines(words: list[str]) -> tuple[list[str], list[range]]:
    """Words joined to lines, and the numbers of the words of each."""
    ends = [i + 1 for i, word in enumerate(words) if "\n" in word or word in ".!?"]
    bounds = [0, *ends, *([len(words)] if not ends or ends[-1] < len(words) else [])]
    numbers = [range(a, b) for a, b in pairwise(bounds)]
    return ["".join(words[i] for i in span) for span in numbers], numbers


def _with_marks(words: list[str], begin: int, marks: set[int]) -> str:
    out, i = [], 0
    while i < len(words):
        j = i
        while j < len(words) and (begin + j in marks) == (begin + i in marks):
            j += 1
        text = escape("".join(words[i:j]))
        out.append(f"<mark>{text}</mark>" if begin + i in marks and text.strip() else text)
        i = j
    return "".join(out)
