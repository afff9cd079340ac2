"""Sampling follows softmax exactly, the same in every backend, instruction set and batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_kernels import Sampler, extension, sample
from rlhf_kernels.extension import MISSING, native
from rlhf_kernels.sample import hash_bits
from tests.kernels.by_backend import native as native_backend
from tests.kernels.by_backend import reference

LEVELS = [] if MISSING else native.levels()
needs_extension = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
WORD = (1 << 64) - 1


def word_hash(seed: int, step: int, token: int) -> int:
    """The hash in Python's own integers."""

    def mix64(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
        return x ^ (x >> 31)

    def mix32(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) % (1 << 32)
        x = ((x ^ (x >> 15)) * 0xD35A2D97) % (1 << 32)
        return x ^ (x >> 15)

    golden = 0x9E3779B97F4A7C15
    key = mix64((mix64((seed * golden + 0x632BE59BD9B4E019) & WORD) + step * golden) & WORD)
    return mix32((mix32((token + key) % (1 << 32)) + (key >> 32)) % (1 << 32))


def draws(logits: Tensor, count: int, backend: str | None, temperature: float = 1.0, step: int = 0) -> Tensor:
    """`count` tokens, one for each seed, from the same logits (V,)."""
    hidden, weight = torch.ones(count, 1), logits[:, None].contiguous()
    steps = torch.full((count,), step)
    return sample(
        hidden, weight, temperature=temperature, seeds=torch.arange(count), steps=steps, backend=backend
    ).tokens


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """In standard deviations above its mean: (X^2 - k) / sqrt(2 k), k degrees of freedom."""
    k = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - k) / (2 * k) ** 0.5)


def problem(rows: int, vocabulary: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows * vocabulary)
    return torch.randn(rows, size, generator=g).to(dtype), torch.randn(vocabulary, size, generator=g).to(dtype)


def test_the_hash_is_the_published_one_over_seed_step_and_token():
    seeds, steps = [0, 1, -5, 2**63 - 1], [0, 7, 100000, 3]
    bits = hash_bits(torch.tensor(seeds), torch.tensor(steps), 50)
    assert bits.tolist() == [[word_hash(s, t, v) for v in range(50)] for s, t in zip(seeds, steps, strict=True)]
    assert bits[0, :3].tolist() == [1270836317, 2156581871, 891142653]


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_extension)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_follow_the_softmax_down_to_rare_tokens(backend, temperature):
    logits = torch.linspace(0, -7, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    p = (logits / temperature).double().softmax(0)
    kept = p * 200_000 > 8
    counts = torch.bincount(draws(logits, 200_000, backend, temperature), minlength=24).double()
    counts = torch.cat([counts[kept], counts[~kept].sum()[None] + 1e-9])
    expected = torch.cat([p[kept], p[~kept].sum()[None] + 1e-12]) * 200_000
    assert chi_square(counts, expected) < 4


def test_draws_of_neighbouring_steps_and_seeds_are_independent():
    logits = torch.tensor([0.5, 0.0, -0.5])
    first, second = draws(logits, 60_000, None), draws(logits, 60_000, None, step=1)
    p = logits.double().softmax(0)
    expected = (p[:, None] * p).flatten() * 60_000
    for a, b in ((first, second), (first[:-1], first[1:])):
        assert chi_square(torch.bincount(a * 3 + b, minlength=9).double(), expected) < 4


@needs_extension
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "rows, vocabulary, size", [(1, 1, 3), (3, 130, 33), (17, 1031, 8), (50, 2500, 31), (35, 1300, 72)]
)
def test_native_draws_are_those_of_the_reference(monkeypatch, level, dtype, rows, vocabulary, size):
    monkeypatch.setattr(extension, "LEVEL", level)
    hidden, weight = problem(rows, vocabulary, size, dtype)
    bias = torch.randn(vocabulary)
    seeds, steps = torch.arange(rows) * 977 - 5, torch.arange(rows)
    for temperature, softcap, b in ((1.0, None, None), (0.7, 2.0, bias), (0.0, None, bias)):
        args = {
            "hidden": hidden, "weight": weight, "bias": b, "softcap": softcap, "temperature": temperature,
            "seeds": seeds, "steps": steps,
        }  # fmt: skip
        tokens, logprobs = native_backend.sample(**args)
        exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in args.items()}
        expected, expected_logprobs = reference.sample(**exact)
        assert tokens.tolist() == expected.tolist()
        torch.testing.assert_close(logprobs, expected_logprobs.float(), atol=2e-5, rtol=1e-5)


