"""Items from files, from the rollouts of a run, and from a model that answers now; and the command line around them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_fast import FunctionReward, PPORunConfig, RewardConfig, UsageError, run_ppo, run_reward
from rlhf_fast.annotate.collect import first, priorities, read_rollouts, run_items
from rlhf_fast.annotate.config import AnnotateConfig
from rlhf_fast.annotate.items import make_item
from rlhf_fast.annotate.reading import read_checks, read_items
from rlhf_fast.annotate.run import Refresher, from_run, run_annotate
from rlhf_fast.annotate.store import Store
from rlhf_fast.cli import main
from rlhf_fast.runtime.config import default_of, field_names
from tests.tiny_tokenizer import tiny_tokenizer

CHAT = [[{"role": "user", "content": f"w{n} w{n + 1}"}] for n in range(6)]


def rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Files


def test_items_of_a_file_with_their_sources_and_what_nobody_is_shown(tmp_path, caplog):
    caplog.set_level("INFO")
    tools = [{"type": "function", "function": {"name": "f"}}]
    path = rows(
        tmp_path / "items.jsonl",
        {"prompt": "p", "responses": ["a", "b", "c"], "sources": ["m1", "m2", {"model": "m3", "seed": 4}], "id": "x"},
        {"prompt": CHAT[0], "responses": ["a", "b"], "ranks": [2, 1], "topic": "maths", "tools": tools},
        {"prompt": "p", "chosen": "good", "rejected": "bad", "models": ["m1", "m2"]},
        {"prompt": "p", "responses": ["same", "same"]},
    )
    first, second, third, _ = read_items(path)
    assert first.sources == [{"model": "m1"}, {"model": "m2"}, {"model": "m3", "seed": 4}] and first.meta == {"id": "x"}
    # all prompts of a file are rendered alike: those of plain text stand beside tools and stay text
    assert (second.prompt, second.tools, second.meta) == (CHAT[0], tools, {"topic": "maths", "ranks": [2, 1]})
    assert (third.responses, third.sources) == (["good", "bad"], [{"model": "m1"}, {"model": "m2"}])
    assert third.meta == {"ranks": [1.0, 2.0]} and all(item.answer is None for item in (first, second, third))
    said = caplog.text
    assert "kept beside the items: ranks, topic" in said and "1 of 4 items" in said and "word for word" in said
    again = read_items(path)
    assert [item.id for item in again] == [item.id for item in (first, second, third, _)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "responses": ["a"]}, "two or more"),
        ({"prompt": "p", "responses": "a or b"}, "list of two or more"),
        ({"prompt": "", "responses": ["a", "b"]}, "prompt"),
        ({"prompt": "p", "responses": ["a", 3]}, "a response"),
        ({"prompt": "p", "responses": ["a", "b"], "sources": ["m1"]}, "one for each"),
        ({"prompt": "p", "responses": ["a", "b"], "sources": ["m1", 2]}, "name of a model or an object"),
        ({"prompt": "p", "responses": list("abcdefghij")}, "at most 9"),
        ({"prompt": "p", "responses": ["a", "b"], "images": ["x.png"]}, "text only"),
        ({"prompt": "p", "answer": "a"}, "columns are prompt, answer; expected prompt and responses, or"),
    ],
)
def test_a_bad_row_is_told_by_line_and_reason_or_skipped(tmp_path, caplog, row, said):
    path = rows(tmp_path / "items.jsonl", {"prompt": "p", "responses": ["a", "b"]}, row)
    with pytest.raises(UsageError, match=f"items.jsonl:2: .*{said}"):
        read_items(path)
    assert len(read_items(path, on_bad_row="skip")) == 1 and "skipped 1 bad rows" in caplog.text
    with pytest.raises(UsageError, match="no usable row"):
        read_items(rows(tmp_path / "bad.jsonl", row), on_bad_row="skip")


def test_check_questions_are_comparisons_whose_ranks_are_the_answer(tmp_path):
    good = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [3, 1, 3]}
    found = read_checks(rows(tmp_path / "checks.jsonl", good, {"prompt": "q", "chosen": "a", "rejected": "b"}))
    assert [item.answer for item in found] == [[2, 1, 2], [1, 2]]
    with pytest.raises(UsageError, match="all tie"):
        read_checks(rows(tmp_path / "tie.jsonl", {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]}))


def test_rows_of_a_known_format(tmp_path):
    row = {"instruction": "do", "input": "it", "response1": "a", "response2": "b", "cmp_key": "m1_m2"}
    path = tmp_path / "pandalm.json"
    path.write_text(json.dumps([row | {f"annotator{n}": 1 for n in (1, 2, 3)}]))
    (item,) = read_items(str(path), format="pandalm")
    assert item.sources == [{"model": "m1"}, {"model": "m2"}] and item.responses == ["a", "b"]


# A run


def even(prompts, responses, **columns):
    return [float(sum(int(word[1:]) % 2 == 0 for word in r.split() if word[1:].isdigit())) for r in responses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model, a PPO run with its data, and two reward models that say the opposite of one another."""
    root = tmp_path_factory.mktemp("collect")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=97, max_position_embeddings=64, initializer_range=0.3, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    rows(root / "prompts.jsonl", *({"prompt": prompt} for prompt in CHAT))
    common = {"use_cpu": True, "disable_tqdm": True, "dtype": "float32", "lora_r": 4}
    run_ppo(PPORunConfig(
        sft_model_path=str(root / "base"), dataset_name=str(root / "prompts.jsonl"), output_dir=str(root / "run"),
        response_length=4, total_episodes=36, per_device_train_batch_size=12, learning_rate=1e-3, temperature=1.0,
        **common,
    ), [(FunctionReward("even", even), 1.0)])  # fmt: skip
    for name, (good, bad) in {"rm": ("w7", "w8"), "rm2": ("w8", "w7")}.items():
        rows(root / f"{name}.jsonl", *(
            {"prompt": prompt, "chosen": f"w{n + 40} {good} w9", "rejected": f"w{n + 40} {bad} w9"}
            for n, prompt in enumerate(CHAT)
        ))  # fmt: skip
        run_reward(RewardConfig(
            model_name_or_path=str(root / "base"), dataset_name=str(root / f"{name}.jsonl"), eval_fraction=0.0,
            output_dir=str(root / name), normalise=False, num_train_epochs=4.0, learning_rate=3e-2, **common,
        ))  # fmt: skip
    return root


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "rollouts.jsonl").read_text().splitlines()]


