"""What is learnt is the response and its end, after exactly the prompt ids that generation starts from."""

from __future__ import annotations

import pytest

from rlhf_fast.data.encode import (
    IGNORED,
    encode_demonstration,
    encode_prompt,
    encode_replies,
    prompt_text,
)
from rlhf_fast.data.schema import Demonstration
from rlhf_fast.runtime.errors import UsageError

USER = {"role": "user", "content": "hello"}
REPLY = {"role": "assistant", "content": "I am well."}
THREE_TURNS = [
    {"role": "system", "content": "be kind"}, USER, REPLY, {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "well, well"},
]  # fmt: skip


def learnt(encoded) -> list[int]:
    return [label for label in encoded.labels if label != IGNORED]


def spans(encoded) -> list[tuple[int, int]]:
    """(start, end) of each run of learnt labels."""
    edges = [label != IGNORED for label in [IGNORED, *encoded.labels, IGNORED]]
    starts = [i for i in range(len(edges) - 1) if not edges[i] and edges[i + 1]]
    ends = [i for i in range(len(edges) - 1) if edges[i] and not edges[i + 1]]
    return list(zip(starts, ends, strict=True))


def test_a_conversation_goes_through_the_chat_template_and_plain_text_does_not(make_tokenizer):
    tokenizer = make_tokenizer()
    assert prompt_text(tokenizer, [USER]) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(tokenizer, "hello") == "hello"
    assert tokenizer.decode(encode_prompt(tokenizer, "hello")) == "hello"


def test_prompt_ids_are_those_of_the_tokenizers_own_chat_template_call(make_tokenizer):
    tokenizer = make_tokenizer()
    own = tokenizer.apply_chat_template(THREE_TURNS[:-1], add_generation_prompt=True)["input_ids"]
    assert encode_prompt(tokenizer, THREE_TURNS[:-1]) == own


def test_a_response_ends_with_eos(make_tokenizer):
    tokenizer = make_tokenizer()
    prompt, (well, empty) = encode_replies(tokenizer, "how are you?", ["I am well.", ""])
    assert prompt == encode_prompt(tokenizer, "how are you?")
    assert well[-1] == tokenizer.eos_token_id and tokenizer.decode(well[:-1]) == "I am well."
    assert empty == [tokenizer.eos_token_id]


def test_prompt_and_completion_learn_the_completion_and_eos_only(make_tokenizer):
    tokenizer = make_tokenizer()
    (encoded,) = encode_demonstration(tokenizer, Demonstration("hello", " world"), max_length=99)
    prompt = encode_prompt(tokenizer, "hello")
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert encoded.labels[len(prompt) :] == encoded.input_ids[len(prompt) :]
    assert tokenizer.decode(encoded.input_ids[len(prompt) :]) == " world<|im_end|>"


def test_every_assistant_turn_is_learnt_with_its_end_and_the_newline_after_it_is_not(make_tokenizer):
    tokenizer = make_tokenizer()
    (encoded,) = encode_demonstration(tokenizer, Demonstration(messages=THREE_TURNS), max_length=999)
    assert tokenizer.decode(learnt(encoded)) == "I am well.<|im_end|>well, well<|im_end|>"
    text = tokenizer.apply_chat_template(THREE_TURNS, tokenize=False)
    assert tokenizer.decode(encoded.input_ids) + "\n" == text  # the newline after the last turn is left out
    newline = tokenizer("\n")["input_ids"]
    after_first_turn = spans(encoded)[0][1]
    assert encoded.input_ids[after_first_turn : after_first_turn + 1] == newline
    assert encoded.labels[after_first_turn] == IGNORED


def test_each_learnt_turn_stands_after_the_ids_that_generation_starts_from(make_tokenizer):
    tokenizer = make_tokenizer()
    (encoded,) = encode_demonstration(tokenizer, Demonstration(messages=THREE_TURNS), max_length=999)
    (first, _), (second, _) = spans(encoded)
    assert encoded.input_ids[:first] == encode_prompt(tokenizer, THREE_TURNS[:2])
    assert encoded.input_ids[:second] == encode_prompt(tokenizer, THREE_TURNS[:4])


