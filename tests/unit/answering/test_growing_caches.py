"""Caches with room: what transformers' growing cache holds, without its copies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer

from kifuse.answering.generation import greedy_generate
from kifuse.answering.growing_caches import part_of, row_cache, with_room
from kifuse.answering.running_batch import CausalRows
from kifuse.answering.session import OtherCacheError, Session
from kifuse.answering.shared_starts import Starts
from tests.unit.answering.test_generation import plain_texts, ragged_prompts, shake

ROWS, HEADS, ROOM, SIZE = 5, 2, 24, 3


def states(columns: int, rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, HEADS, columns, SIZE, generator=torch.Generator().manual_seed(seed))


def plain_cache(columns: int, rows: int = 1) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        cache.update(states(columns, rows, layer), states(columns, rows, 10 + layer), layer)
    return cache


def steps() -> st.SearchStrategy[list[tuple[str, int]]]:
    kinds = st.sampled_from(["append", "crop", "keep"])
    return st.lists(st.tuples(kinds, st.integers(1, 4)), max_size=6)


@given(before=st.integers(1, 25), steps=steps())  # within the room at first, and beyond it
def test_holds_what_a_growing_cache_holds(before: int, steps: list[tuple[str, int]]) -> None:
    theirs, ours = plain_cache(before, ROWS), with_room(plain_cache(1), ROWS, 2, None)
    for layer, begun in zip(ours.layers, theirs.layers, strict=True):
        layer.update(begun.keys, begun.values)
    for number, (kind, count) in enumerate(steps):
        held = theirs.get_seq_length()
        for cache in (theirs, ours):
            rows = cache.layers[0].keys.shape[0]
            if kind == "append":
                new = states(count, rows, number)
                found = [cache.update(new, -new, layer) for layer in range(2)]
                assert torch.equal(found[0][0][:, :, held:], new)
            elif kind == "crop" and count < held:
                cache.crop(-count)
            elif kind == "keep" and count < rows:
                cache.batch_select_indices(torch.arange(rows)[:: count + 1])
        assert ours.get_seq_length() == theirs.get_seq_length()
        for mine, plain in zip(ours.layers, theirs.layers, strict=True):
            assert mine.get_mask_sizes(3) == plain.get_mask_sizes(3)
            assert torch.equal(mine.keys, plain.keys)
            assert torch.equal(mine.values, plain.values)


def test_growing_copies_nothing() -> None:
    cache = with_room(plain_cache(1), ROWS, ROOM, None)
    places = set()
    for _ in range(4):
        keys, values = cache.update(states(3), states(3), 0)
        places |= {keys.data_ptr(), values.data_ptr()}
    assert len(places) == 2


def test_pieces_are_parts_of_the_whole_with_zeros_where_there_is_no_text() -> None:
    start = plain_cache(4)
    whole = with_room(start, ROWS, ROOM, torch.bfloat16)
    for layer in whole.layers:
        layer.all_keys.fill_(torch.nan)
        layer.all_values.fill_(torch.nan)
    piece = part_of(whole, slice(1, 3), 6, start, torch.tensor([0, 0]), slice(0, 4))
    keys, _ = piece.update(states(2, 2), states(2, 2), 0)
    assert keys.dtype == torch.bfloat16  # rounded once, as a product would round them
    found = whole.layers[0].all_keys[1:3]
    assert torch.equal(found[:, :, :6], torch.zeros(2, HEADS, 6, SIZE, dtype=torch.bfloat16))
    assert torch.equal(found[:, :, 6:10], start.layers[0].keys.bfloat16().expand(2, -1, -1, -1))
    assert torch.equal(found[:, :, 10:12], states(2, 2).bfloat16())
    assert found[:, :, 12:].isnan().all()
    assert whole.layers[0].all_keys[[0, 3, 4]].isnan().all()


@pytest.fixture
def nan_in_fresh_memory() -> Iterator[None]:
    """Every tensor that is made without a value holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_in_fresh_memory")
@pytest.mark.parametrize("prefix", [0, 10])
def test_nothing_is_read_that_was_not_written(
    prefix: int, tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.empty(3).isnan().all()
    model = shake(tiny_llama)
    monkeypatch.setattr("kifuse.answering.session._CPU_TOKENS", 40)
    prompts = ragged_prompts(len(tiny_tokenizer), prefix=prefix)
    found = greedy_generate(model, tiny_tokenizer, prompts, encoder_decoder=False, max_new_tokens=12)
    assert found == plain_texts(model, tiny_tokenizer, prompts)


def session_of(model: Any, tokenizer: Any) -> Session:
    return Session.build(model, tokenizer, False, 4)


def test_every_step_of_a_batch_stands_in_one_place(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    prompts = ragged_prompts(len(tiny_tokenizer), 6, prefix=9)
    session = session_of(tiny_llama, tiny_tokenizer)
    with torch.no_grad():
        rows = CausalRows(session, prompts, Starts.read(session, prompts))
        before = rows._cache.layers[0].keys.data_ptr()
        rows.extend(torch.full((6, 2), 7))
        assert rows._cache.layers[0].keys.data_ptr() == before


def test_a_cache_of_another_kind_is_left_to_the_model() -> None:
    cache = plain_cache(3)
    assert row_cache(SimpleNamespace(past_key_values=cache)) is cache
    unused = DynamicCache()
    unused.layers = [*cache.layers, DynamicLayer()]  # a layer that reads another one's keys
    shared = DynamicCache()
    shared.layers = [*cache.layers, getattr(cache_utils, "DummyLayer", DynamicLayer)()]
    for other in (unused, shared, None, (states(3), states(3))):
        with pytest.raises(OtherCacheError):
            row_cache(SimpleNamespace(past_key_values=other))


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7).map(lambda drawn: sorted(drawn)[::-1]),
    cap=st.integers(1, 80),
    rows=st.integers(1, 3),
)
def test_pieces_take_the_least_padding_and_passes(lengths: list[int], cap: int, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kifuse.answering.session._CPU_TOKENS", cap)
        patch.setattr("kifuse.answering.session._CPU_MOST_TOKENS", cap + 20)
        patch.setattr("kifuse.answering.session._CPU_ROWS", rows)
        patch.setattr("kifuse.answering.session._CPU_PASS", 15)
        session = Session(None, None, False, frozenset(), torch.device("cpu"), 0, (), 0, 1, False)
        found = [(piece.start, piece.stop) for piece in session.pieces(lengths)]

    def fits(begin: int, end: int) -> bool:
        count, tokens = end - begin, lengths[begin] * (end - begin)
        return count == 1 or tokens <= cap or (count <= rows and tokens <= cap + 20)

    def cost(cuts: list[tuple[int, int]]) -> int:
        return sum(lengths[begin] * (end - begin) + 15 for begin, end in cuts)

    assert [end for _, end in found[:-1]] == [begin for begin, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, len(lengths))
    assert all(fits(*piece) for piece in found)
    least = []
    for choice in range(2 ** (len(lengths) - 1)):  # every way to cut
        edges = [0, *(at for at in range(1, len(lengths)) if choice >> (at - 1) & 1), len(lengths)]
        cuts = list(pairwise(edges))
        if all(fits(*cut) for cut in cuts):
            least.append(cost(cuts))
    assert cost(found) == min(least)


def test_an_accelerator_reads_all_at_once() -> None:
    session = Session(None, None, False, frozenset(), torch.device("cuda"), 0, (), 0, 1, False)
    assert session.pieces([900, 800, 5]) == [slice(0, 3)]
