"""Keeps token ids while a process lives, so that several runs on the same data tokenise it once."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kifuse.tasks import on_disk
from kifuse.tasks.encoded import Encoded, token_list
from kifuse.tasks.encoding import Encoder
from kifuse.tasks.task import Example
from kifuse.tasks.token_files import TokenFiles, digest_of, texts_of


class _Kept(NamedTuple):
    """An `Encoded` that takes four bytes per token; a list would take about ten times that."""

    input_ids: array[int]
    target_ids: array[int]
    cut: bool
    target_cut: bool

    def encoded(self) -> Encoded:
        ids, target = token_list(self.input_ids), token_list(self.target_ids)
        return Encoded(ids, target, self.cut, self.target_cut)


class TokenCache:
    """Tokenised examples, by the tokenizer, the limits and the content from which they were made."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[bytes, Any]] = {}

    def part(self, tokenizer: str, settings: dict[str, Any]) -> dict[bytes, Any]:
        """The cache of one tokenizer, by its model's name, with the settings of its `Encoder`."""
        return self._kept.setdefault(json.dumps([tokenizer, settings], sort_keys=True), {})


class CachingEncoder(Encoder):
    """An `Encoder` that never tokenises an example twice.

    Args:
        tokenizer: The model's tokenizer.
        source: Name of the model that the tokenizer belongs to.
        cache: The cache that keeps token ids for this encoder and others with the same model and settings;
            None keeps nothing.
        folder: The folder that keeps token ids for the next process; None keeps nothing. It is not used
            beside a cache.
        writes: Whether this process writes files there.
        settings: Settings of `Encoder`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        source: str,
        cache: TokenCache | None,
        folder: Path | None = None,
        writes: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(tokenizer, **settings)
        self._cache = None if cache is None else cache.part(source, settings)
        self._files: TokenFiles | None = None
        if cache is None and folder is not None:
            self._files = TokenFiles(folder, tokenizer, settings, writes=writes)

    def uncut(self) -> CachingEncoder:
        """Return the same encoder without limits; it keeps nothing."""
        found = copy.copy(self)
        found.max_input = found.max_target = sys.maxsize
        found._cache = found._files = None
        return found

    def encode_many(self, examples: Sequence[Example]) -> Sequence[Encoded]:
        """Tokenise many examples; the results are those of `Encoder.encode_many`."""
        kept = self._cache
        if self._files is not None:
            return self._files.encoded(examples, super().encode_many)
        if kept is None:
            return super().encode_many(examples)
        if len(examples) > on_disk.MANY:  # they stay on disk, all together
            together = digest_of(b"", examples)
            if together not in kept:
                kept[together] = super().encode_many(examples)
            return kept[together]
        keys = [hashlib.sha256(texts_of(example)).digest() for example in examples]
        missing = {key: each for key, each in zip(keys, examples, strict=True) if key not in kept}
        for key, made in zip(missing, super().encode_many(list(missing.values())), strict=True):
            ids, target = array("i", made.input_ids), array("i", made.target_ids)
            kept[key] = _Kept(ids, target, made.cut, made.target_cut)
        return [kept[key].encoded() for key in keys]