@needs_extension
def test_a_vocabulary_of_many_ranges_chooses_as_the_reference_does():
    hidden, weight = problem(16, 49_153, 16)
    args = {"temperature": 1.0, "seeds": torch.arange(16), "steps": torch.arange(16)}
    got, expected = (sample(hidden, weight, **args, backend=backend) for backend in ("native", "reference"))
    assert got.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(got.logprobs, expected.logprobs, atol=2e-5, rtol=1e-5)
    assert got.tokens.max() > 25_000 and len(set(got.tokens.tolist())) > 12


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_extension)])
def test_a_draw_does_not_depend_on_the_rows_beside_it(backend):
    hidden, weight = problem(40, 700, 9)
    seeds, steps = torch.arange(40), torch.arange(40) % 3
    args = {"temperature": 1.0, "backend": backend}
    together = sample(hidden, weight, **args, seeds=seeds, steps=steps)
    alone = [
        sample(hidden[i : i + 1], weight, **args, seeds=seeds[i : i + 1], steps=steps[i : i + 1]) for i in range(40)
    ]
    assert together.tokens.tolist() == [int(x.tokens) for x in alone]
    torch.testing.assert_close(together.logprobs, torch.cat([x.logprobs for x in alone]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_extension)])
def test_temperature_zero_takes_the_first_of_the_likeliest_whatever_the_seed(backend):
    logits = torch.full((3000,), -2.0)
    logits[[700, 1700, 2999]] = 1.5
    assert draws(logits, 20, backend, temperature=0.0).tolist() == [700] * 20


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_extension)])
@pytest.mark.parametrize("offset", [0.0, -500.0, 400.0])
def test_a_certain_token_is_always_drawn_and_its_logprob_is_zero(backend, offset):
    logits = torch.full((5000,), offset)
    logits[4321] += 60
    hidden, weight = torch.ones(300, 1), logits[:, None].contiguous()
    got = sample(hidden, weight, temperature=1.0, seeds=torch.arange(300), steps=torch.arange(300), backend=backend)
    assert set(got.tokens.tolist()) == {4321} and got.logprobs.abs().max() < 1e-6


def kept_by_hand(p: list[float], top_k: int, top_p: float) -> list[int]:
    """By the definition: the k largest with those equal to the last, then the likeliest until their share reaches p."""
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if top_k:
        order = [i for i in order if p[i] >= p[order[min(top_k, len(p)) - 1]]]
    total, left, seen = sum(p[i] for i in order), [], 0.0
    for i in order:
        if seen >= top_p:
            break
        left.append(i)
        seen += p[i] / total
    return left


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(2, 1.0, [0, 2]), (0, 0.85, [0, 1, 2]), (0, 0.3, [0]), (3, 0.8, [0, 2]), (4, 1.0, [0, 1, 2, 3, 4]), (1, 0.5, [0])],
)
def test_a_filtered_draw_is_the_best_of_those_that_are_left_by_the_same_noise(top_k, top_p, kept):
    """p = .5 .15 .25 .05 .05: the last two are equal, so that the fourth place keeps both."""
    p = [0.5, 0.15, 0.25, 0.05, 0.05]
    assert sorted(kept_by_hand(p, top_k, top_p)) == kept
    logits, count = torch.tensor(p).log(), 60
    hidden, weight, steps = torch.ones(count, 1), logits[:, None].contiguous(), torch.ones(count).long()
    got = sample(hidden, weight, temperature=1.0, seeds=torch.arange(count), steps=steps, top_k=top_k, top_p=top_p)

    def score(seed: int, token: int) -> float:
        v = ((word_hash(seed, 1, token) >> 1) + 0.5) / (1 << 31)
        return math.log(p[token]) - math.log(-math.log1p(-v))

    expected = [max(kept, key=lambda token: score(seed, token)) for seed in range(count)]
    assert got.tokens.tolist() == expected and len(set(expected)) == len(kept)
    torch.testing.assert_close(got.logprobs, logits[expected])  # of all tokens, not of those that are left


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filters_that_leave_all_tokens_give_bit_for_bit_what_is_drawn_without(dtype):
    hidden, weight = problem(60, 1031, 24, dtype)
    args = {"temperature": 0.8, "seeds": torch.arange(60), "steps": torch.arange(60) % 5}
    plain = sample(hidden, weight, **args)
    for top_k in (1031, 5000):
        got = sample(hidden, weight, **args, top_k=top_k)
        assert torch.equal(got.tokens, plain.tokens) and torch.equal(got.logprobs, plain.logprobs)
        kept = Sampler(weight, temperature=0.8, top_k=top_k)(hidden, args["seeds"], args["steps"])
        assert torch.equal(kept.tokens, plain.tokens) and torch.equal(kept.logprobs, plain.logprobs)
    likeliest = sample(hidden, weight, **(args | {"temperature": 0.0}), top_k=3, top_p=0.5)
    assert torch.equal(likeliest.tokens, sample(hidden, weight, **(args | {"temperature": 0.0})).tokens)


