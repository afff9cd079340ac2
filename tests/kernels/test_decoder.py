"""The published decode step: by hand where a layer does nothing, and refusals of what it would read by address.

That every served architecture decodes as its modules do is in `tests/model/test_packed_decoder.py`.
"""

from __future__ import annotations

import pytest
import torch

from rlhf_kernels import Decoder, DecoderLayer, DecoderLinear, extension
from rlhf_kernels.op import NoLoss
from tests.kernels.column_cases import needs_native

WIDTH, HEADS, KV_HEADS, SIZE, INNER, LENGTH = 16, 4, 2, 8, 24, 6
CPU = torch.device("cpu")
EMBEDDING = torch.tensor([[3.0], [-2.0], [0.5]]).expand(3, WIDTH).contiguous()


def layer(output: float = 0.0, *, window: int | None = None) -> DecoderLayer:
    """Zero but for a value projection of ones from the first entry, and an output of `output` from each head's first
    entry: with a norm of ones, every entry gets HEADS * output * the mean over the tokens of n, the normed entry."""
    wo, wv = torch.zeros(WIDTH, HEADS * SIZE), torch.zeros(KV_HEADS * SIZE, WIDTH)
    wo[:, ::SIZE], wv[:, 0] = output, 1.0
    flat = {"query": (HEADS * SIZE, WIDTH), "key": (KV_HEADS * SIZE, WIDTH), "gate": (INNER, WIDTH)}
    zeros = {name: DecoderLinear(torch.zeros(shape)) for name, shape in flat.items()}
    return DecoderLayer(
        **zeros,
        value=DecoderLinear(wv),
        output=DecoderLinear(wo),
        up=DecoderLinear(torch.zeros(INNER, WIDTH)),
        down=DecoderLinear(torch.zeros(WIDTH, INNER)),
        attention_norm=torch.ones(WIDTH),
        mlp_norm=torch.ones(WIDTH),
        window=window,
    )


def decoder(*layers: DecoderLayer, embedding: torch.Tensor = EMBEDDING, final: float = 1.0) -> Decoder:
    return Decoder(
        layers or (layer(),), embedding=embedding, final_norm=torch.full((WIDTH,), final), cos=torch.ones(LENGTH, SIZE),
        sin=torch.zeros(LENGTH, SIZE), heads=HEADS, kv_heads=KV_HEADS, eps=0.0, attention_scale=1.0,
    )  # fmt: skip


def cache(rows: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(rows, KV_HEADS, LENGTH, SIZE, dtype=dtype)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@needs_native
def test_layers_that_add_nothing_give_the_normed_embedding_of_each_token():
    """All entries of an embedding are equal, so that its root mean square is its size: 3, -2 -> 1, -1, times 0.5."""
    keys, values = cache(), cache()
    hidden = decoder(final=0.5)(ints(0, 1), ints(0, 3), 3, [keys], [values])
    torch.testing.assert_close(hidden, torch.tensor([[0.5], [-0.5]]).expand(2, WIDTH))
    assert values[0, 0, 0].tolist() == pytest.approx([1.0] * SIZE)  # the token's own value, where its row ends
    assert values[1, 0, 3].tolist() == pytest.approx([-1.0] * SIZE)
    assert values.abs().sum() == pytest.approx(2 * KV_HEADS * SIZE) and not keys.any()


@needs_native
@pytest.mark.parametrize(("window", "mean"), [(None, 10 / 4), (2, (6 + 1) / 2)])
def test_attention_is_the_mean_of_the_values_that_a_window_lets_it_see(window, mean):
    """All scores are 0. The cache holds 1, 2, 6 and the token's own value is 1 (its first entry is 3, as its root mean
    square); 4 heads of 1/4 add the mean to each entry."""
    embedding = EMBEDDING.clone()
    embedding[0, 1:] = -3.0
    values = cache(1)
    values[0, :, :3] = torch.tensor([1.0, 2.0, 6.0])[:, None]
    hidden = decoder(layer(0.25, window=window), embedding=embedding)(ints(0), ints(3), 3, [cache(1)], [values])
    added = torch.tensor([3.0] + [-3.0] * (WIDTH - 1)) + mean
    torch.testing.assert_close(hidden[0], added / added.square().mean().sqrt())


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokens": torch.zeros(2, dtype=torch.int32)},
            r"tokens is torch\.int32 \(2,\), expected int64 of shape \(2,\)",
        ),
        ({"lengths": ints(0, 1, 2)}, r"lengths is torch\.int64 \(3,\), expected int64 of shape \(2,\)"),
        ({"longest": LENGTH}, "a sequence has 6 tokens, and the decoder was made for 6"),
        ({"keys": []}, "got 1 tensors of keys and values, expected 2, two a layer"),
        ({"values": [cache(1)]}, "keys and values are"),
        ({"keys": [cache(1)], "values": [cache(1)]}, r"one shape \(2 or more, 2, L, 8\)"),
        ({"keys": [cache(dtype=torch.bfloat16)]}, r"expected contiguous tensors of torch\.float32"),
        ({"keys": [cache().transpose(2, 3).contiguous().transpose(2, 3)]}, "expected contiguous tensors"),
    ],
)
def test_tensors_of_another_form_are_refused(change, message):
    given = {"tokens": ints(0, 1), "lengths": ints(0, 3), "longest": 3, "keys": [cache()], "values": [cache()]}
    with pytest.raises(ValueError, match=message):
        decoder()(**given | change)


@needs_native
def test_weights_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"a weight is torch\.bfloat16 of shape \(16, 24\)"):
        decoder(layer()._replace(down=DecoderLinear(torch.zeros(WIDTH, INNER, dtype=torch.bfloat16))))
    with pytest.raises(ValueError, match=r"expected \(N, K\) in torch\.float32 with contiguous rows"):
        decoder(layer()._replace(down=DecoderLinear(torch.zeros(INNER, WIDTH).t())))


def test_where_there_is_none_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(extension, "LEVEL", "portable")
    monkeypatch.setattr(extension, "MISSING", None)
    slow = Decoder.refusal(torch.float32, CPU)
    assert isinstance(slow, NoLoss) and slow.runs
    assert Decoder.refusal(torch.float16, CPU) == (
        "it is in torch.float16 on cpu, and the packed decoder takes bfloat16 or float32 on the CPU"
    )
    with pytest.raises(ValueError, match=r"no decoder can be made: it is in torch\.float16"):
        decoder(embedding=EMBEDDING.half())
    monkeypatch.setenv("RLHF_FAST_BACKEND", "reference")
    assert Decoder.refusal(torch.float32, CPU) == "RLHF_FAST_BACKEND is 'reference'"
    monkeypatch.setattr(extension, "MISSING", "not built")
    assert Decoder.refusal(torch.float32, CPU) == "not built" and not Decoder.built()
