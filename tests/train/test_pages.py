"""What SFT and PPO leave in report.html: the run, its curves, rows and responses, all of the data's texts escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlhf_fast import FunctionReward, PPORunConfig, RewardConfig, SFTConfig, run_ppo, run_reward, run_sft
from rlhf_fast.data.encode import Encoded
from rlhf_fast.train import pages
from rlhf_fast.train.pages import Samples, write_ppo_page, write_sft_page
from rlhf_kernels import IGNORED
from tests.model_cases import tiny_model
from tests.rollout.byte_tokenizer import byte_ids, byte_tokenizer
from tests.tiny_tokenizer import tiny_tokenizer

HOSTILE = '<script>alert("x")</script><img src=http://evil.example>&'
ESCAPED = "&lt;script&gt;alert(&quot;x&quot;)"


def row(number: int, score: float | None, **more) -> dict:
    return {
        "iteration": number, "prompt": f"prompt {number}", "response": f"response {number}", "score": score, "kl": 0.5,
        "length": 3, "finished": True, "scores": {"a": score},
    } | more  # fmt: skip


def write(folder: Path, rows: list[dict]) -> Path:
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": 2.0, "loss/value_avg": 0.25}) + "\n")
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_first_last_best_and_worst_responses_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "SHOWN", 2)
    scores = [0.5, None, 3.0, -1.0, 3.0, 2.0, -2.0]
    samples = Samples.read(write(tmp_path, [row(i, score) for i, score in enumerate(scores)]) / "rollouts.jsonl")
    shown = {title: [row["iteration"] for row in rows] for title, rows in samples.sections()}
    assert shown == {"First": [0, 1], "Last": [5, 6], "Best by score": [2, 4], "Worst by score": [6, 3]}


def test_the_page_of_ppo_says_what_was_said_and_for_what(tmp_path):
    rows = [row(1, 1.5), row(2, -2.5, kl=None, finished=False, scores={"short": None, "polite": -3.5})]
    html = write_ppo_page(write(tmp_path, rows), {"Data": "2 prompts"}).read_text()
    for text in (
        "2 prompts",
        "Value loss",
        "iteration 2, 3 tokens, cut off by the budget",
        "polite",
        "short <b>not judged",
        "1.50",
        "2.50",
    ):
        assert text in html, text
    assert "First" in html and "Worst by score" in html
    (tmp_path / "rollouts.jsonl").unlink()
    assert "log_rollouts is off" in write_ppo_page(tmp_path, {}).read_text()


def test_no_text_of_the_data_gets_into_the_page_as_markup(tmp_path):
    hostile = row(1, 1.0, prompt=HOSTILE, response=HOSTILE, scores={HOSTILE: 1.0, "b": 2.0})
    folder = tmp_path / "<b>name"
    folder.mkdir()
    tokenizer = byte_tokenizer()
    ids = byte_ids(tokenizer, HOSTILE)
    written = [
        write_ppo_page(write(folder, [hostile]), {HOSTILE: HOSTILE}).read_text(),
        write_sft_page(folder, {HOSTILE: HOSTILE}, tokenizer, [Encoded(ids, ids)], held_out=True).read_text(),
    ]
    for html in written:
        assert "<script" not in html and "<img" not in html and "<b>name" not in html and ESCAPED in html
        assert not re.search(r"https?://(?!evil\.example&gt;)|@import|url\(|<link|\bsrc=(?!http://evil)|\bhref=", html)
        assert len(html) < 40_000


def test_what_is_learnt_of_a_row_is_marked_and_a_long_row_is_shortened(tmp_path):
    tokenizer = byte_tokenizer()
    ids = byte_ids(tokenizer, "question answer" + "x" * 5000)
    labels = [IGNORED] * 9 + ids[9:15] + [IGNORED] * 5000
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": 1.0, "loss": 2.0}) + "\n")
    html = write_sft_page(tmp_path, {}, tokenizer, [Encoded(ids, labels)], held_out=False).read_text()
    assert "question <mark>answer</mark>xxx" in html and "\N{HORIZONTAL ELLIPSIS}" in html
    assert 1900 < html.count("x" * 10) * 10 < 2100
    assert "is learnt." in html and "<h2>Rows</h2>" in html


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": "w7 w8", "chosen": "w7", "rejected": "w8"} for i in range(12)]
    for name, keys in (("rows", ("prompt", "completion")), ("pairs", ("prompt", "chosen", "rejected"))):
        text = "".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def common(folder, tmp_path, data: str = "rows") -> dict:
    return {
        "dataset_name": str(folder / f"{data}.jsonl"), "output_dir": str(tmp_path / "out"), "use_cpu": True,
        "disable_tqdm": True, "per_device_train_batch_size": 4,
    }  # fmt: skip


def headings(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text())


def curves(page: Path) -> list[str]:
    return re.findall(r"<h3>([^<]*)<span", page.read_text())


def test_a_run_of_sft_leaves_its_page(folder, tmp_path):
    options = common(folder, tmp_path)
    output = run_sft(
        SFTConfig(model_name_or_path=f"{folder}/base", eval_dataset_name=options["dataset_name"], **options)
    )
    page = output / "report.html"
    assert headings(page) == ["Run", "Training", "Held-out rows"]
    assert curves(page) == ["Loss", "Held-out loss", "Gradient norm"]
    assert "12 rows are 3 steps of 4" in page.read_text() and "GB at most" in page.read_text()


@pytest.mark.parametrize(("fraction", "more"), [(0.0, []), (0.25, ["Accuracy on held-out pairs", "Calibration"])])
def test_a_run_of_a_reward_model_leaves_its_page(folder, tmp_path, fraction, more):
    run = RewardConfig(
        model_name_or_path=f"{folder}/base", eval_fraction=fraction, normalise=False, num_train_epochs=1,
        **common(folder, tmp_path, "pairs"),
    )  # fmt: skip
    page = run_reward(run).output / "report.html"
    assert headings(page) == ["Run", "Training", *more]
    assert curves(page) == ["Loss", "Accuracy", "Margin", "Gradient norm"]


def test_a_run_of_ppo_leaves_its_page(folder, tmp_path):
    run = PPORunConfig(sft_model_path=f"{folder}/base", response_length=4, total_episodes=8, **common(folder, tmp_path))
    words = FunctionReward("words", lambda prompts, responses, **columns: [float(len(text)) for text in responses])
    page = run_ppo(run, [(words, 1.0)]) / "report.html"
    assert headings(page) == ["Run", "Training", "Responses"]
    assert curves(page)[:3] == ["Reward", "KL", "Length"] and {"Value loss", "Clip fraction"} <= set(curves(page))
    text = page.read_text()
    assert "8 responses of at most 4 tokens, 0.667 to a prompt, are 2 iterations of 4" in text and "iteration 2" in text
