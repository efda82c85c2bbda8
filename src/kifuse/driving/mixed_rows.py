"""Mixes rows of earlier tasks into the training data of a user's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from kifuse.driving.taps import Taps
from kifuse.errors import RunError


class MixedRows(Dataset[Any]):
    """The rows of a task, and after them rows of earlier tasks.

    Args:
        own: The task's data set, with a length.
        old: The rows of earlier tasks, as the collator takes them.
    """

    def __init__(self, own: Any, old: Sequence[Any]) -> None:
        self.own, self.old = own, old
        self._count = len(own)

    def __len__(self) -> int:
        return self._count + len(self.old)

    def __getitem__(self, index: int) -> Any:
        return self.own[index] if index < self._count else self.old[index - self._count]


class Mixing:
    """Mixes rows of earlier tasks into the training data of Trainers, until each has ended its task.

    Args:
        rows: Called as `rows(trainer, own, step)` when a Trainer makes its loader, with the data set of its
            task and the step that training goes on from; gives the rows of earlier tasks. If there are none,
            the Trainer makes its usual loader.
    """

    def __init__(self, rows: Callable[[Any, Any, int], Sequence[Any]]) -> None:
        self._rows = rows
        self._taps: list[Taps] = []
        self.checkpoint: Path | None = None
        """Folder that the training under way goes on from; None where it starts."""

    def watch(self, trainer: Any) -> None:
        """Be called when a Trainer makes its loader."""
        if any(each.trainer is trainer for each in self._taps):
            return
        taps = Taps(trainer)
        taps.train(self._around_train(trainer))
        taps.get_train_dataloader(lambda make: self._load(trainer, make))
        self._taps.append(taps)

    def release(self, trainer: Any) -> None:
        """Leave a Trainer as it was."""
        for taps in [each for each in self._taps if each.trainer is trainer]:
            taps.release()
            self._taps.remove(taps)

    def _step(self) -> int:
        """Steps taken before the training under way goes on; 0 where it starts."""
        if self.checkpoint is None:
            return 0
        return TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json")).global_step

    def check(self, dataset: Any, old: Sequence[Any]) -> None:
        """Make sure that a Trainer's data set holds the rows of earlier tasks, if there are any.

        Raises:
            RunError: It does not.
        """
        if old and not isinstance(dataset, MixedRows):
            raise RunError(
                "the rows of earlier tasks are not in the training data. The Trainer made its loader "
                "before it had the callback, or has its own get_train_dataloader. Make it with "
                "Trainer(callbacks=[...]), or call callback.attach(trainer) before trainer.train()."
            )

    def _around_train(self, trainer: Any) -> Callable[..., Any]:
        def train(original: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            found = resume_from_checkpoint
            if found is True:
                found = get_last_checkpoint(trainer.args.output_dir)
            self.checkpoint = Path(found) if found else None
            try:
                return original(resume_from_checkpoint, *args, **kwargs)
            finally:
                self.checkpoint = None

        return train

    def _load(self, trainer: Any, make: Callable[[], Any]) -> Any:
        given = own = trainer.train_dataset
        if hasattr(own, "remove_columns"):
            # the Trainer will do the same; memory rows hold only the columns that the model reads
            own = trainer._remove_unused_columns(own, description="training")
        old = self._rows(trainer, own, self._step())
        if not old:
            return make()
        trainer.train_dataset = MixedRows(own, old)
        try:
            return make()
        finally:
            trainer.train_dataset = given
