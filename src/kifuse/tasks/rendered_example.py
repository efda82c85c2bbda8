"""Shows an example as the text that is trained: prompt and target separate, special tokens marked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from kifuse.tasks.encoding import Encoder
from kifuse.tasks.task import Example


class Piece(NamedTuple):
    """A part of a text; `special` is true if it consists of special tokens, such as `<|im_end|>`."""

    text: str
    special: bool = False


@dataclass(frozen=True)
class Rendered:
    """An example as the model reads it.

    Args:
        prompt: The prompt; it has no loss.
        target: The text that is learned.
        plain: Whether there was no tokenizer, so that special tokens, the template and cuts are not shown.
        cut: Whether it was too long, so that the middle of the prompt or the end of the target is missing.
    """

    prompt: tuple[Piece, ...]
    target: tuple[Piece, ...]
    plain: bool = False
    cut: bool = False

    def state(self) -> dict[str, Any]:
        """Describe the example as a JSON value: `[text, special]` for each piece."""
        pieces = {"prompt": [list(p) for p in self.prompt], "target": [list(p) for p in self.target]}
        return {**pieces, "cut": self.cut}


def render_example(example: Example, encoder: Encoder | None = None) -> Rendered:
    """Show an example as exactly the text that is trained, with its cuts; a long text as its first piece.

    Args:
        example: The example.
        encoder: The run's encoder; with None the texts of the data are shown unchanged.

    Returns:
        The text, decoded from the token ids that are trained.

    Raises:
        DataError: For the reasons given in `Encoder.encode`.
    """
    if encoder is None:
        return Rendered(_pieces([example.input]), _pieces([example.target]), plain=True)
    encoded, *more = encoder.encode_pieces([example])
    prompt, target = list(encoded.input_ids), list(encoded.target_ids)
    return Rendered(
        _decoded(prompt, [], encoder),
        _decoded(target, [] if encoder.encoder_decoder else prompt, encoder),
        cut=encoded.cut or encoded.target_cut or bool(more),
    )


def _pieces(texts: Iterable[str]) -> tuple[Piece, ...]:
    return tuple(Piece(text) for text in texts if text)


def _decoded(ids: Sequence[int], before: Sequence[int], encoder: Encoder) -> tuple[Piece, ...]:
    """Decode runs of tokens as continuations of the tokens before them.

    The text of a run is what it adds to the whole text, because some tokenizers drop the space before a
    text's first word.
    """
    special = special_ids(encoder.tokenizer)
    seen, found = list(before), []
    text = _text(seen, encoder)
    for marked, run in groupby(ids, key=special.__contains__):
        own = list(run)
        seen += own
        whole = _text(seen, encoder)
        added = whole[len(text) :] if whole.startswith(text) else _text(own, encoder)
        found.append(Piece(added, marked))
        text = whole
    return tuple(found)


def _text(ids: list[int], encoder: Encoder) -> str:
    return encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are not text: markers of turns, beginning, end, padding."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
