"""Replies through chat templates: learnt as the template renders them, or refused with the reason.

The templates are in the manner of ChatML, Llama 3, Mistral and Qwen3; the words are made up.
"""

from __future__ import annotations

import logging

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_fast.data.encode import encode_demonstration, encode_prompt, encode_replies, shown_example
from rlhf_fast.data.schema import Demonstration
from rlhf_fast.runtime.errors import UsageError
from rlhf_kernels import IGNORED
from tests.data.templates import CHATML, EOS, LLAMA3, MISTRAL, THINKS, assistant, learnt, user

TALK = [user("hello"), assistant("I am well."), user("how are you?"), assistant("well, well")]


def encode(tokenizer, messages, tools=None):
    return encode_demonstration(tokenizer, Demonstration(messages=messages, tools=tools), max_length=999)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["I am well.<|im_end|>", "well, well<|im_end|>"]),
        (LLAMA3, ["I am well.<|im_end|>", "well, well<|im_end|>"]),
        (MISTRAL, [" I am well.<|im_end|>", " well, well<|im_end|>"]),
    ],
)
def test_prompt_reply_and_end_are_the_conversation_as_it_is_rendered(make_tokenizer, template, expected):
    tokenizer = make_tokenizer(template=template)
    (encoded,) = encode(tokenizer, TALK)
    whole = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert tokenizer.decode(encoded.input_ids) == whole.rstrip()
    assert learnt(tokenizer, encoded) == expected
    context = encode_prompt(tokenizer, TALK[:3])
    assert encoded.input_ids[: len(context)] == context


@pytest.mark.parametrize(
    ("template", "reply", "expected"),
    [(LLAMA3, "  I am well.\n", "I am well."), (MISTRAL, "hello ", " hello "), (CHATML, "  hello\n", "  hello\n")],
)
def test_white_space_around_a_reply_is_the_templates(make_tokenizer, template, reply, expected):
    tokenizer = make_tokenizer(template=template)
    (encoded,) = encode(tokenizer, [user("hello"), assistant(reply)])
    assert learnt(tokenizer, encoded) == [expected + EOS]


def test_where_thoughts_of_earlier_turns_are_left_out_each_turn_is_learnt_after_what_generation_sees(make_tokenizer):
    tokenizer = make_tokenizer(template=THINKS)
    talk = [user("hello"), assistant("well", reasoning_content="hm"), user("how?"), assistant("<think>so</think>fine")]
    first, second = encode(tokenizer, talk)
    assert tokenizer.decode(first.input_ids) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nwell<|im_end|>"
    )
    assert learnt(tokenizer, first) == ["<think>\nhm\n</think>\n\nwell<|im_end|>"]
    assert tokenizer.decode(second.input_ids) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nwell<|im_end|>\n"
        "<|im_start|>user\nhow?<|im_end|>\n<|im_start|>assistant\n<think>\nso\n</think>\n\nfine<|im_end|>"
    )
    assert learnt(tokenizer, second) == ["<think>\nso\n</think>\n\nfine<|im_end|>"]
    assert second.input_ids[: second.labels.count(IGNORED)] == encode_prompt(tokenizer, talk[:3])


def test_turns_share_a_sequence_as_long_as_the_template_does_not_rewrite_them(make_tokenizer):
    """Three turns, of which the second question makes the template drop the first turn's thoughts only."""
    calls = [{"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}]
    talk = [user("hello"), assistant(None, tool_calls=calls), {"role": "tool", "content": "a world"}, assistant("well")]
    (encoded,) = encode(make_tokenizer(template=THINKS), talk)  # no question between: the thoughts stay
    tokenizer = make_tokenizer(template=THINKS)
    assert learnt(tokenizer, encoded) == [
        '<think>\n\n</think>\n\n<tool_call>{"name": "look", "arguments": {"at": "it"}}</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nwell<|im_end|>",
    ]
    assert [len(learnt(tokenizer, part)) for part in encode(tokenizer, [*talk, user("how?"), assistant("so")])] == [
        2,
        1,
    ]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((0, None), ["well, well<|im_end|>"]), ((None, 0), ["I am well.<|im_end|>"]), ((1, 0), ["I am well.<|im_end|>"])],
)
def test_a_turn_with_weight_0_is_shown_and_not_learnt(make_tokenizer, weights, expected):
    tokenizer = make_tokenizer()
    talk = [dict(turn) for turn in TALK]
    for turn, weight in zip((1, 3), weights, strict=True):
        if weight is not None:
            talk[turn]["weight"] = weight
    (encoded,) = encode(tokenizer, talk)
    assert learnt(tokenizer, encoded) == expected
    assert "I am well." in tokenizer.decode(encoded.input_ids)
    with pytest.raises(UsageError, match="no turn of the assistant is learnt"):
        encode(tokenizer, [user("hello"), assistant("well", weight=0)])


