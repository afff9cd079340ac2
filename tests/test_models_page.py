"""docs/models.md says of every family what happens to a model of it; none crashes, and none is served wrongly."""

from __future__ import annotations

import re

import pytest
import transformers

from rlhf_kernels.extension import LEVEL, MISSING
from tests.models_page import FAMILIES, PAGE, TOP, line, row_of

TEXT = PAGE.read_text(encoding="utf-8")
VERSION = re.search(r"transformers ([\d.]+):", TEXT)[1]  # type: ignore[index]
pytestmark = [
    pytest.mark.skipif(transformers.__version__ != VERSION, reason=f"the page is that of transformers {VERSION}"),
    pytest.mark.skipif(bool(MISSING) or LEVEL == "portable", reason="the page is that of the C++ kernels"),
]


def lines() -> dict[str, str]:
    found = [text for text in TEXT.splitlines() if text.startswith("| ") and not text.startswith(("| ---", "| family"))]
    return {text.split(" | ")[0].removeprefix("| "): text for text in found}


def told(text: str) -> str:
    """Without the words of torch, which change between its versions."""
    return re.sub(r"(a forward ended in \w+).*", r"\1", text)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_what_happens_to_a_tiny_model(family):
    assert told(line(row_of(family))) == told(lines()[family])


def test_the_page_has_these_families_and_the_text_that_is_written():
    refused = TEXT.partition("## Refused")[2].count("ForCausalLM") + TEXT.partition("## Refused")[2].count(
        "LMHeadModel"
    )
    assert sorted(lines()) == sorted(FAMILIES)
    assert TEXT.startswith(TOP.format(version=VERSION, served=len(FAMILIES) - refused, refused=refused))
