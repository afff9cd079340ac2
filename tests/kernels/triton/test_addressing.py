"""How the row kernels find a row of logits, and how many of them a chunk has."""

from __future__ import annotations

import torch


def test_rows_are_addressed_in_64_bits(tmp_path, device):
    """Three rows 2^30 logits apart: the third begins at 2^31. The file has holes where nothing is touched."""
    from rlhf_kernels.logprobs import row_kernels

    stride, vocabulary = 2**30, 5
    size = 2 * stride + vocabulary
    if device == "cpu":
        flat = torch.from_file(str(tmp_path / "logits"), shared=True, size=size, dtype=torch.float32)
    else:
        flat = torch.empty(size, device=device)
    u = flat.as_strided((3, vocabulary), (stride, 1))
    u.copy_(torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(4)))
    outputs = {name: torch.empty(3, device=device) for name in ("logprobs", "entropy", "largest", "log_sum")}
    expected = u.log_softmax(1)[:, 2]
    row_kernels.score(None, bias=False, softcap=False).launch(
        (3,),
        u=u,
        labels=torch.full((3,), 2, device=device),
        vocabulary=vocabulary,
        stride=stride,
        inverse_temperature=1.0,
        **outputs,
    )
    torch.testing.assert_close(outputs["logprobs"], expected, rtol=1e-6, atol=1e-6)


def test_a_chunk_fills_the_buffer_in_whole_tiles():
    from rlhf_kernels.logprobs.chunked import LARGE_BUFFER, SMALL_BUFFER, buffer_bytes, chunk_rows

    assert SMALL_BUFFER == 256 * 2**20
    assert buffer_bytes(torch.device("cpu")) == SMALL_BUFFER
    assert chunk_rows(128256, LARGE_BUFFER) == 2048  # 2093 would fit
    assert chunk_rows(128256) == 512  # 523 would fit
    assert chunk_rows(49152) == 1280  # 1365
    assert chunk_rows(2**20) == 64  # less than a tile
    assert chunk_rows(2**27) == 1
