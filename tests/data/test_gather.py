"""A column that some rows lack is None in them, wherever columns go to reward functions."""

from __future__ import annotations

from rlhf_fast.data.columns import gather
from rlhf_fast.data.prompts import Prompts
from rlhf_fast.data.schema import PromptRow
from tests.tiny_tokenizer import tiny_tokenizer
from tests.trainer.cases import trainer

ROWS = [PromptRow("w1", {"answer": "red"}), PromptRow("w2"), PromptRow("w3", {"level": 0, "answer": "blue"})]
EXPECTED = {"answer": ["red", None, "blue"], "level": [None, None, 0]}


def test_columns_are_those_of_any_row_in_the_order_of_their_names():
    assert gather(row.columns for row in ROWS) == EXPECTED
    assert list(gather([{"b": 1}, {"a": 2}])) == ["a", "b"]
    assert gather([]) == gather([{}]) == {}


def test_prompts_have_none_where_a_row_has_no_such_column():
    assert Prompts.encode(tiny_tokenizer(), ROWS, 20).columns == EXPECTED


def test_the_tools_of_a_row_go_along_with_its_prompt():
    tools = [{"type": "function", "function": {"name": "w9", "parameters": {}}}]
    rows = [PromptRow([{"role": "user", "content": "w1"}], {}, tools), PromptRow([{"role": "user", "content": "w2"}])]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + tokenizer.chat_template
    prompts = Prompts.encode(tokenizer, rows, 20)
    assert prompts.tools == [tools, None]
    assert prompts.texts[0].startswith("w9 ") and not prompts.texts[1].startswith("w9")


def test_a_trainer_has_none_too_for_texts_and_for_token_ids(tmp_path):
    def reward(prompts, responses, answer, level):
        return [0.0] * len(responses)

    texts = [{"prompt": row.prompt, **row.columns} for row in ROWS]
    ids = [{"input_ids": [7, 8], **row.columns} for row in ROWS]
    for rows in (texts, ids):
        assert trainer(tmp_path, train_dataset=rows * 3, reward_model=reward).ppo.prompts.columns == {
            name: values * 3 for name, values in EXPECTED.items()
        }
