"""Whoever is not the page's own annotator gets nothing done, whatever is sent."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from rlhf_fast.annotate.app import Application, link, serve
from rlhf_fast.annotate.security import Buckets, Hosts, Limits, address_refusal, csrf_token, host_name
from rlhf_fast.annotate.store import Store
from rlhf_fast.runtime.errors import UsageError
from tests.annotate.web import Live, live, pairs


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    store = Store.open(tmp_path_factory.mktemp("store") / "votes.db", create=True)
    store.update_settings(repeats=0.0)
    store.add_items(pairs(30))
    with live(store, Limits(burst=10**6, stranger_burst=10**6)) as running:
        yield running
    store.close()


@pytest.fixture(scope="module")
def token(site):
    return site.store.add_annotator("Ada")


def vote_body(site: Live, token: str, **changes) -> dict:
    with site.client(token) as client:
        task = client.post("/api/next", json={}).json()["task"]
    said = {"item": task["item"], "order": task["order"], "ranks": [1, 2], "all_bad": False, "note": "", "seconds": 1.0}
    return said | {"request": f"r{time.monotonic_ns()}"} | changes


def votes(site: Live) -> int:
    return len(site.store.events())


def raw(site: Live, data: bytes, seconds: float = 5.0) -> bytes:
    """What the socket answers to bytes that no client would send."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            if b"\r\n\r\n" in answer and not answer.startswith(b"HTTP/1.1 100"):
                break
        return answer


# Where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_another_address_than_loopback_needs_a_token_before_a_socket_is_opened(host, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_fast.annotate.app.bound", lambda *_: pytest.fail("a socket was opened"))
    store = Store.open(tmp_path / "votes.db", create=True)
    with pytest.raises(UsageError, match="no token was given"):
        serve(store, SimpleNamespace(host=host, port=0, token=None, names=[]))
    store.close()
    address_refusal(host, "a-token-of-some-length")


@pytest.mark.parametrize(
    "token", ["short", "x" * 15, "x" * 201, "with a space and more", "with/slash/and/more", "ümlaut-and-more-letters"]
)
def test_a_token_that_is_short_or_cannot_be_in_a_link_is_refused(token):
    with pytest.raises(UsageError, match="token"):
        address_refusal("127.0.0.1", token)


@pytest.mark.parametrize("name", ["https://rate.example", "rate.example:443", "rate.example/", "", "a b"])
def test_a_name_that_no_browser_sends_is_refused(name):
    with pytest.raises(UsageError, match="expected what stands between"):
        address_refusal("127.0.0.1", None, [name])


def test_a_taken_port_is_said_in_words(site):
    with pytest.raises(UsageError, match=rf"cannot listen on 127\.0\.0\.1, port {site.port}"):
        serve(site.store, SimpleNamespace(host="127.0.0.1", port=site.port, token=None, names=[]))