def test_rollouts_stand_under_the_prompts_of_the_runs_data(folder):
    groups = read_rollouts(folder / "run")
    assert sorted(json.dumps(group.prompt) for group in groups) == sorted(map(json.dumps, CHAT))
    lines = logged(folder)
    for group in groups:
        own = {
            line["response"]: line for line in lines if group.prompt[0]["content"] in line["prompt"].replace("<", " ")
        }
        for rollout in group.rollouts:
            assert own[rollout.response]["scores"] == rollout.scores
    total = {(line["prompt"], line["response"]) for line in lines if line["response"].strip()}
    assert sum(len(group.rollouts) for group in groups) == len(total)


def test_items_of_a_run_hold_its_responses_with_their_seeds_and_no_response_twice(folder):
    items = run_items(folder / "run", seed=3)
    lines = {(line["seed"], line["response"]): line for line in logged(folder)}
    seen = set()
    for item in items:
        assert item.prompt in CHAT and len(item.responses) == 2
        for response, source in zip(item.responses, item.sources, strict=True):
            line = lines[source["seed"], response]
            assert source["iteration"] == line["iteration"] and source["model"] == "run"
            assert source["checkpoint"] == f"iterations {line['iteration']}-{line['iteration']}"  # 3, each a band
            assert (json.dumps(item.prompt), response) not in seen
            seen.add((json.dumps(item.prompt), response))
    assert [item.id for item in run_items(folder / "run", seed=3, limit=4)] == [item.id for item in items[:4]]
    assert [item.id for item in run_items(folder / "run", seed=4)] != [item.id for item in items]
    assert {len(item.responses) for item in run_items(folder / "run", responses=4)} == {2, 3, 4} & {
        len(item.responses) for item in run_items(folder / "run", responses=4)
    }


def test_prompts_that_the_run_did_not_have_are_refused(folder, tmp_path):
    other = rows(tmp_path / "other.jsonl", {"prompt": "something else"})
    with pytest.raises(UsageError, match=r"is not in .*other.jsonl.*--prompts"):
        run_items(folder / "run", prompts=other)
    with pytest.raises(UsageError, match="log_rollouts"):
        run_items(folder / "rm", prompts=str(folder / "prompts.jsonl"))


