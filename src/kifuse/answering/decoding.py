"""Greedy decoding of a running batch, with likely answers tried out in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from kifuse.answering.running_batch import CausalRows, EncoderDecoderRows
from kifuse.answering.session import Session

# Rows that have ended are dropped once they are at least this share of the running batch.
_DROP_SHARE = 0.25
# The most logits (rows times columns times vocabulary) of a pass that tries likely answers: 256 MiB in
# float32.
_MOST_LOGITS = 2**26


class Guesses:
    """Likely answers, tried out so that several tokens of a row go through the model at once.

    A guess never decides anything: a token counts only where it is the argmax of the logits before it, so
    the answers are those of decoding one token at a time (speculative decoding, Leviathan et al. 2023,
    arXiv 2211.17192, for greedy decoding). The likely answers are a task's labels: along their trie, the most
    frequent one is tried. What is tried in one batch does not depend on other batches, so a batch is computed
    alike on any process and in any order.

    Args:
        answers: Token ids of each likely answer, without an end token. An answer given more often is
            likelier.
    """

    def __init__(self, answers: Sequence[Sequence[int]] = ()) -> None:
        counts = Counter(map(tuple, answers))
        self._answers = [list(answer) for answer, _ in counts.most_common()]

    def after(self, start: list[int]) -> list[int]:
        """The tokens that may follow `start`; none if no likely answer begins with it."""
        fits = (a for a in self._answers if len(a) > len(start) and a[: len(start)] == start)
        return next(fits, start)[len(start) :]


def decode(session: Session, rows: CausalRows | EncoderDecoderRows, guesses: Guesses) -> list[list[int]]:
    """Extend all rows until each has ended or has `max_new` tokens.

    Args:
        session: The session of this generation.
        rows: The running batch, which has read its prompts. It cannot be used afterwards.
        guesses: Likely answers; they change nothing but the speed.

    Returns:
        The new token ids of each row, without an end token.
    """
    answers: list[list[int]] = [[token] for token in rows.logits.argmax(dim=-1).tolist()]
    running = list(range(len(answers)))
    done = 0  # new tokens of every row that the cache holds
    while True:
        alive = [place for place, row in enumerate(running) if not session.ended(answers[row])]
        if not alive:
            break
        if len(running) - len(alive) >= _DROP_SHARE * len(running):
            rows.keep(torch.tensor(alive, device=session.device))
            running = [running[place] for place in alive]
            alive = list(range(len(running)))
        most = _most_columns(session, rows, len(running), done)
        fed: list[list[int]] = [[] for _ in running]
        for place in alive:
            known = answers[running[place]]
            guess = guesses.after(known)
            fed[place] = (known[done:] + guess)[: max(most, len(known) - done)]
        width = max(map(len, fed))
        padded = [tokens + [session.pad] * (width - len(tokens)) for tokens in fed]
        found = rows.extend(torch.tensor(padded, device=session.device)).argmax(dim=-1).tolist()
        for place in alive:
            _accept(session, answers[running[place]], fed[place], found[place], done)
        going = [answers[row] for row in running if not session.ended(answers[row])]
        # these columns are right in every row that goes on; later ones are read again with the tokens found
        right = min((len(answer) - 1 for answer in going), default=done + width)
        rows.take_back(done + width - right)
        done = right
    return [session.without_end(answer) for answer in answers]


def _most_columns(session: Session, rows: CausalRows | EncoderDecoderRows, running: int, done: int) -> int:
    """How many tokens of a row may go through the model at once; known tokens are fed even beyond that."""
    if not rows.takes_back:
        return 1
    room = _MOST_LOGITS // (running * rows.logits.shape[-1])
    return min(session.max_new - 1 - done, room)


def _accept(session: Session, answer: list[int], fed: list[int], found: list[int], done: int) -> None:
    """Append the model's tokens to an answer, up to the first that differs from the token that was fed.

    Args:
        session: The session of this generation.
        answer: The row's tokens so far; the new ones are appended.
        fed: The tokens that were fed: those of the answer from token `done` on, then guesses.
        found: The model's token after each token that was fed.
        done: Tokens of the answer that were read before.
    """
    column = len(answer) - 1 - done
    while True:
        answer.append(found[column])
        column += 1
        if session.ended(answer) or column == len(fed) or fed[column] != answer[-1]:
            return