def test_a_conversation_that_the_assistant_begins_needs_weight_0_there(make_tokenizer):
    tokenizer = make_tokenizer()
    with pytest.raises(UsageError, match=r"begins with the assistant.*weight 0"):
        encode(tokenizer, [assistant("hello"), user("how?"), assistant("well")])
    (encoded,) = encode(tokenizer, [assistant("hello", weight=0), user("how?"), assistant("well")])
    assert learnt(tokenizer, encoded) == ["well<|im_end|>"]


def test_tools_calls_and_thoughts_go_through_a_template_that_shows_them(make_tokenizer):
    tokenizer, tools = make_tokenizer(template=THINKS), [{"type": "function", "function": {"name": "look"}}]
    ids = encode_prompt(tokenizer, [user("hello")], tools=tools)
    assert tokenizer.decode(ids).startswith('<|im_start|>system\n[{"type": "function", "function": {"name": "look"}}]')


@pytest.mark.parametrize(
    ("messages", "tools", "named"),
    [
        (
            [user("hello"), assistant("well", reasoning_content="hm")],
            None,
            "turn 2 of 2, of the assistant.*`reasoning_c",
        ),
        ([user("hello"), assistant("well", tool_calls=[{"function": {}}])], None, "turn 2 of 2.*has `tool_calls`"),
        ([user("hello"), assistant("well")], [{"type": "function"}], "the row has `tools`"),
        (
            [{"role": "system", "content": "be kind"}, user("hello"), assistant("well")],
            None,
            "turn 1 of 3, of the syst",
        ),
        (
            [user("hello"), assistant("well"), {"role": "tool", "content": "4"}, assistant("4")],
            None,
            "turn 3 of 4.*tool",
        ),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_name(make_tokenizer, messages, tools, named):
    deaf = (
        "{% for m in messages if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
        "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = make_tokenizer(template=deaf)
    with pytest.raises(UsageError, match=named):
        encode(tokenizer, messages, tools)
    with pytest.raises(UsageError, match=named.split(" of ")[0]):
        encode_prompt(tokenizer, [*messages, user("and?")], tools=tools)


def test_links_between_turns_that_are_not_shown_are_said_once(make_tokenizer, caplog):
    tokenizer = make_tokenizer(template=CHATML + "{# links #}")
    talk = [user("hello"), assistant("well"), {"role": "tool", "content": "4", "tool_call_id": "a"}, assistant("4")]
    with caplog.at_level(logging.INFO, "rlhf_fast.notices"):
        encode(tokenizer, talk)
        encode(tokenizer, [*talk, *TALK])
    assert [record.getMessage() for record in caplog.records] == [
        "the chat template does not show `tool_call_id` of the tool's turns"
    ]


HEADER = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PLAIN_HEADER = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}{{ eos_token }}{% endfor %}"
OPENS_OTHERWISE = HEADER + "{% if add_generation_prompt %}<|im_start|>bot\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (HEADER, r"has no generation prompt: it writes '<\|im_start\|>assistant\\n' before a reply"),
        (PLAIN_HEADER, "has no generation prompt: it writes 'ASSISTANT: ' before a reply"),
        (OPENS_OTHERWISE, r"otherwise than its prompt.*assistant\\nwell.* where the prompt has .*bot\\n"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}A:", "ends a reply with 'A:'"),
        (CHATML.replace("<|im_end|>", ""), "has no end.*Write the EOS"),
        (CHATML.replace("<|im_end|>\n", "<|im_end|>bye\n"), "writes 'bye' after a reply's EOS"),
        (CHATML.replace("<|im_end|>", "<|endoftext|>"), r"ends a reply with '<\|endoftext\|>'.*Set eos_token to"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "does not show turn 1 of 2, of the user"),
        (CHATML.replace("m['content']", "m['content'][:4]"), "does not show turn 1"),
        ("", "does not show turn 1"),
    ],
)  # fmt: skip
def test_a_template_that_renders_a_reply_otherwise_is_refused_with_the_difference(make_tokenizer, template, message):
    tokenizer = make_tokenizer(template=template)
    with pytest.raises(UsageError, match=message):
        encode(tokenizer, [user("hello"), assistant("well")])
    with pytest.raises(UsageError, match=message):
        encode_replies(tokenizer, [user("hello")], ["well"])
    with pytest.raises(UsageError, match=message.replace("nwell", "nanswer")):
        encode_prompt(tokenizer, [user("hello")])