def test_priorities_by_hand():
    items = [make_item(f"p{n}", ["a", "b"]) for n in range(3)]
    # margins of the first reward 1, 0.5, -2; of the second 1, -0.5, -2
    one, two = [1.0, 0.0, 0.5, 0.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.5, 0.0, 2.0]
    margins = priorities(items, [one], "margin")
    assert [margins[item.id] for item in items] == [-1.0, -0.5, -2.0]
    assert [item.prompt for item in first(items, margins, 2)] == ["p1", "p0"]
    differ = priorities(items, [one, two], "disagreement")
    sigmoid = 1 / (1 + 2.718281828459045**-0.5)
    assert [differ[item.id] for item in items] == pytest.approx([0.0, 2 * sigmoid - 1, 0.0])


def test_no_response_is_asked_twice_among_those_chosen():
    items = [make_item("p", pair) for pair in (["a", "b"], ["a", "c"], ["c", "d"])]
    chosen = first(items, {item.id: -n for n, item in enumerate(items)}, None)
    assert [item.responses for item in chosen] == [["a", "b"], ["c", "d"]]


def config(folder: Path, tmp_path: Path, **more) -> AnnotateConfig:
    given = {"store": str(tmp_path / "votes.db"), "from_run": str(folder / "run"), "use_cpu": True, "dtype": "float32"}
    given = {name: value for name, value in given.items() if name in ("store", "from_run") or more.get("reward_models")}
    return AnnotateConfig(**(given | more))


def gap(item, good: str, bad: str) -> int:
    """How differently two responses hold the words that the reward models like and dislike."""
    held = [text.split().count(good) - text.split().count(bad) for text in item.responses]
    return abs(held[0] - held[1])


def test_the_smallest_margins_come_first_also_by_the_scores_that_the_run_logged(folder, tmp_path):
    chosen, ranked = from_run(config(folder, tmp_path, mode="margin", max_items=5), 0)
    assert len(chosen) == 5 and [ranked[item.id] for item in chosen] == sorted(ranked.values())[::-1][:5]
    for item in chosen:  # by the function that was the run's reward
        scores = even(None, item.responses)
        assert scores[0] == scores[1] and ranked[item.id] == 0.0


def test_where_two_reward_models_disagree_comes_first(folder, tmp_path):
    models = [str(folder / "rm"), str(folder / "rm2")]
    chosen, ranked = from_run(config(folder, tmp_path, mode="disagreement", reward_models=models, max_items=3), 0)
    everything = run_items(folder / "run", every_pair=True)
    by_gap = sorted((gap(item, "w7", "w8"), ranked[item.id]) for item in everything)
    most, least = [value for size, value in by_gap if size], [value for size, value in by_gap if not size]
    assert most and sum(most) / len(most) > sum(least) / len(least)
    assert ranked[chosen[0].id] == max(ranked.values())


def test_a_retrained_reward_model_orders_the_waiting_items_anew(folder, tmp_path, monkeypatch):
    import shutil

    rm = tmp_path / "rm"
    shutil.copytree(folder / "rm", rm)
    given = config(folder, tmp_path, mode="margin", reward_models=[str(rm)], max_items=6)
    monkeypatch.setattr(AnnotateConfig, "serves", False)
    run_annotate(given)
    store = Store.open(given.store)
    before = dict(store._db.execute("SELECT item_id, priority FROM queue").fetchall())
    assert len(before) == 6 and len(set(before.values())) > 1
    watcher = Refresher(store, given, 0)
    assert not watcher.look()  # nothing has changed
    shutil.rmtree(rm)
    shutil.copytree(folder / "rm2", rm)
    with torch.random.fork_rng():
        assert watcher.look()
    after = dict(store._db.execute("SELECT item_id, priority FROM queue").fetchall())
    assert after.keys() >= before.keys() and any(after[name] != before[name] for name in before)
    assert store.audit_log(1)[0]["what"] == "items chosen anew" and not watcher.look()
    (ada,) = [store.annotator_of(store.add_annotator("ada")).id]
    assert after[store.next_item(ada).item.id] == max(after.values())
    store.close()


# A model that answers now


