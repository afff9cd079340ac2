"""Text into HTML: nothing of it is lost, nothing of it is a tag, and the marked words are those that differ."""

from __future__ import annotations

import re
import time
from html import unescape

import pytest

from rlhf_fast.annotate.rendering import markdown, marked, opens_a_page, similarity
from tests.annotate.attacks import ATTACKS

TAG = re.compile(r"<(/?)([a-z0-9]+)((?: [a-z-]+=\"[^\"<>]*\")*) ?/?>")
KNOWN = {
    "p", "strong", "em", "s", "code", "pre", "figure", "figcaption", "a", "span", "small", "ul", "ol", "li",
    "blockquote", "h4", "h5", "h6", "br", "hr", "div", "table", "thead", "tbody", "tr", "th", "td", "mark",
}  # fmt: skip
ATTRIBUTES = {"class", "href", "rel", "target", "tabindex", "role", "aria-label", "start"}


def shown(html: str) -> str:
    """The characters that are seen."""
    return unescape(TAG.sub("", html))


def test_markdown_is_rendered():
    html = markdown("# Title\n\nOne *two* **three** `four`\nfive\n\n- six\n\n> seven\n\n~~eight~~\n\n3. nine")
    assert html == (
        "<h4>Title</h4>\n<p>One <em>two</em> <strong>three</strong> <code>four</code><br />\nfive</p>\n"
        "<ul>\n<li>six</li>\n</ul>\n<blockquote>\n<p>seven</p>\n</blockquote>\n<p><s>eight</s></p>\n"
        '<ol start="3">\n<li>nine</li>\n</ol>\n'
    )


def test_code_keeps_its_lines_and_is_escaped():
    assert markdown("```c++ title\nif (a < b && c) {\n\n\treturn;\n}\n```") == (
        '<figure class="code"><figcaption>c++</figcaption><pre><code>'
        "if (a &lt; b &amp;&amp; c) {\n\n\treturn;\n}\n</code></pre></figure>"
    )


def test_a_table_has_no_styles_of_its_own():
    html = markdown("|a|b|\n|:-:|--:|\n|1|2|")
    assert '<th class="center">a</th>' in html and '<td class="right">2</td>' in html and "style" not in html


@pytest.mark.parametrize(("address", "opens"), [
    ("https://a.example:8/b?c=d", True), ("http://[::1]/", True), ("/admin", False), ("//a.example", False),
    ("javascript:alert(1)", False), ("JAVASCRIPT:alert(1)", False), ("data:text/html,x", False),
    ("mailto:a@b.example", False), ("https://", False),
    ("https:a.example", False), ("", False), ("http://[", False), ("ftp://a.example", False),
])  # fmt: skip
def test_only_whole_addresses_of_the_web_are_links(address, opens):
    assert opens_a_page(address) == opens
    html = markdown(f"[text]({address})")
    assert ("<a href=" in html) == opens and "text" in html


def test_a_link_says_where_it_leads_and_takes_nothing_with_it():
    html = markdown("[my bank](https://evil.example/login)")
    assert '<a href="https://evil.example/login" rel="noopener noreferrer nofollow" target="_blank">my bank</a>' in html
    assert shown(html).strip() == "my bank (evil.example)"


def test_an_image_is_named_and_not_loaded():
    html = markdown("![a cat](https://a.example/cat.png)")
    assert "<img" not in html and shown(html).strip() == "image, not loaded: a cat (https://a.example/cat.png)"


@pytest.mark.parametrize("text", ATTACKS)
def test_no_tag_or_attribute_is_of_the_text(text):
    for html in (markdown(text), *marked([text, "other"]), *marked(["other", text])):
        tags = [(name, set(re.findall(r' ([a-z-]+)="', rest))) for _, name, rest in TAG.findall(html)]
        assert all(name in KNOWN and attributes <= ATTRIBUTES for name, attributes in tags)
        assert "<" not in TAG.sub("", html)


@pytest.mark.parametrize("prefix", ["> ", "- ", "1. ", "> - ", "*a "])
def test_deep_nesting_loses_no_word(prefix):
    for depth in range(1, 90):
        assert "the end" in shown(markdown(prefix * depth + "the end")), depth


@pytest.mark.parametrize("text", [
    "[a]: http://hidden.example\n\n[a]", "<!-- a comment -->", "<div>\nblock\n</div>", "a\\\nb", "&copy; &amp;",
    "\tcode", "a  \nb", "a " * 60_000,
])  # fmt: skip
def test_what_markdown_would_hide_is_shown(text):
    words = re.findall(r"\w+", unescape(text))
    assert re.findall(r"\w+", shown(markdown(text))) == words


def test_the_words_that_differ_are_marked_within_their_markdown():
    assert marked(["The **quick** brown fox", "The **slow** brown fox sleeps"]) == [
        "<p>The <strong><mark>quick</mark></strong> brown fox</p>\n",
        "<p>The <strong><mark>slow</mark></strong> brown fox<mark> sleeps</mark></p>\n",
    ]


def test_each_of_several_is_compared_with_the_first_and_the_first_with_the_second():
    assert marked(["a b c", "a b d", "a x c"]) == [
        "<p>a b <mark>c</mark></p>\n", "<p>a b <mark>d</mark></p>\n", "<p>a <mark>x</mark> c</p>\n",
    ]  # fmt: skip


def test_equal_texts_have_no_marks_and_code_has_them_too():
    assert all("<mark>" not in html for html in marked(["`a` b\n\n```\nc\n```", "`a` b\n\n```\nc\n```"]))
    assert "f(<mark>1</mark>)" in marked(["```\nf(1)\n```", "```\nf(2)\n```"])[0]


def test_marks_change_nothing_but_marks():
    one, other = (
        "# T\n\nA <b> & *c*\n\n|x|y|\n|-|-|\n|1|2|\n\n[l](http://a.example) ![i](j)",
        "# U\n\nA d\n\n|x|z|\n|-|-|\n|1|3|",
    )
    for text, html in zip((one, other), marked([one, other]), strict=True):
        assert re.sub("</?mark>", "", html) == markdown(text)


def test_long_texts_are_compared_by_sentences_in_little_time():
    sentences = [f"Word {n} is number {n * n}." for n in range(2000)]
    changed = [*sentences[:1000], "Another one.", *sentences[1001:]]
    began = time.process_time()
    first, second = marked([" ".join(sentences), " ".join(changed)])
    assert time.process_time() - began < 5
    assert re.findall("<mark>(.*?)</mark>", second) == [" Another one."]
    assert re.findall("<mark>(.*?)</mark>", first) == [" Word 1000 is number 1000000."]


def test_similarity_is_of_the_least_similar_one():
    assert similarity(["a b c d", "a b c d"]) == 1.0
    assert similarity(["a b", "c d"]) == pytest.approx(1 / 3)  # the blank: 2 * 1 of 3 + 3 words
    assert similarity(["a b", "a b", "c d"]) == pytest.approx(1 / 3)
    assert similarity(["", ""]) == 1.0
