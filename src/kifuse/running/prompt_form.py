"""How a model reads the examples of a run: in which form, and the notes about that form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kifuse.config import RunConfig
from kifuse.models.loading import Backbone
from kifuse.record.run_record import RunRecord
from kifuse.running.run_start import settle_rendering
from kifuse.tasks.encoded import is_text
from kifuse.tasks.encoding import Encoded, Encoder
from kifuse.tasks.task import Example, Task
from kifuse.tasks.token_cache import CachingEncoder, TokenCache


class Reading:
    """Turns the examples of a run into token ids.

    Args:
        config: The run's configuration.
        record: The run's record; it gets the form and the notes about it.
        backbone: The model.
        say: Called with each note about the form.
        tokens: Keeps token ids for other runs in this process.
        folder: Folder in which they are kept for the next process.
        writes: Whether this process writes files.

    Attributes:
        encoder: Turns examples into token ids.
    """

    def __init__(
        self,
        config: RunConfig,
        record: RunRecord,
        backbone: Backbone,
        say: Callable[[str], None],
        *,
        tokens: TokenCache | None,
        folder: Path,
        writes: bool,
    ) -> None:
        self._record, self._say = record, say
        self._rendering = settle_rendering(record, config, backbone.tokenizer, say)
        self.encoder: Encoder = CachingEncoder(
            backbone.tokenizer,
            source=backbone.source,
            cache=tokens,
            folder=folder,
            writes=writes,
            encoder_decoder=backbone.encoder_decoder,
            max_input=config.data.max_input,
            max_target=config.data.max_target,
            chat_template=self._rendering.template,
        )
        self._note_end(backbone)

    def training(self, examples: Sequence[Example]) -> Sequence[Encoded]:
        """Token ids to train on; a text that is too long becomes several pieces.

        Args:
            examples: Examples of one or more tasks.
        """
        found = self.encoder.encode_pieces(examples)
        self._note_forms(examples)
        return found

    def sizes(self, tasks: Sequence[Task]) -> list[int]:
        """How many examples the training on each task has; a long text counts as its pieces."""
        return [
            len(self.encoder.encode_pieces(task.train)) if any(map(is_text, task.train)) else len(task.train)
            for task in tasks
        ]

    def _note_forms(self, examples: Iterable[Example]) -> None:
        """Say once what the form does not show, and what the template does not render."""
        if said := self._rendering.note(examples):
            self._note(said)
        for note in self.encoder.notes:
            self._note(note)

    def _note_end(self, backbone: Backbone) -> None:
        """Say once if the model's own settings would not stop where answers end."""
        stops: Any = getattr(getattr(backbone.model, "generation_config", None), "eos_token_id", None)
        known = {stops} if isinstance(stops, int) else set(stops or ())
        end = list(self.encoder.stops[0])
        if len(end) > 1 or end[0] not in known:
            text = self.encoder.tokenizer.decode(end)
            self._note(
                f"every answer learned here ends with {text!r}, but the model's generation config does not "
                "stop there. Set it as a stop text where you serve the adapter."
            )

    def _note(self, text: str) -> None:
        if text not in self._record.notes:
            self._record.notes.append(text)
            self._say(f"note: {text}")