def test_a_draw_that_the_filters_leave_standing_stays():
    hidden, weight = problem(400, 50, 6)
    args = {"temperature": 1.0, "seeds": torch.arange(400), "steps": torch.zeros(400).long()}
    plain, some = sample(hidden, weight, **args), sample(hidden, weight, **args, top_k=5)
    inside = ((hidden @ weight.t()).topk(5).indices == plain.tokens[:, None]).any(1)
    assert 100 < int(inside.sum()) < 400
    assert torch.equal(some.tokens[inside], plain.tokens[inside])
    assert not (some.tokens == plain.tokens)[~inside].any()


def test_filtered_draws_follow_what_is_left_of_the_softmax():
    logits = torch.tensor([0.5, 0.0, -0.5, -1.0, -4.0])
    hidden, weight = torch.ones(60_000, 1), logits[:, None].contiguous()
    got = sample(hidden, weight, temperature=0.7, seeds=torch.arange(60_000), steps=torch.ones(60_000).long(), top_k=3)
    p = (logits[:3] / 0.7).double().softmax(0)
    assert got.tokens.max() == 2 and chi_square(torch.bincount(got.tokens).double(), p * 60_000) < 4


@needs_extension
def test_filters_are_asked_of_no_backend_that_cannot():
    hidden, weight = problem(3, 7, 4)
    args = {"temperature": 1.0, "seeds": torch.arange(3), "steps": torch.arange(3)}
    with pytest.raises(ValueError, match="cannot run sample: top-k and top-p need all logits of a row at once"):
        sample(hidden, weight, **args, top_k=2, backend="native")


def test_a_sampler_converts_weights_once_and_only_where_its_backend_would():
    hidden, weight = problem(20, 300, 16, torch.bfloat16)
    seeds, steps = torch.arange(20), torch.arange(20)
    plain, some = Sampler(weight, temperature=1.0), Sampler(weight, temperature=1.0, top_k=9)
    assert some.weight.dtype == torch.float32
    assert (plain.weight is weight) == (MISSING is None and extension.LEVEL != "portable")
    for sampler, top_k in ((plain, 0), (some, 9)):
        expected = sample(hidden.float(), weight.float(), temperature=1.0, seeds=seeds, steps=steps, top_k=top_k)
        assert torch.equal(sampler(hidden, seeds, steps).tokens, expected.tokens)


def test_arguments_that_do_not_fit_are_refused():
    hidden, weight = problem(3, 7, 4)
    good = {"temperature": 1.0, "seeds": torch.arange(3), "steps": torch.arange(3)}
    for change, error, message in (
        ({"temperature": -1.0}, ValueError, "temperature is -1.0"),
        ({"softcap": 0.0}, ValueError, "softcap is 0.0"),
        ({"seeds": torch.arange(2)}, ValueError, "seeds has shape"),
        ({"steps": torch.arange(3).int()}, TypeError, "steps has dtype"),
        ({"bias": torch.zeros(6)}, ValueError, "bias has shape"),
        ({"top_k": -1}, ValueError, "top_k is -1"),
        ({"top_p": 0.0}, ValueError, "top_p is 0.0"),
        ({"top_p": 1.5}, ValueError, "top_p is 1.5"),
    ):
        with pytest.raises(error, match=message):
            sample(hidden, weight, **(good | change))
    with pytest.raises(ValueError, match="expected \\(N, H\\) and \\(V, H\\)"):
        sample(hidden, weight[:, :3], **good)
    empty = sample(hidden[:0], weight, temperature=1.0, seeds=torch.arange(0), steps=torch.arange(0))
    assert empty.tokens.shape == empty.logprobs.shape == (0,)
