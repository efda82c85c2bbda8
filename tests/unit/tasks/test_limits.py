"""Templates from elsewhere end in bounded time and memory."""

from __future__ import annotations

import copy
import resource
import signal
import threading
import time
from functools import partial
from typing import Any

import pytest

from kifuse.errors import ModelError
from kifuse.tasks import limits
from kifuse.tasks.chat_template import ChatTemplate
from kifuse.tasks.limits import TooMuch, within_limits


def for_ever() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'a' * 10000000000 }}", "needs more than 1 GiB of memory"),
        ("{{ 9**9**9 }}", "computes a power"),
        (
            "{% set n = namespace(x=9) %}{% for _ in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "multiplies what it has computed",
        ),
        ("{% set big = ('f' * 9999999)|int(0, 16) %}{{ big % (big - 1) }}", "another base than ten"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
        ("{% for %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused(template: str, words: str, tiny_tokenizer: Any):
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.chat_template = template
    with pytest.raises(ModelError, match=f"chat template cannot be used: .*{words}"):
        ChatTemplate(tiny_tokenizer)


def test_stars_in_a_text_and_small_products_are_fine(tiny_tokenizer: Any):
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.chat_template = (
        "**Bold** 2 * x{% set n = messages|length * 2 + 2 * messages|length + '3'|int(0) + '3'|int %}"
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert ChatTemplate(tiny_tokenizer).turn(messages, None, "it").answer == "b"


def test_what_takes_too_long_is_stopped_in_every_thread_and_alarms_go_on():
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    said: list[str] = []

    def stopped() -> None:
        with pytest.raises(TooMuch, match=r"longer than 0\.05 seconds") as caught:
            within_limits(for_ever, seconds=0.05)
        said.append(str(caught.value))
        assert within_limits(lambda: "done") == "done"

    try:
        stopped()
        threads = [threading.Thread(target=stopped) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(said) == 4
        assert 900 < signal.setitimer(signal.ITIMER_REAL, 0)[0] <= 1000
    finally:
        signal.signal(signal.SIGALRM, before)


def test_no_thread_is_left_with_the_limit_of_another():
    before = resource.getrlimit(resource.RLIMIT_AS)
    threads = [
        threading.Thread(target=within_limits, args=(partial(time.sleep, 0.01 * n),)) for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_memory_is_measured_where_the_system_does_not_limit_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits.sys, "platform", "darwin")
    monkeypatch.setattr(limits, "_peak", lambda sizes=[0]: sizes.append(sizes[-1] + 600) or sizes[-1])
    with pytest.raises(TooMuch, match="of memory"):
        within_limits(for_ever, memory=1000)
    assert within_limits(lambda: "done") == "done"
