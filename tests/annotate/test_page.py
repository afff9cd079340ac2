"""The comparison page in a real Chromium: by keyboard, mouse and touch; two annotators; an administrator; attacks.

Every page of these tests is also watched: it runs no script but its own, asks no other server, and opens no dialog.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from rlhf_fast.annotate.items import make_item
from rlhf_fast.annotate.store import Store
from tests.annotate.attacks import ATTACKS
from tests.annotate.web import Live, live, pairs

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="there is no axe-playwright-python")
playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium (Debian's package of that name)", allow_module_level=True)
if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

expect = playwright.expect
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
expect.set_options(timeout=10_000)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Watched:
    """A server with a store, and browsers that are watched."""

    def __init__(self, browser, folder, stack: ExitStack) -> None:
        self.browser, self.folder, self.stack = browser, folder, stack
        self.strange: list[str] = []

    def serve(self, items, **settings) -> Live:
        store = Store.open(self.folder / "votes.db", create=True)
        store.update_settings(**({"repeats": 0.0} | settings))
        store.add_items(items)
        self.stack.callback(store.close)
        self.site = self.stack.enter_context(live(store))
        return self.site

    def context(self, **options) -> BrowserContext:
        context = self.browser.new_context(**({"viewport": DESK} | options))
        self.stack.callback(context.close)
        context.on("console", lambda message: self.strange.append(message.text) if message.type == "error" else None)
        context.on("request", self.on_request)
        context.on("page", self.on_page)
        return context

    def on_request(self, request) -> None:
        if not request.url.startswith(self.site.origin + "/"):
            self.strange.append(f"asked {request.url}")

    def on_page(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.strange.append(str(error)))
        page.on("dialog", self.on_dialog)

    def on_dialog(self, dialog) -> None:
        if not dialog.message.startswith(("Make a new link", "Withdraw the link")):
            self.strange.append(f"dialog {dialog.message}")
        dialog.accept()

    def open(self, name: str = "Ada", **options) -> Page:
        """The page of an annotator, who is new where there is no such name."""
        known = [one.name for one in self.site.store.annotators()]
        token = self.site.store.new_token(name) if name in known else self.site.store.add_annotator(name)
        page = self.context(**options).new_page()
        page.goto(self.site.link(token))
        return page

    def open_admin(self, **options) -> Page:
        page = self.context(**options).new_page()
        page.goto(self.site.link(self.site.app.owner_token))
        page.goto(f"{self.site.origin}/admin")
        return page


@pytest.fixture
def watched(browser, tmp_path):
    with ExitStack() as stack:
        made = Watched(browser, tmp_path, stack)
        yield made
        assert made.strange == []


def keys(page: Page, *pressed: str) -> None:
    for key in pressed:
        page.keyboard.press(key)


def ready(page: Page, done: int) -> None:
    """The page shows an item, after so many answers."""
    expect(page.locator("#pace")).to_contain_text(f"{done} of ")
    expect(page.locator("#task")).to_be_visible()


def said(site: Live, name: str = "Ada") -> list[tuple]:
    """(kind, texts in the order of their ranks with ties side by side) of each event of an annotator."""
    who = next(one.id for one in site.store.annotators() if one.name == name)
    rows = []
    for event in site.store.events():
        if event["annotator_id"] == who:
            ranks = json.loads(event["ranks"]) if event["ranks"] else []
            texts = site.store.item(event["item_id"]).responses
            tiers = [{t for t, r in zip(texts, ranks, strict=True) if r == tier} for tier in sorted({*ranks} - {None})]
            rows.append((event["kind"], tiers))
    return rows


def texts(page: Page) -> list[str]:
    """The first line of each response, as shown."""
    return [one.split("\n")[0] for one in page.locator(".response .text").all_inner_texts()]


def abcd(count: int = 3):
    return [make_item(f"Order {n}", ["A", "B", "C", "D"], [{"model": m} for m in "abcd"]) for n in range(count)]


def place(page: Page, text: str) -> int:
    return texts(page).index(text)


# One annotator


def test_two_responses_by_keyboard(watched):
    site = watched.serve(pairs(3))
    page = watched.open()
    ready(page, 0)
    good = next(i for i, text in enumerate(texts(page)) if text.startswith("Good"))
    keys(page, str(good + 1), "Enter")
    ready(page, 1)
    bad = next(i for i, text in enumerate(texts(page)) if text.startswith("Bad"))
    keys(page, str(good + 1), "T", "B", str(bad + 1), "Enter")  # the last one counts
    ready(page, 2)
    votes = site.store.current_votes()
    assert [vote.ranks for vote in votes] == [[1, 2], [2, 1]]
    assert all(0 < vote.seconds < 60 and sorted(vote.shown_order) == [0, 1] for vote in votes)


def test_two_responses_by_mouse(watched):
    site = watched.serve(pairs(3))
    page = watched.open()
    ready(page, 0)
    good = next(i for i, text in enumerate(texts(page)) if text.startswith("Good"))
    page.get_by_role("button", name=f"Response {good + 1}", exact=False).first.click()  # the head of the response
    expect(page.locator("#said")).to_have_text(f"Response {good + 1} is better")
    page.get_by_role("button", name="Submit").click()
    ready(page, 1)
    page.get_by_role("button", name="Tie").click()
    page.get_by_role("button", name="Submit").click()
    ready(page, 2)
    page.get_by_role("button", name="Both bad").click()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name="Nothing left for now")).to_be_visible()
    votes = site.store.current_votes()
    assert [(vote.ranks, vote.all_bad) for vote in votes] == [([1, 2], False), ([1, 1], False), ([None, None], True)]


def test_nothing_is_submitted_before_something_is_said(watched):
    site = watched.serve(abcd(1))
    page = watched.open()
    ready(page, 0)
    keys(page, "Enter", "1", "Enter")  # nothing, and one of four
    expect(page.locator("#banner")).to_be_visible()
    ready(page, 0)
    assert site.store.events() == []


def test_a_ranking_by_keys_with_a_tie_and_one_left_out(watched):
    site = watched.serve(abcd(1))
    page = watched.open()
    ready(page, 0)
    third, first, fourth = (str(place(page, text) + 1) for text in ("C", "A", "D"))
    keys(page, third, first, "T", fourth)
    expect(page.locator("#said")).to_contain_text("not ranked")
    keys(page, "Enter")
    expect(page.locator("#done")).to_be_visible()
    assert said(site) == [("vote", [{"C"}, {"A", "D"}])]


def test_a_number_again_takes_it_back_and_backspace_begins_again(watched):
    site = watched.serve(abcd(1))
    page = watched.open()
    ready(page, 0)
    a, b, c = (str(place(page, text) + 1) for text in "ABC")
    keys(page, b, a, c, b)  # A and C move up
    expect(page.locator(f"#responses .response:nth-child({a}) .rank")).to_have_text("best")
    keys(page, "Backspace", "T", "Enter")
    expect(page.locator("#done")).to_be_visible()
    assert said(site) == [("vote", [{"A", "B", "C", "D"}])]


def test_a_ranking_by_dragging_and_by_arrows(watched):
    site = watched.serve(abcd(1))
    page = watched.open()
    ready(page, 0)
    for text, rank in (("B", 1), ("D", 2), ("A", 2)):
        chip = page.locator(f".chip[data-place='{place(page, text)}']").bounding_box()
        slot = page.locator(".slot").nth(rank).bounding_box()
        page.mouse.move(chip["x"] + 9, chip["y"] + 9)
        page.mouse.down()
        page.mouse.move(slot["x"] + 30, slot["y"] + 10, steps=4)
        page.mouse.move(slot["x"] + slot["width"] / 2, slot["y"] + slot["height"] / 2, steps=2)
        page.mouse.up()
    page.locator(f".chip[data-place='{place(page, 'C')}']").focus()
    keys(page, "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")  # to the fourth, back to the third
    keys(page, "Control+Enter")
    expect(page.locator("#done")).to_be_visible()
    assert said(site) == [("vote", [{"B"}, {"A", "D"}, {"C"}])]


def test_undo_brings_the_answer_back_and_takes_it_out_of_the_votes(watched):
    site = watched.serve(pairs(3))
    page = watched.open()
    ready(page, 0)
    first = texts(page)
    keys(page, "2", "n")
    page.keyboard.type("a second thought")
    keys(page, "Escape", "Enter")
    ready(page, 1)
    keys(page, "u")
    ready(page, 0)
    assert texts(page) == first and site.store.current_votes() == []
    expect(page.locator("#said")).to_have_text("Response 2 is better")  # what was said, to be changed
    expect(page.locator("#note")).to_have_value("a second thought")
    keys(page, "1", "Enter")
    ready(page, 1)
    assert [kind for kind, _ in said(site)] == ["vote", "undo", "vote"]
    (vote,) = site.store.current_votes()
    assert vote.ranks[vote.shown_order[0]] == 1 and vote.note == "a second thought"


def test_undo_with_nothing_to_undo_says_so(watched):
    watched.serve(pairs(1))
    page = watched.open()
    ready(page, 0)
    keys(page, "u")
    expect(page.locator("#banner")).to_have_text("There is nothing to undo.")
    expect(page.locator("#task")).to_be_visible()


def test_skip_writes_a_skip(watched):
    site = watched.serve(pairs(2))
    page = watched.open()
    ready(page, 0)
    keys(page, "s")
    ready(page, 1)
    page.get_by_role("button", name="Skip").click()
    expect(page.locator("#done")).to_be_visible()
    assert said(site) == [("skip", []), ("skip", [])]


def test_a_reload_keeps_the_item_the_order_and_what_was_begun(watched):
    site = watched.serve(abcd(4))
    page = watched.open()
    ready(page, 0)
    keys(page, "1", "2", "3", "4", "Enter")
    ready(page, 1)
    before = page.locator("#prompt").inner_text(), texts(page)
    keys(page, "3", "1", "n")
    page.keyboard.type("half way")
    page.reload()
    ready(page, 1)
    assert (page.locator("#prompt").inner_text(), texts(page)) == before
    expect(page.locator("#said")).to_have_text("3 > 1; not ranked: 2, 4")
    expect(page.locator("#note")).to_have_value("half way")
    assert len(site.store.events()) == 1


def test_an_answered_item_is_opened_again_and_answered_anew(watched):
    site = watched.serve(pairs(4))
    page = watched.open()
    for n in range(3):
        ready(page, n)
        keys(page, "1", "Enter")
    ready(page, 3)
    page.get_by_role("button", name="Answered").click()
    expect(page.locator("#answered-list li")).to_have_count(3)
    page.locator("#answered-list li").nth(1).get_by_role("button").click()
    expect(page.locator("#revising")).to_be_visible()
    expect(page.locator("#said")).to_have_text("Response 1 is better")
    keys(page, "2", "Enter")
    expect(page.locator("#revising")).to_be_hidden()
    ready(page, 3)
    assert [vote.summary for vote in sorted(site.store.current_votes(), key=lambda vote: vote.event_id)] == [
        "1 > 2", "1 > 2", "2 > 1",
    ]  # fmt: skip
    assert len(site.store.events()) == 4  # the row of before is still there


def test_differences_are_marked_and_the_text_is_shown_as_written(watched):
    watched.serve([make_item("p", ["The **quick** brown fox", "The **slow** brown fox"])])
    page = watched.open()
    ready(page, 0)
    expect(page.locator("#live")).to_contain_text("differ in a few words")
    keys(page, "d")
    expect(page.locator(".response mark")).to_have_count(2)
    assert sorted(page.locator(".response mark").all_inner_texts()) == ["quick", "slow"]
    assert page.locator(".response strong").count() == 2
    keys(page, "w")
    expect(page.locator(".response mark")).to_have_count(0)
    assert sorted(texts(page)) == ["The **quick** brown fox", "The **slow** brown fox"]
    keys(page, "w")
    expect(page.locator(".response strong")).to_have_count(2)


def test_keys_are_listed_and_single_keys_can_be_turned_off(watched):
    watched.serve(pairs(2))
    page = watched.open()
    ready(page, 0)
    keys(page, "?")
    expect(page.locator("dialog#keys")).to_be_visible()
    keys(page, "1")  # goes to the dialog, not to the item behind it
    page.get_by_label("Use single keys").uncheck()
    keys(page, "Escape", "1")
    expect(page.locator("#said")).to_have_text("Choose 1 or 2, a tie, or both bad.")
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Use single keys").check()
    keys(page, "Escape", "1")
    expect(page.locator("#said")).to_have_text("Response 1 is better")


def test_a_note_takes_letters_that_are_keys_elsewhere(watched):
    site = watched.serve(pairs(2))
    page = watched.open()
    ready(page, 0)
    keys(page, "1", "n")
    page.keyboard.type("bts 12?")
    keys(page, "Control+Enter")
    ready(page, 1)
    (vote,) = site.store.current_votes()
    assert (vote.note, vote.all_bad) == ("bts 12?", False)


def test_guidelines_are_shown_the_first_time_and_when_they_change(watched):
    site = watched.serve(pairs(2), guidelines="Be **fair**.")
    page = watched.open()
    expect(page.locator("dialog#guidelines strong")).to_have_text("fair")
    keys(page, "Escape")
    page.reload()
    ready(page, 0)
    expect(page.locator("dialog#guidelines")).to_be_hidden()
    page.get_by_role("button", name="Guidelines").click()
    expect(page.locator("dialog#guidelines")).to_be_visible()
    site.store.update_settings(guidelines="Be quick.")
    page.reload()
    expect(page.locator("dialog#guidelines")).to_contain_text("Be quick.")
    expect(page.locator("dialog#guidelines")).to_be_visible()


def test_without_a_mouse_tab_reaches_everything_and_focus_is_seen(watched):
    watched.serve(abcd(1))
    page = watched.open()
    ready(page, 0)
    reached = set()
    for _ in range(40):
        keys(page, "Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
    assert {"marks", "raw", "tie", "bad", "undo", "pass", "submit"} <= reached


def test_enter_presses_the_button_that_tab_led_to_and_else_submits(watched):
    site = watched.serve(pairs(3))
    page = watched.open()
    ready(page, 0)
    page.locator("#tie").focus()
    keys(page, "Shift+Tab", "Tab", "Enter")
    expect(page.locator("#said")).to_have_text("A tie")
    assert site.store.events() == []
    keys(page, "Control+Enter")
    ready(page, 1)
    page.get_by_role("button", name="Both bad").click()  # has the focus, and Enter is not meant for it
    keys(page, "Enter")
    ready(page, 2)
    assert [(vote.ranks, vote.all_bad) for vote in site.store.current_votes()] == [([1, 1], False), ([None] * 2, True)]


def test_what_happens_is_said_to_a_screen_reader(watched):
    watched.serve(pairs(2))
    page = watched.open()
    ready(page, 0)
    expect(page.locator("#live")).to_contain_text("Item 1 of 2, 2 responses.")
    keys(page, "2")
    expect(page.locator("#live")).to_have_text("Response 2 is better")
    keys(page, "Enter")
    expect(page.locator("#live")).to_contain_text("Saved. Item 2 of 2")
    assert page.evaluate("document.activeElement.id") == "prompt-title"


def test_a_server_that_is_away_gets_the_answer_once_it_is_back(watched):
    site = watched.serve(pairs(2))
    page = watched.open()
    ready(page, 0)
    page.route("**/api/vote", lambda route: route.abort())
    keys(page, "1", "Enter")
    expect(page.locator("#banner")).to_contain_text("does not answer")
    page.unroute("**/api/vote")
    ready(page, 1)
    expect(page.locator("#banner")).to_be_hidden()
    assert len(site.store.events()) == 1
    watched.strange = [one for one in watched.strange if "ERR_FAILED" not in one]


def test_an_answer_whose_reply_was_lost_is_written_once(watched):
    site = watched.serve(pairs(2))
    page = watched.open()
    ready(page, 0)
    lost = []

    def lose(route):
        if not lost:
            lost.append(route.fetch().status)  # the server has written it
            route.abort()
        else:
            route.continue_()

    page.route("**/api/vote", lose)
    keys(page, "1", "Enter")
    ready(page, 1)
    assert lost == [200] and len(site.store.events()) == 1
    watched.strange = [one for one in watched.strange if "ERR_FAILED" not in one]


def test_a_phone_has_one_column_and_the_answer_at_hand(watched):
    watched.serve(abcd(2))
    page = watched.open(viewport=PHONE, has_touch=True)
    ready(page, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert len({round(one.bounding_box()["x"]) for one in page.locator(".response").all()}) == 1
    box = page.locator("#submit").bounding_box()
    assert box["y"] + box["height"] <= 844 and box["height"] >= 40
    for text in "BA":
        page.locator(f".chip[data-place='{place(page, text)}']").tap()
    page.locator("#submit").tap()
    ready(page, 1)


# Two annotators, and the administrator


def test_two_annotators_do_not_get_the_same_item_where_one_vote_is_wanted(watched):
    site = watched.serve(pairs(2), overlap=1)
    ada, grace = watched.open("Ada"), watched.open("Grace")
    ready(ada, 0), ready(grace, 0)
    assert ada.locator("#prompt").inner_text() != grace.locator("#prompt").inner_text()
    keys(ada, "1", "Enter")
    expect(ada.locator("#done")).to_be_visible()  # the other one is open at Grace's
    keys(grace, "1", "Enter")
    expect(grace.locator("#done")).to_be_visible()
    assert len({vote.item_id for vote in site.store.current_votes()}) == 2


def test_a_lease_that_ran_out_goes_to_somebody_else(watched):
    watched.serve(pairs(1), overlap=1, lease_seconds=0.2)
    ada = watched.open("Ada")
    ready(ada, 0)
    time.sleep(0.3)
    ready(watched.open("Grace"), 0)


def test_the_administrator_adds_somebody_whose_link_is_shown_once(watched):
    watched.serve(pairs(2))
    page = watched.open_admin()
    page.get_by_label("Name", exact=True).fill("Barbara")
    page.get_by_role("button", name="Add, and make a private link").click()
    link = page.locator("#link-text")
    expect(link).to_have_value(re.compile(rf"{watched.site.origin}/in/\S{{30,}}"))
    address = link.input_value()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("rowheader", name="Barbara")).to_be_visible()
    assert address.rpartition("/")[2] not in page.content()
    other = watched.context().new_page()
    other.goto(address)
    ready(other, 0)
    assert other.url == f"{watched.site.origin}/"  # the token is not in the address
    page.get_by_label("Name", exact=True).fill("Barbara")
    page.get_by_role("button", name="Add, and make a private link").click()
    expect(page.locator("#problem")).to_contain_text("already")
    watched.strange = [one for one in watched.strange if "400" not in one]
    page.get_by_role("button", name="Withdraw the link of Barbara").click()
    expect(page.locator("#live")).to_have_text("The link of Barbara is withdrawn.")
    other.reload()
    expect(other.get_by_role("heading", name="Who are you?")).to_be_visible()
    watched.strange = [one for one in watched.strange if "401" not in one]


def disagree(watched: Watched) -> Live:
    """Two annotators of opposite opinions on three items."""
    site = watched.serve(pairs(3), overlap=2)
    for name, ranks in (("Ada", [1, 2]), ("Grace <i>", [2, 1])):
        site.store.add_annotator(name)
        who = site.store.annotators()[-1].id
        while task := site.store.next_item(who):
            site.store.vote(who, task.item.id, ranks, seconds=9.0, note="because")
    return site


def test_figures_disagreements_and_decisions(watched):
    site = disagree(watched)
    page = watched.open_admin()
    expect(page.locator("header p").first).to_contain_text("3 of 3 items done · 6 votes, 2 wanted of each item")
    expect(page.get_by_role("row", name="Krippendorff’s alpha, who wins")).to_contain_text("−")  # noqa: RUF001
    expect(page.get_by_role("row", name="hidden-model-a")).to_contain_text("0.50")
    assert page.locator("svg.chart rect.column").count() == 1 and page.locator(".queue li").count() == 3
    page.locator(".queue a").first.click()
    ready(page, 0)
    expect(page.locator("#votes li")).to_have_count(2)
    assert "Grace <i>" in page.locator("#votes").inner_text() and "because" in page.locator("#votes").inner_text()
    for n in range(3):
        ready(page, n)
        good = next(i for i, text in enumerate(texts(page)) if text.startswith("Good"))
        keys(page, str(good + 1), "Enter")
    expect(page.locator("#done")).to_be_visible()
    assert [vote.ranks for vote in site.store.adjudications().values()] == [[1, 2]] * 3


@pytest.mark.parametrize(("form", "rows"), [("pairs", 3), ("ranks", 3), ("votes", 6)])
def test_the_export_is_downloaded(watched, form, rows):
    site = disagree(watched)
    owner = site.store.annotators()[0]
    for item in site.store.items():
        site.store.adjudicate(owner.id, item.id, [1, 2])
    page = watched.open_admin()
    page.get_by_label("Rows").select_option(form)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download").click()
    lines = waiting.value.path().read_text().splitlines()
    assert waiting.value.suggested_filename == f"{form}.jsonl"
    assert len(lines) >= rows and json.loads(lines[0])
    if form == "pairs":
        assert all(json.loads(line)["chosen"].startswith("Good") for line in lines)
    assert site.store.audit_log()[0]["what"] == "export"


def test_an_export_of_nothing_says_so(watched):
    watched.serve(pairs(1))
    page = watched.open_admin()
    page.get_by_role("button", name="Download").click()
    expect(page.get_by_role("main")).to_contain_text("nothing to export")
    watched.strange = [one for one in watched.strange if "400" not in one]


# For everybody


@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESK), ("dark", PHONE)], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(watched, scheme, viewport):
    disagree(watched)
    code = f"```python\n{'x = 1  # long ' * 30}\n```\n\n[a](http://a.example) `b`"
    watched.site.store.add_items([make_item("Code", [code, "|a|b|\n|-|-|\n|1|2|"]), *abcd(1)])
    watched.site.store.update_settings(guidelines="# Be fair\n\nRead it all.")
    options = {"color_scheme": scheme, "viewport": viewport, "bypass_csp": True}
    page = watched.open("Alan", **options)
    expect(page.locator("dialog#guidelines")).to_be_visible()
    assert serious(page) == []
    keys(page, "Escape")
    for n in range(2):
        ready(page, n)
        keys(page, "1", "2", "d")
        expect(page.locator("#marks")).to_have_attribute("aria-pressed", "true")
        assert serious(page) == []
        keys(page, "Enter")
    expect(page.locator("#done")).to_be_visible()
    page.get_by_role("button", name="Answered").click()
    expect(page.locator("#answered-list li")).to_have_count(2)
    assert serious(page) == []
    keys(page, "Escape", "?")
    assert serious(page) == []
    admin = watched.open_admin(**options)
    admin.locator("#log + details summary").click()
    assert serious(admin) == []
    admin.locator(".queue a").first.click()
    ready(admin, 0)
    assert serious(admin) == []


def serious(page: Page) -> list[str]:
    page.evaluate("Promise.allSettled(document.getAnimations().map((one) => one.finished))")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


# Attacks


def test_no_text_of_anybody_runs_loads_or_opens_anything(watched):
    """As prompt, response, note and name; read, marked and as written; by an annotator and by an administrator."""
    assert len(ATTACKS) >= 40
    groups = [ATTACKS[i : i + 6] for i in range(0, len(ATTACKS) - 1, 6)]
    items = [make_item([{"role": "user", "content": one} for one in group], group) for group in groups]
    site = watched.serve(items, guidelines="\n\n".join(ATTACKS), overlap=2)
    names = {attack[:100].strip() for attack in ATTACKS if attack[:100].strip().isprintable()}
    assert len(names) >= 40
    for name in names:
        site.store.add_annotator(name)
    page = watched.open("Ada")
    harmless(page)
    keys(page, "Escape")
    for n in range(len(groups)):
        ready(page, n)
        harmless(page)
        keys(page, "d")
        expect(page.locator("#marks")).to_have_attribute("aria-pressed", "true")
        harmless(page)
        keys(page, "w")
        shown = {text.replace("\x00", "").strip() for text in page.locator(".response .plain").all_text_contents()}
        assert any(shown == {text.replace("\x00", "").strip() for text in group} for group in groups)
        page.locator("#note").evaluate("(box, text) => { box.value = text; }", "\n".join(groups[n]))
        keys(page, "1", "2", "Enter")
    expect(page.locator("#done")).to_be_visible()
    assert {vote.note for vote in site.store.current_votes()} == {"\n".join(group).strip() for group in groups}
    page.get_by_role("button", name="Answered").click()
    expect(page.locator("#answered-list li")).to_have_count(len(groups))
    harmless(page)
    contradict(site.store, next(one.id for one in site.store.annotators() if one.name.startswith("<script>")))
    admin = watched.open_admin()
    harmless(admin)
    assert {*admin.locator("#annotators ~ .scroll th[scope=row]").all_inner_texts()} >= names  # as they are
    admin.locator(".queue a").first.click()
    for n in range(len(groups)):
        ready(admin, n)
        expect(admin.locator("#votes li")).to_have_count(2)
        harmless(admin)
        keys(admin, "1", "2", "Enter")
    expect(admin.locator("#done")).to_be_visible()


def contradict(store: Store, annotator: int) -> None:
    """Vote against what has been said of every item, with the same note."""
    while task := store.next_item(annotator):
        first = next(vote for vote in store.current_votes() if vote.item_id == task.item.id)
        against = [rank if rank is None else 3 - rank for rank in first.ranks]
        store.vote(annotator, task.item.id, against, note=first.note)


def harmless(page: Page) -> None:
    """Nothing ran, and the page holds no element that could."""
    found = page.evaluate(
        """() => {
          const bad = "script:not([src^='/static/']), iframe, object, embed, img, video, audio, svg script, base,"
            + "style, main form:not(.panel), main meta, main link, template, math, .text input, [style*='url']";
          const elements = [...document.querySelectorAll(bad)].map((one) => one.outerHTML);
          const all = [...document.querySelectorAll("*")];
          const handlers = all.filter((one) => [...one.attributes].some((a) => a.name.startsWith("on")));
          const links = [...document.querySelectorAll(".text a, .asked a, .votes a")]
            .filter((one) => !/^https?:\\/\\/[^/]/.test(one.getAttribute("href")) || !one.rel.includes("noopener"));
          return [window.pwned, elements, handlers.map((one) => one.outerHTML), links.map((one) => one.outerHTML)];
        }"""
    )
    assert found == [None, [], [], []]
