"""Runs tasks of lm-evaluation-harness on a model with its adapter."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lm_eval.api import metrics
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from kifuse.adapters.base import adapter_on
from kifuse.answering.evaluator import Cell, Evaluator
from kifuse.answering.session import eval_mode
from kifuse.errors import RunError
from kifuse.models.loading import Backbone
from kifuse.models.pieces import ready_to_answer
from kifuse.running.lm_eval_tasks import SEEDS, LmEvalTask, heard, points, seeded_apart, without_bars

DRAWS = 1000
"""How many draws a bootstrapped standard error takes; lm_eval's own command takes 100,000."""

_CUT = "Combined length of context"
_KNOWN = ("`pretrained` model kwarg is not of type", "Passed an already-initialized model")
"""Beginnings of warnings about something intended: the model is passed as an object in memory."""


_Base: Any = HFLM  # a decorator of HFLM hides its type


class AdaptedModel(_Base):
    """The model as it is in memory, with its adapter, which is not merged.

    Some adapters look at the question and not at the answer. They are told where the answer of a likelihood
    request begins: requests with equally many tokens before the answer are computed together.

    Args:
        model: The adapted model.
        backbone: The backbone that the model was made from.
        batch_size: How many requests are answered at once.
        progress: Called with (requests done, requests in all of this kind).
    """

    def __init__(
        self, model: Any, backbone: Backbone, batch_size: int, progress: Callable[[int, int], None]
    ) -> None:
        adapter = adapter_on(model)
        reads_asked = adapter is not None and "prompt_mask" in adapter.reads
        self._reads_asked = reads_asked and not backbone.encoder_decoder
        self._asked, self._progress, self._done, self._total = 0, progress, 0, 1
        super().__init__(
            pretrained=model,
            backend="seq2seq" if backbone.encoder_decoder else "causal",
            tokenizer=copy.deepcopy(backbone.tokenizer),
            batch_size=batch_size,
            mixed_precision_dtype={"bf16": "bfloat16", "fp16": "float16"}.get(backbone.precision),
        )
        self.set_cache_hook(self)

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Count an answered request; HFLM calls this hook in order to keep the answer."""
        self._done += 1
        self._progress(self._done, self._total)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See `HFLM`."""
        return super().loglikelihood(self._counted(requests), disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See `HFLM`."""
        return super().loglikelihood_rolling(self._counted(requests), disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """See `HFLM`."""
        return super().generate_until(self._counted(requests), disable_tqdm=True)

    def _counted(self, requests: Any) -> Any:
        """Begin to count the requests of one kind."""
        self._done, self._total = 0, len(requests)
        return requests

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        if not self._reads_asked:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        places: dict[int, list[int]] = {}
        for place, (_, context, answer) in enumerate(requests):
            asked = min(len(context) + len(answer), self.max_length + 1) - len(answer)
            places.setdefault(asked, []).append(place)
        found: dict[int, Any] = {}
        for asked, own in places.items():
            self._asked = asked
            hook = self.model.register_forward_pre_hook(self._tell_asked, with_kwargs=True, prepend=True)
            try:
                several = super()._loglikelihood_tokens(
                    [requests[place] for place in own],
                    disable_tqdm=True,
                    override_bs=override_bs and len(own),
                )
            finally:
                hook.remove()
            found |= dict(zip(own, several, strict=True))
        return [found[place] for place in range(len(requests))]

    def _tell_asked(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pass the tokens by name, with a mask of those that belong to the question, for the adapter."""
        ids = args[0]
        asked = torch.arange(ids.shape[1], device=ids.device) < self._asked
        return (), {**kwargs, "input_ids": ids, "prompt_mask": asked.expand_as(ids).long()}


def score_lm_eval(
    task: LmEvalTask,
    evaluator: Evaluator,
    after: int,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
    *,
    keep: bool = True,
) -> Cell:
    """Run a task on the model as it is now; the model is not told a task of the stream.

    Random number generators and the model's modes are restored afterwards. With several processes, the first
    one runs the task and gives the result to all. If the model is in pieces, all of them run it together.

    Args:
        task: The task.
        evaluator: The evaluator, which has the model.
        after: Number of tasks learned.
        progress: Called with (documents done, documents in all).
        say: Called with each warning of lm_eval.
        keep: Whether the answers are written.

    Raises:
        RunError: lm_eval fails on the model.
        DataError: The metric's value is on an unknown scale.
    """
    scored = partial(_scored, task, evaluator, after, progress, say, keep=keep)
    if not evaluator.in_pieces:
        return evaluator.processes.of_first(scored)
    with ready_to_answer(evaluator.model):
        cell = scored()
    # only the first process has written the answers, and knows their hash
    return evaluator.processes.of_first(lambda: cell)


def _scored(
    task: LmEvalTask,
    evaluator: Evaluator,
    after: int,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
    *,
    keep: bool,
) -> Cell:
    start, model = time.monotonic(), evaluator.model

    def moved(done: int, total: int) -> None:
        progress(task.n * done // max(total, 1), task.n)

    with seeded_apart(), heard() as said, eval_mode(model), without_bars(), _drawn_here():
        for each in task.loaded["tasks"].values():
            _set_examples(each, task.of.num_fewshot)
        try:
            found = evaluate(
                lm=AdaptedModel(model, evaluator.backbone, task.of.batch_size, moved),
                task_dict=task.loaded,
                limit=task.of.limit,
                bootstrap_iters=DRAWS,
            )
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise RunError(
                f"watch.lm_eval: {task.of.task!r} cannot be run on this model: {reason[:300]}"
            ) from error
    results: Any = found
    numbers: dict[str, Any] = dict(results["results"][task.of.task])
    key, error_key = f"{task.of.metric},{task.of.filter}", f"{task.of.metric}_stderr,{task.of.filter}"
    score, stderr = points(task.of.task, task.of, numbers.get(key), numbers.get(error_key))
    cut = sum(each.startswith(_CUT) for each in said)
    for each in dict.fromkeys(e for e in said if not e.startswith((_CUT, *_KNOWN))):
        say(f"lm_eval: {task.of.task}: {each}")
    if cut:
        say(
            f"lm_eval: {task.of.task}: {cut} requests lost their beginning, as they are longer than the "
            "model can read"
        )
    rows = [_row(each, task.of.metric) for each in _samples(results, task)]
    return Cell(
        score=score,
        valid=None,
        n=task.n,
        seconds=time.monotonic() - start,
        cut=cut,
        predictions=evaluator.write(after, task.name, rows) if keep else None,
        stderr=stderr,
        measured={
            name: float(v) for name, v in numbers.items() if "," in name and isinstance(v, (int, float))
        },
    )


def _set_examples(task: Any, wanted: int | None) -> None:
    """Set how many examples come before each question, as lm_eval's own command does: a task's 0 stays."""
    own = task.get_config("num_fewshot")
    if wanted is not None and own != 0:
        task.set_config(key="num_fewshot", value=wanted)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEEDS[2])


def _samples(found: Any, task: LmEvalTask) -> Iterator[dict[str, Any]]:
    for own in found.get("samples", {}).values():
        yield from (each for each in own if each["filter"] == task.of.filter)


def _row(sample: dict[str, Any], metric: str) -> dict[str, Any]:
    """A document in the form of other tasks' predictions: with the text, the likeliest choice, or nothing."""
    arguments, answers = sample["arguments"], sample["filtered_resps"]
    likely = all(isinstance(each, (tuple, list)) and len(each) == 2 for each in answers)
    chosen = ""
    if likely and len(answers) > 1:
        chosen = str(arguments[max(range(len(answers)), key=lambda i: answers[i][0])][1]).strip()
    elif not likely and isinstance(answers[0], str):
        chosen = answers[0]
    value, target = sample.get(metric), sample["target"]
    if likely and len(answers) > 1 and isinstance(target, int) and 0 <= target < len(arguments):
        target = str(arguments[target][1]).strip()
    return {
        "id": str(sample["doc_id"]),
        "input": str(arguments[0][0]),
        "references": [target if isinstance(target, str) else json.dumps(target, default=str)],
        "prediction": chosen,
        "score": float(value) if isinstance(value, (int, float)) else None,
        "valid": None,
    }


@contextlib.contextmanager
def _drawn_here() -> Iterator[None]:
    """Let lm_eval draw for standard errors in this process, and print nothing about it.

    Other processes would be forks with the whole model, and standard output may hold a report for a script.
    """
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    metrics.__dict__["print"] = lambda *said: None
    try:
        yield
    finally:
        del metrics.__dict__["print"]
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
