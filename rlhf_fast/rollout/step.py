"""A decode step of every live row, on the device alone: what the engine repeats between two looks at the tokens.

    Rows        the live requests' columns, and the tokens that were sampled since they were last read
    Stepper     runs steps: one after the other, or on a GPU as CUDA graphs, where a step is one launch for the host

A step decodes, samples, records the tokens and ends what has a stop token or reaches its limit, without the host. What
only the host can tell (stop strings) it tells when it reads: what was sampled beyond the end is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

UNREAD = 8  # steps on a GPU between two looks; a row that ends idles for half of them on average
SMALLEST = 8  # rows of a graph: below, a step takes as long, as it reads the same weights


class Rows:
    """Columns of up to `capacity` requests; row b is the request in row b of the cache.

    seeds, tokens (sampled last), lengths (tokens in the cache), steps (tokens sampled) and limits (most of these) are
    (capacity,) int64 and alive (capacity,) bool; sampled (lines, capacity) int64 and logprobs (lines, capacity) f32
    hold what `lines` steps gave since the last `rewind`.
    """

    def __init__(self, capacity: int, lines: int, stop_ids: tuple[int, ...], device: torch.device) -> None:
        self.columns = torch.zeros(5, capacity, dtype=torch.int64, device=device)
        self.seeds, self.tokens, self.lengths, self.steps, self.limits = self.columns
        self.alive = torch.zeros(capacity, dtype=torch.bool, device=device)
        self.sampled = torch.zeros(lines, capacity, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(lines, capacity, device=device)
        self.line = torch.zeros(1, dtype=torch.int64, device=device)
        self.stop_ids = torch.tensor(stop_ids, dtype=torch.int64, device=device)

    def begin(self, rows: slice, requests: list[tuple[int, int, int]]) -> None:
        """Fill `rows` with requests that have sampled nothing yet: seed, prompt tokens and limit of each."""
        values = [(seed, 0, length, 0, limit) for seed, length, limit in requests]
        self.columns[:, rows] = torch.tensor(values, dtype=torch.int64).t().to(self.columns.device)
        self.alive[rows] = True

    def record(self, rows: slice, tokens: Tensor, logprobs: Tensor) -> None:
        """Give each live row of `rows` its next token; one that ends is not alive after it."""
        alive = self.alive[rows]
        self.sampled[:, rows].index_copy_(0, self.line, tokens[None])
        self.logprobs[:, rows].index_copy_(0, self.line, logprobs[None].float())
        self.tokens[rows] = torch.where(alive, tokens, self.tokens[rows])
        self.steps[rows] += alive
        ended = self.steps[rows] >= self.limits[rows]
        if len(self.stop_ids):
            ended |= (tokens[:, None] == self.stop_ids).any(1)
        self.alive[rows] = alive & ~ended

    def read(self, lines: int, rows: slice) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and log-probs that `lines` steps gave to each of `rows`, row by row; waits for the device."""
        tokens, logprobs = self.sampled[:lines, rows].t().tolist(), self.logprobs[:lines, rows].t().tolist()
        self.line.zero_()
        return tokens, logprobs

    def move(self, source: int, target: int) -> None:
        """Put row `source` in the place of row `target`."""
        self.columns[:, target], self.alive[target] = self.columns[:, source], self.alive[source]

    def free(self, first: int) -> None:
        """No row from `first` on holds a request any more. They may be decoded all the same: nothing comes of it."""
        self.alive[first:] = False


Step = Callable[[int, int], None]
"""`step(n, longest)` decodes rows 0..n-1, of which `longest` tokens are in the cache at most."""


class Stepper:
    """Runs steps, which have to be the same one each time.

    It is handed over with each call: kept here, it would keep what it belongs to, with the cache, until the garbage
    collector comes by.

    refused: why a step cannot be captured as a CUDA graph, which is said once, or None. A graph is captured for some
    numbers of rows only, at the first use of each: rows above the live ones idle.
    """

    def __init__(self, rows: Rows, *, refused: str | None) -> None:
        self.rows, self.capacity = rows, len(rows.alive)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.refused = refused
        if refused is not None and rows.alive.is_cuda:
            _say_once(refused)

    def run(self, step: Step, live: int, longest: int) -> None:
        """One step of the first `live` rows at least."""
        if self.refused is None:
            try:
                return self._graph(step, rows_of_a_graph(live, self.capacity), longest).replay()
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError) or self.graphs:
                    raise
                self.refused = f"capturing it failed: {str(error).splitlines()[0]}"
                _say_once(self.refused)
        step(live, longest)

    def _graph(self, step: Step, n: int, longest: int) -> torch.cuda.CUDAGraph:
        if n not in self.graphs:
            self._warm_up(step, n, longest)
            self.graphs[n] = self._capture(step, n, longest)
        return self.graphs[n]

    def _capture(self, step: Step, n: int, longest: int) -> torch.cuda.CUDAGraph:
        """As `torch.cuda.graph`, which collects garbage and empties the allocator's cache at each capture."""
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other in self.graphs.values()), None)  # one memory for all: no two run at once
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            graph.capture_begin() if pool is None else graph.capture_begin(pool)
            try:
                step(n, longest)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(side)
        return graph

    def _warm_up(self, step: Step, n: int, longest: int) -> None:
        """A step whose traces are wiped out, so that kernels are compiled and libraries have their work spaces."""
        state = (self.rows.columns, self.rows.alive, self.rows.line)
        kept = [column.clone() for column in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                step(n, longest)
        finally:
            torch.cuda.current_stream().wait_stream(side)
            for column, value in zip(state, kept, strict=True):
                column.copy_(value)


def rows_of_a_graph(live: int, capacity: int) -> int:
    """Rows of the graph that serves `live` of them: 8, 16, 32, 64, then multiples of 64; `capacity` at most."""
    size = max(SMALLEST, 1 << (live - 1).bit_length()) if live <= 64 else -(-live // 64) * 64
    return min(size, capacity)


@cache
def _say_once(reason: str) -> None:
    logging.getLogger(__name__).warning("decode steps run without a CUDA graph, which is slower: %s", reason)
