"""Keeps token ids in a run's folder, so that its next start does not tokenise the same data again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kifuse.errors import KifuseError
from kifuse.io.storage import read_tensors, write_tensors
from kifuse.tasks import on_disk
from kifuse.tasks.encoded import Encoded, EncodedOnDisk, token_list
from kifuse.tasks.task import Example

FORMAT = 2
"""Increased when the same examples give other token ids, or when the layout of the files changes."""

WORTH = 500
"""With fewer examples than this, tokenising is faster than using a file."""


class TokenFiles:
    """Token ids of lists of examples, by a hash of the tokenizer, its settings and all texts.

    A file that is missing, damaged or of another format is made again; its hash is checked when it is read.

    Args:
        folder: The folder of the files.
        tokenizer: The tokenizer; nothing is kept for one that cannot be identified.
        settings: Settings of the `Encoder`.
        writes: Whether this process writes files.
    """

    def __init__(self, folder: Path, tokenizer: Any, settings: dict[str, Any], *, writes: bool) -> None:
        self._folder = folder
        self._writes = writes
        self._tokenizer, self._settings = tokenizer, settings

    @cached_property
    def _base(self) -> bytes | None:
        # computed only when needed, because reading a tokenizer's rules takes time
        return _fingerprint(self._tokenizer, self._settings)

    def encoded(
        self, examples: Sequence[Example], make: Callable[[Sequence[Example]], Sequence[Encoded]]
    ) -> Sequence[Encoded]:
        """Return the token ids of examples: the kept ones, or those from `make`, which are then kept."""
        if len(examples) < WORTH or self._base is None:
            return make(examples)
        name = digest_of(self._base, examples).hex()[:32]
        found = self._read(name, len(examples))
        if found is None:
            found = make(examples)
            if self._writes:
                self._write(name, found)
        return found

    def _read(self, name: str, count: int) -> Sequence[Encoded] | None:
        path = self._folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_tensors(path)
            ids, lengths, cuts = (tensors[key] for key in ("ids", "lengths", "cuts"))
        except (KifuseError, KeyError):
            return None
        if metadata.get("sha256") != _digest(ids, lengths, cuts) or len(lengths) != 2 * count:
            return None
        # the file is memory-mapped, so its token ids take memory only while they are looked at
        mapped: list[Any] = [each.numpy() for each in (ids, lengths, cuts)]
        found = EncodedOnDisk(*map(memoryview, mapped))
        if count > on_disk.MANY:
            return found
        return [
            Encoded(token_list(one.input_ids), token_list(one.target_ids), one.cut, one.target_cut)
            for one in found
        ]

    def _write(self, name: str, encoded: Sequence[Encoded]) -> None:
        import torch

        found = encoded if isinstance(encoded, EncodedOnDisk) else EncodedOnDisk.of(encoded)
        ids = torch.frombuffer(found.ids, dtype=torch.int32)
        lengths = torch.frombuffer(found.sizes, dtype=torch.int64)
        cuts = torch.frombuffer(found.cuts, dtype=torch.uint8).view(-1, 2)
        write_tensors(
            self._folder / f"{name}.safetensors",
            {"ids": ids, "lengths": lengths, "cuts": cuts},
            {"sha256": _digest(ids, lengths, cuts)},
        )


def _fingerprint(tokenizer: Any, settings: dict[str, Any]) -> bytes | None:
    """Hash everything besides the texts that decides token ids; None if this cannot be known."""
    import tokenizers
    import transformers

    rules = getattr(tokenizer, "backend_tokenizer", None)
    template = str(getattr(tokenizer, "chat_template", None)) if settings.get("chat_template") else ""
    # such a template writes today's date into the prompt
    if rules is None or "strftime_now" in template:
        return None
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    parts = [FORMAT, type(tokenizer).__name__, settings, special, template]
    versions = [tokenizers.__version__, transformers.__version__]
    text = json.dumps([parts, versions], sort_keys=True) + rules.to_str()
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def texts_of(example: Example) -> bytes:
    """Everything that decides an example's token ids: its parts (cut differently), target and chat."""
    chat = example.conversation.text if example.conversation else None
    parts = [example.head, example.body, example.tail, example.target, example.cue_added, chat]
    return json.dumps(parts).encode("ascii")


def digest_of(base: bytes, examples: Sequence[Example]) -> bytes:
    """Hash the texts of examples, and what else decides their token ids."""
    found = hashlib.sha256(base)
    for one in examples:
        found.update(texts_of(one))
    return found.digest()


def _digest(*tensors: Any) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(memoryview(tensor.contiguous().numpy()).cast("B"))
    return found.hexdigest()