def test_items_that_a_model_makes_now(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    given = {"store": str(tmp_path / "v.db"), "backup": str(tmp_path / "b.db"), "model": str(folder / "base"),
             "prompts": str(folder / "prompts.jsonl"), "candidates": 3, "response_length": 4, "temperature": 1.0,
             "use_cpu": True, "dtype": "float32", "seed": 5}  # fmt: skip
    run_annotate(AnnotateConfig(**given))
    store = Store.open(given["store"])
    items = store.items()
    assert [item.prompt for item in items] == CHAT and store.settings["seed"] == 5
    for number, item in enumerate(items):
        assert 2 <= len(item.responses) == len(set(item.responses)) <= 3
        assert all(source["model"] == "base" for source in item.sources)
        seeds = [source["seed"] - (5 << 32) for source in item.sources]
        assert set(seeds) <= set(range(3 * number, 3 * number + 3)) and seeds == sorted(seeds)
    store.close()
    with pytest.raises(UsageError, match="same response each time"):
        run_annotate(AnnotateConfig(**(given | {"temperature": 0.0, "backup": str(tmp_path / "c.db")})))


# The command line


@pytest.fixture
def items_file(tmp_path) -> str:
    return rows(tmp_path / "items.jsonl", *(
        {"prompt": f"p{n}", "responses": ["a", "b"], "sources": ["m1", "m2"]} for n in range(3)
    ))  # fmt: skip


def vote(path: str, *answers: list[int]) -> None:
    store = Store.open(path)
    ada = store.annotator_of(store.add_annotator("ada")).id
    for ranks in answers:
        store.vote(ada, store.next_item(ada).item.id, ranks, seconds=4.0)
    store.close()


def test_items_in_votes_out(tmp_path, items_file, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["annotate", "--items", items_file, "--overlap", "1", "--report", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 3
    vote("votes.db", [1, 2], [2, 1], [1, 1])
    assert main(["annotate", "--export", "out.jsonl", "--backup", "copy.db", "--report", "text"]) == 0
    printed = capsys.readouterr().out
    assert "copy.db: a copy of votes.db" in printed and "3 of 3 done" in printed and "m1" in printed
    assert "out.jsonl: 2 rows; left out: 1 pairs that all call a tie" in printed
    written = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in written] == [("p0", "a", "b"), ("p1", "b", "a")]
    assert main(["annotate", "--store", "copy.db", "--export", "votes.parquet", "--format", "votes"]) == 0
    audit = Store.open("votes.db").audit_log()
    assert {"items added", "annotator added", "export", "backup", "settings"} >= {row["what"] for row in audit}
    assert "export" in {row["what"] for row in audit}


def test_what_is_wrong_leaves_the_store_as_it_was(tmp_path, items_file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bad = rows(tmp_path / "bad.jsonl", {"prompt": "p", "responses": ["a"]})
    assert main(["annotate", "--items", bad, "--report", "text"]) == 2 and not Path("votes.db").exists()
    assert main(["annotate", "--report", "text"]) == 2 and "nothing to put into a new one" in capsys.readouterr().err
    assert main(["annotate", "--items", items_file, "--guidelines", "no.md", "--report", "text"]) == 2
    assert not Path("votes.db").exists()


def test_annotators_get_a_link_once_and_stay(tmp_path, items_file, monkeypatch, caplog):
    pytest.importorskip("starlette")
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    run_annotate(AnnotateConfig(items=items_file, annotators=["ada", "bob"], report="text", port=9000))
    links = [message.split(": ")[1] for message in caplog.messages if "private link of" in message]
    assert len(links) == 2 and all(link.startswith("http://127.0.0.1:9000/in/") for link in links)
    store = Store.open("votes.db")
    assert store.annotator_of(links[1].rsplit("/", 1)[1]).name == "bob"
    run_annotate(AnnotateConfig(annotators=["bob", "eve"], report="text"))
    assert [one.name for one in store.annotators()] == ["ada", "bob", "eve"]
    assert "bob is an annotator of votes.db already" in caplog.text
    store.close()


def test_the_page_is_served_unless_something_else_is_asked_for(tmp_path, items_file, monkeypatch):
    served = []
    monkeypatch.setattr("rlhf_fast.annotate.run._server", lambda: lambda store, given: served.append(given.port))
    said = run_annotate(AnnotateConfig(store=str(tmp_path / "v.db"), items=items_file, port=8123))
    assert served == [8123] and said.endswith("v.db: 0 votes")
    run_annotate(AnnotateConfig(store=str(tmp_path / "v.db"), report="text"))
    assert served == [8123]


def test_a_missing_extra_is_said_before_anything_is_made(tmp_path, items_file, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith(("starlette", "rlhf_fast.annotate.app"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(UsageError, match=r"pip install \"rlhf-fast\[ui\]\""):
        run_annotate(AnnotateConfig(store=str(tmp_path / "v.db"), items=items_file))
    assert not (tmp_path / "v.db").exists()


DEAD = {
    "prompts": "p.jsonl", "candidates": 3, "mode": "margin", "reward_models": ["rm"], "max_items": 5,
    "refresh_seconds": 3.0, "format": "ranks", "ties": "keep", "min_agreement": 0.9, "min_votes": 2,
    "soft_labels": True, "pseudonyms": True, "test_fraction": 0.1, "max_prompts": 2, "response_length": 9,
    "stop": ["x"], "temperature": 0.1, "top_k": 3, "top_p": 0.5, "max_rollout_batch": 3, "max_kv_cache_gb": 1.0,
    "chat_template_path": "t", "max_tokens_per_micro_batch": 7, "dtype": "float32", "use_cpu": True,
    "dataset_format": "oasst", "on_bad_row": "skip",
}  # fmt: skip
SERVING = {"host": "127.0.0.2", "port": 9, "token": "t" * 20, "names": ["box.example"]}


@pytest.mark.parametrize("name", DEAD)
def test_a_field_that_would_do_nothing_is_refused(name):
    with pytest.raises(UsageError, match=f"{name}=.*would do nothing"):
        AnnotateConfig(**{name: DEAD[name]})


@pytest.mark.parametrize("name", SERVING)
def test_a_field_of_the_page_is_refused_where_none_is_served(name):
    with pytest.raises(UsageError, match=f"{name}=.*would do nothing"):
        AnnotateConfig(report="text", **{name: SERVING[name]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"items": "a", "from_run": "b"}, "one source"),
        ({"model": "m"}, "prompts"),
        ({"from_run": "r", "mode": "margin", "reward_models": ["a", "b"]}, "one at most"),
        ({"from_run": "r", "mode": "disagreement", "reward_models": ["a"]}, "two or more"),
        ({"from_run": "r", "mode": "margin", "candidates": 3}, "two responses"),
        ({"export": "out.csv"}, "in .jsonl or .parquet"),
        ({"export": "o.jsonl", "format": "votes", "ties": "keep"}, "format=votes"),
        ({"export": "o.jsonl", "format": "ranks", "soft_labels": True}, "format=pairs"),
        ({"port": 70000}, "65535"),
        ({"port": 0, "annotators": ["ada"]}, "the links of annotators"),
        ({"model_path": "m"}, "use model"),
        ({"num_responses": 3}, "use candidates"),
    ],
)
def test_choices_that_do_not_fit_are_refused_in_words(given, said):
    with pytest.raises(UsageError, match=said):
        AnnotateConfig(**given)


def test_every_field_is_tried_here():
    elsewhere = {"store", "items", "from_run", "model", "checks", "guidelines", "overlap", "lease_seconds", "repeats",
                 "checks_share", "seed", "annotators", "export", "backup", "report"}  # fmt: skip
    assert {*DEAD, *SERVING} | elsewhere == set(field_names(AnnotateConfig))
    assert all(default_of(AnnotateConfig, name) != value for name, value in (DEAD | SERVING).items())


def test_settings_go_into_the_store(tmp_path, items_file):
    (tmp_path / "guide.md").write_text("# Be kind")
    checks = rows(tmp_path / "checks.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"})
    given = {"overlap": 2, "lease_seconds": 60.0, "repeats": 0.2, "checks_share": 0.3, "seed": 9}
    run_annotate(AnnotateConfig(
        store=str(tmp_path / "v.db"), items=items_file, checks=checks, guidelines=str(tmp_path / "guide.md"),
        report="text", **given,
    ))  # fmt: skip
    store = Store.open(tmp_path / "v.db")
    kept = {"checks" if name == "checks_share" else name: value for name, value in given.items()}
    assert store.settings == store.settings | kept | {"guidelines": "# Be kind"}
    assert [item.prompt for item in store.items("check")] == ["q"]
    store.close()
    run_annotate(AnnotateConfig(store=str(tmp_path / "v.db"), overlap=3, report="text"))
    store = Store.open(tmp_path / "v.db")
    assert (store.settings["overlap"], store.settings["repeats"]) == (3, 0.2)
    store.close()