# Names: DNS rebinding


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example",
    "127.0.0.1:80:80", "evil.example#127.0.0.1", "[::1", "[::1]x", "", "127.0.0.1:8x", "0.0.0.0", "192.168.1.5",
])  # fmt: skip
def test_a_request_for_another_name_gets_nothing(site, token, host):
    answer = raw(
        site, f"GET /api/answered HTTP/1.1\r\nHost: {host}\r\nCookie: rlhf_fast_{site.port}={token}\r\n\r\n".encode()
    )
    assert answer.split(b" ")[1] in (b"421", b"400")
    assert b"answered" not in answer.split(b"\r\n\r\n", 1)[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.0.0.1:9999", "localhost:22"])
def test_its_own_names_are_served_behind_any_forwarded_port(site, token, host):
    with site.client(token, host=host) as client:
        assert client.get("/api/answered").status_code == 200


def test_a_name_that_the_user_gave_is_served_and_no_other(tmp_path):
    store = Store.open(tmp_path / "votes.db", create=True)
    app = Application(store, "127.0.0.1", 8017, names=["Rate.example"])
    assert app.hosts.allows("rate.example") and app.hosts.allows("RATE.example:443") and app.hosts.allows("127.0.0.1")
    assert not app.hosts.allows("evil.example") and not app.hosts.allows("x.rate.example")
    app.close()
    store.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_link_is_one_that_can_be_opened(host):
    address = re.fullmatch(r"http://(.+):8017/in/abc", link(host, 8017, "abc"))
    assert address and address[1] not in ("0.0.0.0", "::", "[::]")


def test_two_host_headers_are_refused(site):
    assert raw(site, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n").split(b" ")[1] in (
        b"400",
        b"421",
    )


def test_on_all_addresses_a_name_is_refused_and_an_address_is_not():
    hosts = Hosts("0.0.0.0")
    assert hosts.allows("192.168.1.5:8000") and hosts.allows("localhost:1") and hosts.allows("[fe80::1]:8000")
    assert not hosts.allows("evil.example:8000") and not hosts.allows("")
    assert Hosts("box.lan").allows("BOX.lan:80") and not Hosts("box.lan").allows("127.0.0.1")
    assert [host_name(one) for one in ("a:1", "[::1]:2", "a:b", "a b", "[::1", "a/b")] == ["a", "::1", "", "", "", ""]


# Other pages: Origin, CSRF, kind of body


@pytest.mark.parametrize("origin", [
    "https://evil.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:1", "http://localhost:{port}",
    "http://127.0.0.1:{port}.evil.example", "http://evil.example/http://127.0.0.1:{port}", "HTTP://127.0.0.1:{port}",
    "ftp://127.0.0.1:{port}", None,
])  # fmt: skip
def test_a_post_from_another_page_changes_nothing(site, token, origin):
    body, before = vote_body(site, token), votes(site)
    with site.client(token) as client:
        if origin is None:
            del client.headers["origin"]
        else:
            client.headers["origin"] = origin.format(port=site.port)
        for path in ("/api/vote", "/api/skip", "/api/undo", "/api/admin/annotator"):
            assert client.post(path, json=body).status_code == 403
    assert votes(site) == before


@pytest.mark.parametrize("fetch_site", ["cross-site", "same-site"])
def test_what_a_browser_says_comes_from_elsewhere_is_refused(site, token, fetch_site):
    with site.client(token, **{"sec-fetch-site": fetch_site, "sec-fetch-mode": "no-cors"}) as client:
        assert (
            client.get("/api/answered").status_code == 403
        )  # even with a cookie, an image or a script of another page
        assert client.post("/api/undo", json={"request": "x"}).status_code == 403


@pytest.mark.parametrize("mark", [None, "", "0" * 64, csrf_token("of somebody else"), "x" * 9000])
def test_a_missing_or_wrong_csrf_token_changes_nothing(site, token, mark):
    body, before = vote_body(site, token), votes(site)
    with site.client(token) as client:
        if mark is None:
            del client.headers["x-csrf-token"]
        else:
            client.headers["x-csrf-token"] = mark
        answer = client.post("/api/vote", json=body)
    assert (answer.status_code, votes(site)) == (403, before)


def test_the_csrf_token_of_the_query_or_the_body_is_none(site, token):
    mark = csrf_token(token)
    with site.client(token) as client:
        del client.headers["x-csrf-token"]
        assert client.post(f"/api/undo?x-csrf-token={mark}", json={"request": "x"}).status_code == 403
        assert client.post("/api/undo", json={"request": "x", "x-csrf-token": mark}).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_a_form_could_send_is_refused(site, token, kind):
    body, before = vote_body(site, token), votes(site)
    with site.client(token, **{"content-type": kind}) as client:
        assert client.post("/api/vote", content=json.dumps(body)).status_code == 415
    assert votes(site) == before


def test_no_other_page_is_let_in_by_cors(site, token):
    with site.client(token, **{"access-control-request-method": "POST"}) as client:
        answer = client.options("/api/vote")
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert not [name for name in client.get("/").headers if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS"])
def test_other_methods_are_not_served(site, token, method):
    with site.client(token) as client:
        assert client.request(method, "/api/vote").status_code in (400, 405)


# Tokens


def test_a_private_link_becomes_a_cookie_and_leaves_the_address(site, token):
    with site.client() as client:
        answer = client.get(f"/in/{token}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith(f"rlhf_fast_{site.port}=") and "httponly" in cookie and "samesite=strict" in cookie
    assert "path=/" in cookie and "domain" not in cookie
    assert answer.headers["referrer-policy"] == "same-origin"
    assert token not in answer.text


def test_who_comes_from_another_site_is_asked_to_load_again_and_then_brings_the_cookie(site, token):
    with site.client(**{"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) as client:
        assert 'http-equiv="refresh"' in client.get("/").text
        client.headers["sec-fetch-site"] = "same-origin"
        assert client.get("/").status_code == 401  # and does so once


@pytest.mark.parametrize("where", ["query", "bearer", "header", "other cookie", "basic"])
def test_a_token_in_the_wrong_place_is_none(site, token, where):
    with site.client() as client:
        headers = {
            "bearer": {"authorization": f"Bearer {token}"}, "header": {"x-token": token},
            "other cookie": {"cookie": f"rlhf_fast_1={token}"}, "basic": {"authorization": f"Basic {token}"},
        }.get(where, {})  # fmt: skip
        answer = client.get(f"/api/answered?token={token}" if where == "query" else "/api/answered", headers=headers)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "wrong", ["x", "nobody" * 8, "..%2f..%2fetc%2fpasswd", "%00", "a%0d%0aSet-Cookie:%20a=b", "%ff" * 9, "y" * 300]
)
def test_a_wrong_link_sets_no_cookie_and_no_header(site, wrong):
    with site.client() as client:
        answer = client.get(f"/in/{wrong}")
    assert answer.status_code == 404 and "set-cookie" not in answer.headers


def test_a_new_link_ends_the_one_before(site):
    old = site.store.add_annotator("Grace")
    with site.client(old) as client:
        assert client.get("/api/answered").status_code == 200
        site.store.new_token("Grace")
        site.app.room.sessions.forget()
        assert client.get("/api/answered").status_code == 401
        assert client.post("/api/next", json={}).status_code == 401


def test_an_annotator_sees_nothing_of_the_administrator(site, token):
    with site.client(token) as client:
        for path in (
            "/admin",
            "/admin/export?form=votes",
            "/admin/decide/x",
            "/api/admin/item/x",
            "/api/admin/marked/x",
        ):
            assert client.get(path).status_code == 403, path
        for path in ("annotator", "link", "revoke", "decide"):
            assert client.post(f"/api/admin/{path}", json={}).status_code == 403, path
        assert "Admin" not in client.get("/").text


def test_nobody_reads_without_a_token(site):
    with site.client() as client:
        assert client.get("/").status_code == 401
        for path in ("/api/answered", "/api/task/x", "/api/marked/x", "/admin", "/admin/export?form=votes"):
            assert client.get(path).status_code == 401, path


def test_an_item_that_was_not_given_to_somebody_is_not_shown_to_them(site, token):
    other = site.store.add_annotator("Alan")
    item = vote_body(site, token)["item"]
    with site.client(other) as client:
        assert client.get(f"/api/task/{item}").status_code == 400
        body = vote_body(site, token) | {"item": item}
        assert client.post("/api/vote", json=body).status_code == 400


def test_what_is_hidden_is_nowhere_on_the_page(site, token):
    with site.client(token) as client:
        seen = client.get("/").text + client.post("/api/next", json={}).text + client.get("/api/answered").text
    assert "Good answer" in seen and "hidden-model" not in seen and '"kind": "check"' not in seen


# Bodies, paths, headers


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'"x"', b"[" * 60_000, b"\xff\xfe", b'{"request": 1}', b'{"request": ""}',
    b'{"request": "\\ud800"}', b'{"request": "x", "more": 1}', json.dumps({"request": "x" * 101}).encode(),
])  # fmt: skip
def test_a_body_that_is_not_what_is_expected_is_refused_in_words(site, token, body):
    with site.client(token, **{"content-type": "application/json"}) as client:
        answer = client.post("/api/undo", content=body)
    assert answer.status_code == 400 and set(answer.json()) == {"error"}
    assert "Traceback" not in answer.text and "File " not in answer.text


@pytest.mark.parametrize("changes", [
    {"ranks": [1]}, {"ranks": [1, 2, 3]}, {"ranks": [0, 1]}, {"ranks": [1, 9]}, {"ranks": ["1", 2]},
    {"ranks": [True, 2]}, {"ranks": [None, None]}, {"ranks": [1, None]}, {"ranks": [10**30, 1]}, {"order": [0, 0]},
    {"order": [1]}, {"order": [None, 0]}, {"order": [-1, 0]}, {"seconds": -1}, {"seconds": 1e999},
    {"seconds": float("nan")}, {"seconds": "1"}, {"note": None}, {"note": "x" * 20_000}, {"all_bad": 1},
    {"item": "nothing"}, {"item": None},
])  # fmt: skip
def test_a_vote_that_makes_no_sense_is_refused_and_not_written(site, token, changes):
    body, before = vote_body(site, token, **changes), votes(site)
    with site.client(token, **{"content-type": "application/json"}) as client:
        answer = client.post("/api/vote", content=json.dumps(body))
    assert (answer.status_code, votes(site)) == (400, before)
    assert answer.json()["error"]


def test_a_body_that_is_too_large_is_refused_by_its_stated_length_before_it_is_read(site, token):
    head = (
        f"POST /api/undo HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nOrigin: {site.origin}\r\n"
        f"Cookie: rlhf_fast_{site.port}={token}\r\nX-CSRF-Token: {csrf_token(token)}\r\n"
        "Content-Type: application/json\r\n"
    )
    assert raw(site, f"{head}Content-Length: {10**12}\r\n\r\n".encode()).split(b" ")[1] == b"413"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert raw(site, head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2).split(b" ")[1] == b"413"
    assert raw(site, head.encode() + b"Content-Length: -1\r\n\r\n").split(b" ")[1] == b"400"
    assert raw(site, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000).split(b" ")[1] in (b"400", b"431")


def test_a_body_that_does_not_come_ends_the_request(tmp_path):
    store = Store.open(tmp_path / "votes.db", create=True)
    token = store.add_annotator("Ada")
    with live(store, Limits(body_seconds=0.2)) as site:
        head = (
            "POST /api/undo HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n"
            f"Cookie: rlhf_fast_{site.port}={token}\r\nX-CSRF-Token: {csrf_token(token)}\r\n"
            "Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{"
        )
        assert raw(site, head.encode()).split(b" ")[1] == b"408"
    store.close()


@pytest.mark.parametrize("path", [
    "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/....//app.py", "/static//etc/passwd",
    "/static/%2fetc%2fpasswd", "/static/style.css%00.py", "/static/..\\app.py", "/static/",
    "/static/templates/base.html", "/../../../../etc/passwd", "/admin/../static/../security.py",
    "/api/task/..%2f..%2f..%2fetc%2fpasswd",
    "/admin/export?form=../../../../etc/passwd", "/admin/export?form=votes&format=/etc/passwd",
])  # fmt: skip
def test_no_path_leads_to_a_file(site, path):
    owner = site.app.owner_token
    head = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: rlhf_fast_{site.port}={owner}\r\nConnection: close\r\n\r\n"
    )
    answer = raw(site, head.encode())
    assert answer.split(b" ")[1] in (b"400", b"404")
    assert b"root:" not in answer and b"import" not in answer


@pytest.mark.parametrize(
    "path", ["/", "/in/nothing", "/static/style.css", "/static/nothing", "/nothing", "/api/answered", "/admin"]
)
def test_every_answer_has_the_headers_that_keep_it_in(site, path):
    with site.client() as client:
        headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';") and "unsafe" not in policy
    assert (
        "frame-ancestors 'none'" in policy
        and "base-uri 'none'" in policy
        and "require-trusted-types-for 'script'" in policy
    )
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers


def test_a_fault_of_the_server_says_nothing_of_its_inside(site, token, monkeypatch, caplog):
    monkeypatch.setattr(site.store, "answered", lambda _: 1 / 0)
    with site.client(token) as client:
        answer = client.get("/api/answered")
    assert answer.status_code == 500
    assert "Traceback" not in answer.text and "division" not in answer.text and ".py" not in answer.text
    assert "content-security-policy" in answer.headers


# How often


def test_buckets_refill_at_their_rate():
    buckets = Buckets(burst=2, per_second=4)
    assert [buckets.wait("a", 10.0), buckets.wait("a", 10.0), buckets.wait("a", 10.0)] == [0.0, 0.0, 0.25]
    assert buckets.wait("b", 10.0) == 0.0  # somebody else's is their own
    assert buckets.wait("a", 10.25) == 0.0 and buckets.wait("a", 10.25) == 0.25
    assert [buckets.wait("a", 99.0) for _ in range(3)] == [0.0, 0.0, 0.25]  # never more than the burst


def test_one_who_asks_too_often_waits_and_others_do_not(tmp_path):
    store = Store.open(tmp_path / "votes.db", create=True)
    store.add_items(pairs(3))
    greedy, other = store.add_annotator("greedy"), store.add_annotator("other")
    with live(store, Limits(burst=5, per_second=1.0, stranger_burst=10)) as site:
        with site.client(greedy) as client:
            answers = [client.get("/api/answered") for _ in range(8)]
        assert [one.status_code for one in answers].count(429) >= 2 and answers[0].status_code == 200
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
        with site.client(other) as client:
            assert client.get("/api/answered").status_code == 200
        guesses = []
        for n in range(12):
            with site.client(f"guess-{n}-0123456789") as client:
                guesses.append(client.get("/api/answered").status_code)
        assert guesses[-1] == 429 and 401 in guesses
        with site.client(other) as client:  # whoever is known is not held up by a stranger's guesses
            assert client.get("/api/answered").status_code == 200
    store.close()


def test_a_right_guess_after_too_many_wrong_ones_is_not_looked_at(tmp_path):
    store = Store.open(tmp_path / "votes.db", create=True)
    token = store.add_annotator("Ada")
    with live(store, Limits(stranger_burst=3, stranger_per_second=0.01)) as site:
        with site.client() as client:
            assert [client.get(f"/in/wrong{n}").status_code for n in range(3)] == [404] * 3
            assert client.get(f"/in/{token}").status_code == 429
        with site.client(token) as client:
            assert client.get("/api/answered").status_code == 429
    store.close()


def test_a_server_without_a_token_on_another_address_does_not_start(tmp_path):
    code = (
        "from types import SimpleNamespace as S; from rlhf_fast.annotate.app import serve; "
        "from rlhf_fast.annotate.store import Store; import sys; "
        "serve(Store.open(sys.argv[1], create=True), S(host='0.0.0.0', port=0, token=None, names=[]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "v.db")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode and "no token was given" in done.stderr