@pytest.mark.parametrize("reply", ["<think>why</think>well", "he said: <think> and left"])
def test_a_template_that_drops_words_of_a_reply_is_refused_with_both(make_tokenizer, reply):
    drops = CHATML.replace("m['content']", "m['content'].split('</think>')[-1].replace('<think> ', '')")
    with pytest.raises(UsageError, match=r"the chat template rewrites a reply: .*think.* becomes '"):
        encode(make_tokenizer(template=drops), [user("hello"), assistant(reply)])


OPENS_THINK = HEADER + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"


def test_a_reply_begun_by_the_generation_prompt_is_learnt_once_and_another_refused(make_tokenizer):
    tokenizer = make_tokenizer(template=OPENS_THINK)
    (encoded,) = encode(tokenizer, [user("hello"), assistant("<think>\nhm\n</think>well")])
    assert tokenizer.decode(encoded.input_ids).count("<think>") == 1
    assert learnt(tokenizer, encoded) == ["hm\n</think>well<|im_end|>"]
    with pytest.raises(UsageError, match=r"assistant\\nwell<\|im_end\|>\\n' where the prompt has .*<think>\\n'"):
        encode(tokenizer, [user("hello"), assistant("well")])
    assert tokenizer.decode(encode_prompt(tokenizer, [user("hello")])).endswith("assistant\n<think>\n")


@pytest.mark.parametrize("ends", ["well<|im_end|>", "well<|im_end|>\n", "well<|im_end|><|im_end|>"])
def test_a_reply_that_ends_with_eos_has_one(make_tokenizer, ends):
    tokenizer = make_tokenizer()
    for row in (
        Demonstration("hello", ends), Demonstration([user("hello")], ends), Demonstration(completion=ends),
        Demonstration(messages=[user("hello"), assistant(ends)]),
    ):  # fmt: skip
        (encoded,) = encode_demonstration(tokenizer, row, max_length=99)
        assert learnt(tokenizer, encoded)[-1].endswith("well<|im_end|>")
        assert encoded.labels[-2:] == [tokenizer("well")["input_ids"][-1], tokenizer.eos_token_id]
    context, (one, other) = encode_replies(tokenizer, "hello", [ends, "well"])
    assert one == other and context == encode_prompt(tokenizer, "hello")
    talk = [user("hello"), assistant(ends), user("how?")]
    assert encode_prompt(tokenizer, talk) == encode_prompt(tokenizer, [user("hello"), assistant("well"), user("how?")])


def test_a_reply_that_would_end_twice_or_go_on_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    with pytest.raises(UsageError, match=r"ends with the special token '<\|endoftext\|>'.*end twice"):
        encode_replies(tokenizer, "hello", ["well<|endoftext|>"])
    with pytest.raises(UsageError, match=r"ends with the special token '<\|endoftext\|>'"):
        encode(tokenizer, [user("hello"), assistant("well<|endoftext|>\n")])
    with pytest.raises(UsageError, match=r"goes on after the EOS '<\|im_end\|>'"):
        encode_replies(tokenizer, "hello", ["well<|im_end|>and"])
    with pytest.raises(UsageError, match=r"goes on after the EOS"):
        encode(tokenizer, [user("hello"), assistant("well<|im_end|>and")])
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nwell<|im_end|>\n"  # rendered already
    (encoded,) = encode_demonstration(tokenizer, Demonstration(completion=text), max_length=99)
    assert tokenizer.decode(encoded.input_ids) == text.rstrip()


