"""A reward behind an address: what it is sent, what it may answer, and what is refused."""

from __future__ import annotations

import datetime
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf_fast import ExportConfig, PPORunConfig, UsageError, run_export
from rlhf_fast.rewards.chosen import choose_rewards, refuse_columns, with_retries
from rlhf_fast.rewards.endpoint import EndpointReward
from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime import interrupt
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train.ppo_run import run_ppo
from tests.resume.cases import config, prepare

BATCH = RewardBatch(
    ["p0", "größer"], ["a", "b\n"], [[1], [2]], {"target": [1, 2], "tags": [["x"], {}]},
    [None, [{"role": "user", "content": "größer"}]],
)  # fmt: skip


class Server:
    """Answers every POST with `answer(request)`, which gives a status, headers and a body; keeps the requests."""

    def __init__(self, answer) -> None:
        self.requests: list = []
        self.tokens: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((self.path, self.headers["Content-Type"], json.loads(body)))
                server.tokens.append(self.headers["Authorization"])
                status, headers, reply = answer(json.loads(body))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in [reply] if isinstance(reply, bytes) else reply:
                    try:
                        self.wfile.write(piece)
                        self.wfile.flush()
                    except OSError:
                        return

            def log_message(self, *arguments) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/score?model=a"

    def __enter__(self) -> Server:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.http.shutdown()
        self.http.server_close()


def replies(body: bytes | list, status: int = 200, headers: dict | None = None):
    return lambda request: (status, headers or {}, body)


def test_prompts_responses_messages_and_columns_are_posted_and_scores_come_back_in_order():
    with Server(replies(b'{"scores": [1, -0.5], "model": "a"}')) as server:
        reward = EndpointReward(server.address)
        assert reward.score(BATCH).tolist() == [1.0, -0.5]
    sent = {
        "prompts": ["p0", "größer"], "responses": ["a", "b\n"],
        "messages": [None, [{"role": "user", "content": "größer"}]], "columns": {"target": [1, 2], "tags": [["x"], {}]},
    }  # fmt: skip
    assert server.requests == [("/score?model=a", "application/json", sent)]
    assert reward.name == f"127.0.0.1:{server.http.server_port}/score"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (replies(b"not JSON"), "cannot be read"),
        (replies(b'{"score": [1, 2]}'), "cannot be read .KeyError"),
        (replies(b"[1, 2]"), "cannot be read .TypeError"),
        (replies(b"[" * 4000), "cannot be read"),
        (replies(b'{"scores": [NaN, 1]}'), "NaN is no number of JSON"),
        (replies(b'{"scores": ["1", 2]}'), "expected a list of numbers"),
        (replies(b'{"scores": [true, 2]}'), "expected a list of numbers"),
        (replies(b'{"scores": 3}'), "expected a list of numbers"),
        (replies(b'{"scores": [1]}'), "1 scores for 2 responses"),
        (replies(b"overloaded", 503), "status 503"),
        (replies(b" " * 100_000 + b'{"scores": [1, 2]}'), "longer than 4224 bytes"),
    ],
)
def test_any_other_answer_is_refused_with_the_form_that_was_expected(answer, message):
    with Server(answer) as server, pytest.raises(UsageError, match=message) as error:
        EndpointReward(server.address, timeout=5).score(BATCH)
    assert 'answers {"scores": [...]}' in str(error.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (datetime.date(2024, 5, 1), "datetime.date"),
        (float("nan"), r"nan \(float\)"),
        (b"raw", "bytes"),
        ({"a": [1, {2}]}, "dict"),
        ({3: "x"}, "dict"),
    ],
)
def test_a_column_that_json_cannot_hold_is_refused_by_name_before_anything_is_sent(value, told):
    with Server(replies(b'{"scores": [1, 2]}')) as server:
        reward = EndpointReward(server.address)
        message = rf"the column 'when' holds .*{told}.* which JSON cannot hold.*{server.address.split('?')[0]}"
        with pytest.raises(UsageError, match=message):
            refuse_columns([(reward, 1.0)], {"fine": [None, 1.5], "when": ["text", value]})
        with pytest.raises(UsageError, match="the column 'when'"):
            reward.score(RewardBatch(["p"], ["r"], [[1]], {"when": [value]}))
    assert server.requests == []


def test_redirects_are_not_followed():
    with Server(replies(b'{"scores": [1, 2]}')) as other:
        redirect = replies(b"", 307, {"Location": other.address})
        with Server(redirect) as server, pytest.raises(UsageError, match=r"status 307.*redirects are not followed"):
            EndpointReward(server.address).score(BATCH)
    assert other.requests == []


def test_an_answer_that_drips_is_given_up_when_the_time_is_over():
    def drip():
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    started = time.monotonic()
    with Server(lambda request: (200, {}, drip())) as server, pytest.raises(UsageError, match=r"within 0\.3 s"):
        EndpointReward(server.address, timeout=0.3).score(BATCH)
    assert time.monotonic() - started < 3


def test_nobody_at_the_address_is_an_error_that_names_it():
    with Server(replies(b"")) as server:
        address = server.address
    with pytest.raises(UsageError, match=f"reward at {address.split('?')[0]}.*ConnectionRefusedError"):
        EndpointReward(address).score(BATCH)


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "ftp://host/x", "127.0.0.1:8000", "http://", "http://host:port", "http://a b/", "",
     "http://host:99999/"],
)  # fmt: skip
def test_an_address_that_is_not_http_is_refused(address):
    with pytest.raises(UsageError, match="cannot be used: expected http"):
        EndpointReward(address)


def test_an_address_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(UsageError, match="leave it out") as error:
        EndpointReward("http://me:secret@host/")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("address", ["http://me:secret@host:99999/", "http://host:99999/?key=secret", "me:secret@host"])
