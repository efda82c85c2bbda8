"""The learner: tasks arrive one by one, in one process or many, and every loss of an earlier one is shown."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kifuse.config import require_packages
from kifuse.errors import RunError
from kifuse.exporting.folder import Export, export
from kifuse.learning.answer_prompts import answer
from kifuse.learning.ask_and_score import as_of, scores_of
from kifuse.learning.folder import LearnerFolder
from kifuse.learning.forget_task import ForgetReport, forget
from kifuse.learning.hooks import After, Before, Hooks
from kifuse.learning.learn_task import Gates, learn_task
from kifuse.learning.open_learner import OpenLearner, open_engine
from kifuse.learning.settings import (
    checked_points,
    checked_repair,
    expected_sections,
    learner_config,
    named_model,
    with_adapter,
)
from kifuse.learning.watched_tasks import put_under_watch
from kifuse.models.given import given_name
from kifuse.own_method import refuse_unnamed_method
from kifuse.page_refresh import PageRefresh
from kifuse.processes import Processes, is_main_process
from kifuse.record.lineage import LearnReport, count_up_to
from kifuse.record.run_record import RunRecord
from kifuse.reporting.page import write_report
from kifuse.running.log_file import RunLog
from kifuse.running.progress import Progress
from kifuse.scoring.own_function import register_metric
from kifuse.streams import chosen_part, name_metrics
from kifuse.tasks.any_task import as_task, known_options
from kifuse.tasks.learned_task import kept_way
from kifuse.tasks.questions import Questions
from kifuse.terminal.progress import listener


class ContinualLearner:
    """A language model that learns one task after another and keeps what it learned in one folder.

    Args:
        model: `smollm2-135m`, a hub id, a folder, or a transformers model (then with its tokenizer).
        method: A name of `kifuse ls methods`, a mapping with `name` and settings, or a `Method`.
        output_dir: The folder. If it holds a learner of the same settings, this goes on with that learner.
        adapter: The folder of a LoRA adapter that was made elsewhere (`model.adapter.from`). It counts as
            what was learned before the first task; its rank, layers and scale are kept.
        tokenizer: The tokenizer of a model that is given as an object.
        settings: Sections of the configuration by name, as in a run's YAML: `{"training": {"epochs": 3}}`.
        max_forgetting: Most points (of 100) that any earlier or watched task's score may lose by learning
            another; a task that costs more is rolled back. None for no limit.
        min_score: Least score (0 to 100) that a task must reach itself, or it is rolled back. None for no
            limit.
        repair: Before rolling back a task that costs more than `max_forgetting`, pull the weights back
            towards those before it, in steps of a tenth, while an earlier task's perplexity on its probe is
            above 1.15 times its best. Then the limits are checked again. The probe of a task is up to 16 dev
            or training examples, which the folder then keeps.
        before: Called with (task, learner) before each `learn`: the `Task` with all its data, and this
            learner, which can be asked and scored. If it raises an exception, the task is refused and nothing
            is learned.
        after: Called with (report, learner) at the end of each `learn`, also of a task that was refused or
            learned earlier. An exception in it is an error, but what was learned stays.
        progress: Show what is going on: True, False, or a listener.

    Raises:
        KifuseError: A setting is wrong, the model cannot be loaded, or the folder holds something else.
    """

    def __init__(
        self,
        model: Any,
        method: Any = "recurrent-kif",
        output_dir: str | Path = "",
        *,
        adapter: str | Path | None = None,
        tokenizer: Any = None,
        settings: Mapping[str, Any] | None = None,
        max_forgetting: float | None = None,
        min_score: float | None = None,
        repair: bool = False,
        before: Before | None = None,
        after: After | None = None,
        progress: bool | Progress = True,
        _elsewhere: bool = False,
        _at: int | str | None = None,
    ) -> None:
        given = not isinstance(model, (str, Path))
        name = given_name(model) if given else str(model)
        self.config = learner_config(name, method, with_adapter(settings or {}, adapter), output_dir)
        self.folder = Path(self.config.output)
        self.max_forgetting = checked_points("max_forgetting", max_forgetting)
        self.min_score = checked_points("min_score", min_score)
        self.repair = checked_repair(repair, self.max_forgetting)
        self._hooks = Hooks(before, after)
        require_packages(self.config.training.report_to)
        name_metrics("data.own_metrics", self.config.data.own_metrics)
        self._log = RunLog(self.folder, PageRefresh(listener(progress)), writes=is_main_process())
        self._processes = Processes.of_launcher()
        self._place = LearnerFolder(self.folder, self._log.say, self._processes)
        self._engine = open_engine(
            self.config,
            self._place,
            self._log,
            model=model if given else None,
            tokenizer=tokenizer,
            max_forgetting=self.max_forgetting,
            min_score=self.min_score,
            repair=self.repair,
            elsewhere=_elsewhere,
            at=_at,
        )
        self._opened = OpenLearner(self._place, self._engine, self._log)
        self._say = warnings.warn if progress is False else self._log.say
        self._questions = Questions(
            lambda: {
                n: None if self.record.tasks[i].forgotten else kept_way(self._place.kept_task(i))
                for i, n in enumerate(self.tasks)
            },
            self._say,
        )

    @classmethod
    def load(
        cls,
        output_dir: str | Path,
        model: Any = None,
        *,
        at: int | str | None = None,
        trust_remote_code: bool = False,
        own_metrics: Iterable[Any] = (),
        own_method: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ContinualLearner:
        """Open a learner where an earlier process left it.

        Args:
            output_dir: The learner's folder.
            model: The model again, if it was given as an object, or its folder, if that has moved; None to
                load it by its name.
            at: Number of tasks, or the name of the last task, to go back to. This does what `rollback` does,
                but does not read the newest state, which may be damaged.
            trust_remote_code: Run Python code that comes with the model; the setting in the folder does not
                count.
            own_metrics: Functions of your own, or their names, that score learned tasks; those named in the
                folder do not count.
            own_method: The name of a method of your own that is not registered, as `my_file:MyMethod`.
            settings: Sections of settings that the learner should have; a setting that differs from the
                record is refused by name.
            options: `tokenizer`, `progress`, `before`, `after`; `max_forgetting`, `min_score` and `repair`
                where they change from now on.

        Raises:
            RunError: The folder holds no learner, its model must be given, or another model was given.
        """
        record = RunRecord.load(os.path.expanduser(output_dir))
        named = [register_metric(each) for each in own_metrics]
        sections = expected_sections(record, output_dir, settings, trust_remote_code, named)
        # only the caller may name code to run
        expected = (settings or {}).get("method", {}).get("name")
        refuse_unnamed_method(record.config["method"]["name"], own_method or expected, output_dir)
        limits = {key: getattr(record, key) for key in ("max_forgetting", "min_score", "repair")}
        options = limits | options | {"_elsewhere": model is not None, "_at": at}
        model = named_model(record, output_dir) if model is None else model
        return cls(model, sections.pop("method"), output_dir, settings=sections, **options)

    @property
    def _gates(self) -> Gates:
        return Gates(self.max_forgetting, self.min_score, self.repair)

    @property
    def record(self) -> RunRecord:
        """Everything on record, as `record.json` holds it."""
        return self._engine.record

    @property
    def model(self) -> Any:
        """The PEFT model as it is now."""
        self._engine.settle(self.learned)
        return self._engine.model

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks learned, in their order."""
        return self._opened.tasks

    @property
    def learned(self) -> int:
        """Number of tasks learned."""
        return self._opened.learned

    @property
    def adapter(self) -> Path:
        """Folder of the adapter as it is now: a standard PEFT adapter.

        Raises:
            RunError: Nothing was learned yet.
        """
        if not self.learned and self.config.model.adapter.from_ is None:
            raise RunError(f"{self.folder}: nothing was learned yet, so there is no adapter.")
        return self._engine.snapshots.adapter(self.learned)

    def learn(
        self, task: Any, *, watch: Sequence[Any] = (), lm_eval: Any = (), **options: Any
    ) -> LearnReport:
        """Learn one task, score all tasks, and keep the outcome.

        Called again with the same task, it only returns the report. After a crash it goes on where it
        stopped.

        Args:
            task: A `Task`, a path, a `datasets.Dataset` or `DatasetDict`, or rows; see `as_task`.
            watch: More tasks to be watched from now on, as `watch` takes them.
            lm_eval: More tasks of lm-evaluation-harness to be watched, as `watch` takes them.
            options: `name`, `test`, `instruction`, `labels`, `list_labels`, `metric`, `format`, `columns`.

        Returns:
            What was gained and what was lost, and whether the task was accepted.

        Raises:
            DataError: The data is wrong, another task of this name was learned, or one of this name is
                watched.
            RunError: The folder is in use, or has been changed by another process.
        """
        seed = self.config.training.seed
        chosen = chosen_part(as_task(task, seed=seed, **known_options(options)), self.config.data, seed)
        if watch or lm_eval:
            put_under_watch(self._opened, watch, lm_eval, chosen.name)
        self._hooks.before(chosen, self)
        report = learn_task(self._opened, chosen, self._gates)
        self._hooks.after(report, self)
        return report

    def evaluate(
        self, tasks: Iterable[Any] | None = None, *, after: int | str | None = None
    ) -> dict[str, float]:
        """Score tasks with the model as it is now, or as it was.

        Args:
            tasks: Names of learned tasks, `Task`s or paths; None for all learned tasks that have test
                examples.
            after: Number of tasks, or the name of the last one, after which the model is asked; None for now.

        Returns:
            Score (0 to 100) by name.

        Raises:
            DataError: A name is not of a learned task, or a task has no test examples.
            RunError: No such task was learned, or the state after it is damaged.
        """
        return scores_of(self._opened, tasks, after)

    def watch(self, *tasks: Any, lm_eval: Any = ()) -> dict[str, float]:
        """Score tasks from now on before and after each task that is learned, without ever training on them.

        They count in no average and are in no memory, but `max_forgetting` applies to them too. A task that
        is watched already is not watched twice.

        Args:
            tasks: Paths of tasks, paths of folders of several tasks, or `Task`s. Their test examples are
                kept.
            lm_eval: Names of tasks of lm-evaluation-harness (the extra `lm-eval`), `hellaswag:acc_norm` with
                a metric; or a mapping with `tasks`, `limit`, `num_fewshot`, `batch_size`, `include_path`.
                They are called `lm_eval.<name>` here. Task files of `include_path` are named in each process.

        Returns:
            Score (0 to 100) by name, as the learner is now.

        Raises:
            DataError: The data is wrong, has no test examples, or a learned task has the same name.
            RunError: A task of the same name is watched with other examples.
            ConfigError: lm_eval is not installed, or does not have a task.
        """
        return put_under_watch(self._opened, tasks, lm_eval)

    def generate(
        self,
        texts: Sequence[Any],
        max_new_tokens: int | None = None,
        *,
        task: str | None = None,
        after: int | str | None = None,
    ) -> list[str]:
        """Answer questions greedily with the model as it is now, or as it was.

        Args:
            texts: Texts; rows with `input` or `messages`; lists of messages; or examples of a task. They are
                put to the model in the form in which it was trained.
            max_new_tokens: The most tokens of an answer; None for the configuration's number.
            task: A learned task, whose instruction and options go before the texts; without `task`, it is
                said once if texts lack the instruction. A method of the class "task id given" is told this
                task.
            after: Number of tasks, or the name of the last one, after which the model is asked; None for now.

        Returns:
            One answer for each text.

        Raises:
            ConfigError: `texts` is a single text or holds something else, or `max_new_tokens` is below 1.
            DataError: No task of this name was learned, or a row is wrong.
            RunError: No such task as `after` was learned, or the state after it is damaged.
        """
        examples = self._questions.examples(texts, task)
        with as_of(self._opened, after), self._engine.evaluator.told(task):
            return answer(self._engine, examples, max_new_tokens, self._say)

    def report(self) -> Path:
        """Draw the page that shows what was learned, kept and lost.

        Returns:
            The HTML file; it loads nothing from elsewhere.
        """
        return self._processes.of_first(lambda: write_report(self.folder))

    def export(
        self, output: str | Path | None = None, *, after: int | str | None = None, **options: Any
    ) -> Export:
        """Write what was learned as a folder that loads without kifuse: the adapter, or a merged model.

        The folder also has the tokenizer, chat template and model card. Nothing in it names a path on this
        machine.

        Args:
            output: The folder to write; None for `export` in the learner's folder.
            after: Number of tasks, or the name of the last one, whose state is exported; None for the last
                state.
            options: `merged`, `precision`, `may_differ`, `model`, `base`, `licence`, `push_to_hub`,
                `private`, `trust_remote_code`; see `kifuse.export`.

        Raises:
            KifuseError: See `kifuse.export`.
        """
        return self._processes.of_first(
            lambda: export(self.folder, output, after=after, say=self._log.say, **options)
        )

    def rollback(self, to: int | str) -> None:
        """Go back to the model as it was after an earlier task, bit for bit.

        What came later is moved into `rolled-back/` inside the folder, never deleted.

        Args:
            to: Number of tasks, or the name of the last task to keep.

        Raises:
            RunError: There is no such task.
        """
        to = count_up_to(to, self.tasks, "rollback")
        with self._opened.alone():
            self._place.back_to(self._engine, to, "rolled back")
            self._engine.tell_saved()

    def forget(self, task: str, *, retrain: Sequence[Any] | None = None) -> ForgetReport:
        """Remove a task's examples, and what was answered to them, from the folder and its history, for good.

        The model has still learned from them; the report says what remains. If the process is killed
        meanwhile, the removal is finished when the folder is opened next.

        Args:
            task: Name of a task that was learned, refused, rolled back or watched.
            retrain: Data of each task learned after this one, in order. The learner then goes back to the
                state before the task and learns them again, as if it had never been there.

        Returns:
            What was removed, what remains, and the command that retrains.

        Raises:
            RunError: No such task is known, or a state is damaged.
            DataError: `retrain` is not the data that the later tasks were learned with.
        """
        if self._processes.count > 1:
            raise RunError("forget() works in one process; call it in a script without a launcher.")
        return forget(self._opened, task, retrain, self._gates)