def test_bos_is_not_doubled_in_plain_text_or_through_a_template(make_tokenizer):
    adds = make_tokenizer(around="<s> $A", template=LLAMA3)
    for prompt in ("<s>hello", "hello"):
        assert adds.decode(encode_prompt(adds, prompt)) == "<s>hello"
        context, (reply,) = encode_replies(adds, prompt, [" world"])
        assert adds.decode(context + reply) == "<s>hello world<|im_end|>"
    assert adds.decode(encode_prompt(adds, [user("hello")])).count("<s>") == 1
    (encoded,) = encode_demonstration(adds, Demonstration(completion="<s>hello"), max_length=9)
    assert adds.decode(encoded.input_ids) == "<s>hello<|im_end|>"
    assert (
        make_tokenizer().decode(encode_prompt(make_tokenizer(), "<s>hello")) == "<s>hello"
    )  # none is added: the row's


@pytest.mark.parametrize(
    ("prompt", "reply", "context", "tokens"),
    [
        ("hello ", "world", "hello", ["Ġworld", EOS]),
        ("hello", " world", "hello", ["Ġworld", EOS]),
        ("hello  ", "world", "hello", ["Ġ", "Ġworld", EOS]),
        ("hello,\n", "user", "hello,\n", ["user", EOS]),
        ("hello\n\n", "user", "hello\n\n", ["user", EOS]),
        ("hello,\n ", "world", "hello,\n", ["Ġworld", EOS]),
        ("hello\t", "user", "hello", ["ĉ", "user", EOS]),
    ],
)
def test_the_space_before_a_reply_is_the_replys_and_newlines_are_the_prompts(
    make_tokenizer, prompt, reply, context, tokens
):
    tokenizer = make_tokenizer()
    ids, (learnt_ids,) = encode_replies(tokenizer, prompt, [reply])
    assert tokenizer.decode(ids) == context and ids == encode_prompt(tokenizer, prompt)
    assert tokenizer.convert_ids_to_tokens(learnt_ids) == tokens


def test_a_reply_is_tokenised_where_it_stands_and_alone_where_the_tokenizer_would_join_it_to_the_prompt(make_tokenizer):
    tokenizer = make_tokenizer()
    context, (reply,) = encode_replies(tokenizer, "hel", ["lo"])  # "hello" is one word of its vocabulary
    assert tokenizer.decode(context) == "hel" and tokenizer.decode(reply) == "lo<|im_end|>"
    long = "how are you? " * 60 + "hel"  # only its end is looked at again
    assert encode_replies(tokenizer, long, ["lo"])[1] == [reply]


def test_an_example_shows_special_tokens_and_marks_what_is_learnt(make_tokenizer):
    tokenizer = make_tokenizer()
    (encoded,) = encode(tokenizer, [user("hello\nworld"), assistant("well\x1b[1m")])
    assert shown_example(tokenizer, encoded.input_ids, encoded.labels) == (
        "<|im_start|>user\\nhello\\nworld<|im_end|>\\n<|im_start|>assistant\\n«well\\x1b[1m<|im_end|>»"
    )
    long = encode_prompt(tokenizer, "hello " * 99 + "world")
    shown = shown_example(tokenizer, long, [IGNORED] * len(long))
    assert len(shown) < 150 and shown.startswith("hello hello") and shown.endswith("hello world") and " ... " in shown
    (many,) = encode(tokenizer, TALK * 5)
    assert len(shown_example(tokenizer, many.input_ids, many.labels)) < 600


def test_a_tokenizer_that_puts_a_space_before_whatever_begins_a_text_puts_none_into_a_reply():
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], show_progress=False)
    core.train_from_iterator(["Answer: Paris Answer: Rome Paris"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    for prompt, reply in (("Answer: ", "Paris"), ("Answer:", " Paris")):
        context, (ids,) = encode_replies(tokenizer, prompt, [reply])
        assert tokenizer.convert_ids_to_tokens([*context[-1:], *ids]) == ["▁Answer:", "▁Paris", "</s>"]
    context, (ids,) = encode_replies(tokenizer, "Answer: Par", ["is"])  # within a word: as it goes on, without a space
    assert tokenizer.decode([*context, *ids]) == "Answer: Paris</s>"