def test_eos_is_learnt_though_it_is_the_pad_token_too(make_tokenizer):
    tokenizer = make_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (encoded,) = encode_demonstration(tokenizer, Demonstration([USER], "well"), max_length=99)
    assert encoded.labels[-1] == tokenizer.eos_token_id
    assert encoded.labels.count(tokenizer.eos_token_id) == 1  # the user turn's own end is not learnt


def test_plain_text_is_learnt_from_its_first_token_after_the_tokens_that_open_it(make_tokenizer):
    plain, opening = make_tokenizer(), make_tokenizer(around="<s> $A")
    (encoded,) = encode_demonstration(plain, Demonstration(completion="hello"), max_length=99)
    assert encoded.labels == encoded.input_ids and plain.decode(encoded.input_ids) == "hello<|im_end|>"
    (encoded,) = encode_demonstration(opening, Demonstration(completion="hello"), max_length=99)
    assert opening.decode(encoded.input_ids) == "<s>hello<|im_end|>"
    assert encoded.labels == [IGNORED, *encoded.input_ids[1:]]


def test_a_tokenizer_that_closes_every_text_does_not_end_the_prompt_before_the_response(make_tokenizer):
    tokenizer = make_tokenizer(around="<s> $A <|im_end|>")
    assert tokenizer.decode(encode_prompt(tokenizer, "hello")) == "<s>hello"
    assert tokenizer.decode(encode_prompt(tokenizer, "hello<|im_end|>")) == "<s>hello<|im_end|>"  # the user's own


def test_the_template_alone_opens_a_conversation(make_tokenizer):
    ids = encode_prompt(make_tokenizer(around="<s> $A"), [USER])
    assert ids == encode_prompt(make_tokenizer(), [USER])


@pytest.mark.parametrize("prompt", ["", "  \n", []])
def test_an_empty_prompt_is_refused(make_tokenizer, prompt):
    with pytest.raises(UsageError, match="prompt is empty"):
        encode_prompt(make_tokenizer(), prompt)


def test_a_prompt_may_fill_max_length_and_not_pass_it(make_tokenizer):
    tokenizer = make_tokenizer()
    count = len(encode_prompt(tokenizer, "hello world"))
    assert len(encode_prompt(tokenizer, "hello world", max_length=count)) == count
    with pytest.raises(UsageError, match=rf"has {count} tokens and {count - 1} fit"):
        encode_prompt(tokenizer, "hello world", max_length=count - 1)


def test_a_demonstration_over_max_length_is_refused_with_both_numbers(make_tokenizer):
    tokenizer = make_tokenizer()
    (encoded,) = encode_demonstration(tokenizer, Demonstration("hello", "world"), max_length=99)
    count = len(encoded.input_ids)
    encode_demonstration(tokenizer, Demonstration("hello", "world"), max_length=count)
    with pytest.raises(UsageError, match=f"{count} tokens, over max_length={count - 1}"):
        encode_demonstration(tokenizer, Demonstration("hello", "world"), max_length=count - 1)


def test_conversations_without_a_chat_template_name_the_remedy(make_tokenizer):
    with pytest.raises(UsageError, match="--chat_template_path"):
        encode_prompt(make_tokenizer(template=None), [USER])


def test_a_tokenizer_without_eos_is_refused(make_tokenizer):
    with pytest.raises(UsageError, match="no EOS token"):
        encode_replies(make_tokenizer(eos=None), "hello", ["world"])


def test_a_template_that_ends_replies_with_another_token_than_eos_is_refused(make_tokenizer):
    tokenizer = make_tokenizer(eos="<|endoftext|>")
    with pytest.raises(UsageError, match=r"Set eos_token to '<\|im_end\|>'"):
        encode_prompt(tokenizer, [USER])
    encode_prompt(tokenizer, "plain text has no template to disagree with")


def test_a_conversation_that_the_template_refuses_says_so(make_tokenizer):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}<s>"
    with pytest.raises(UsageError, match=r"refuses a conversation of system, user: no system turn"):
        encode_prompt(make_tokenizer(template=refusing), THREE_TURNS[:2])