def test_an_address_that_cannot_be_used_is_not_repeated_with_its_secret(address):
    with pytest.raises(UsageError, match="cannot be used") as error:
        EndpointReward(address)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [(replies(b"\x1b[2J\x1b]0;x\x07"), r"\\x1b\[2J"), (replies(b'{"scores": ["\\u001b[2J", "\\u009b"]}'), r"\\x1b\[2J"),
     (replies(b"", 500), r"status 500 \\x1b\[2Jgone")],
)  # fmt: skip
def test_what_a_server_answers_commands_no_terminal(monkeypatch, answer, shown):
    original = BaseHTTPRequestHandler.send_response
    monkeypatch.setattr(
        BaseHTTPRequestHandler, "send_response",
        lambda self, code: original(self, code, "\x1b[2Jgone" if code == 500 else None),
    )  # fmt: skip
    with Server(answer) as server, pytest.raises(UsageError, match=shown) as error:
        EndpointReward(server.address, timeout=5).score(BATCH)
    assert str(error.value).isprintable()


def test_names_and_weights_of_the_config():
    names = ["endpoint:http://a/x", "endpoint:https://b:1"]
    (one, weight), (two, other) = choose_rewards(names, [2.0, -1.0], timeout=7.0)
    assert (one.name, two.name, weight, other) == ("a/x", "b:1", 2.0, -1.0)
    assert (one.timeout, choose_rewards(["endpoint:http://a"], None, timeout=None)[0][0].timeout) == (7.0, 60.0)
    with pytest.raises(UsageError, match="reward_weights has 1 numbers for 2"):
        choose_rewards(["endpoint:http://a", "endpoint:http://b"], [1.0], timeout=None)
    with pytest.raises(UsageError, match="reward_funcs names 'http://a'; expected endpoint:ADDRESS"):
        choose_rewards(["http://a"], None, timeout=None)


@pytest.mark.parametrize("options", [{"reward_timeout": 0.0}, {"reward_retries": -1}])
def test_limits_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError, match=f"{next(iter(options))}="):
        PPORunConfig(use_cpu=True, **options)


def test_ppo_trains_against_an_endpoint_and_logs_it_under_its_name(tmp_path):
    def lengths(request):
        return 200, {}, json.dumps({"scores": [len(text) for text in request["responses"]]}).encode()

    folder = prepare(tmp_path)
    with Server(lengths) as server:
        address = f"{server.address}&token=s3cret-w0rd"
        named = {"reward_funcs": [f"endpoint:{address}"], "reward_weights": [0.5], "reward_model_path": None}
        run_ppo(config("ppo", folder, tmp_path / "out", total_episodes=6, **named))
        with pytest.raises(UsageError, match=r"reward_funcs was .*token=\*\*\*.* and is ") as error:
            named["reward_funcs"] = [f"endpoint:{server.address}&token=0ther"]
            run_ppo(config("ppo", folder, tmp_path / "out", total_episodes=6, resume="auto", **named))
        assert "0ther" not in str(error.value) and "s3cret" not in str(error.value)
    assert server.requests[0][0] == "/score?model=a&token=s3cret-w0rd"
    run_export(ExportConfig(model_path=str(tmp_path / "out"), output_dir=str(tmp_path / "exported")))
    files = [path for name in ("out", "exported") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert "reward_funcs" in (tmp_path / "exported" / "README.md").read_text()
    assert [path for path in files if b"s3cret" in path.read_bytes() or b"w0rd" in path.read_bytes()] == []
    (row,) = read_metrics(tmp_path / "out")
    sent = server.requests[0][2]["responses"]
    assert set(server.requests[0][2]["columns"]) == {"completion"}
    assert row[f"reward/127.0.0.1:{server.http.server_port}/score"] == pytest.approx(sum(map(len, sent)) / 6)
    assert row["objective/scores"] == pytest.approx(0.5 * sum(map(len, sent)) / 6)


def test_a_run_that_is_asked_to_stop_does_not_wait_for_an_endpoint(monkeypatch):
    """Nor does one without `reward_timeout`."""
    monkeypatch.setattr(interrupt, "_asked", interrupt.signal.SIGINT)
    with Server(lambda request: (time.sleep(8), (200, {}, b""))[1]) as server:
        ((reward, _),) = with_retries(
            choose_rewards([f"endpoint:{server.address}"], None, timeout=None), timeout=None, retries=0
        )
        started = time.monotonic()
        with pytest.raises(interrupt.Abandoned):
            reward.score(BATCH)
        assert time.monotonic() - started < 5


def test_the_token_of_the_environment_is_sent_and_told_nobody(monkeypatch):
    with Server(replies(b'{"scores": [1, 2]}')) as server:
        EndpointReward(server.address).score(BATCH)
        monkeypatch.setenv("RLHF_FAST_REWARD_TOKEN", "s3cret")
        ((reward, _),) = choose_rewards([f"endpoint:{server.address}"], None, timeout=None)
        reward.score(BATCH)
    assert server.tokens == [None, "Bearer s3cret"]
    assert "s3cret" not in repr(reward) and "s3cret" not in reward.name


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [
        ("http://judge.example/score", "s3cret", "sent to judge.example unencrypted. Give an https address"),
        ("https://judge.example/score", "a\r\nX-Evil: 1", "no header can hold"),
        ("https://judge.example/score", "", "is empty"),
    ],
)
def test_a_token_that_others_could_read_or_that_breaks_a_header_is_refused(address, token, message):
    with pytest.raises(UsageError, match=message) as error:
        EndpointReward(address, token=token)
    assert "s3cret" not in str(error.value)
    assert EndpointReward("https://judge.example/score", token="s3cret").token == "s3cret"
