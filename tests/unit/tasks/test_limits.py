"""Templates from elsewhere end in bounded time and memory."""

from __future__ import annotations

import copy
import signal
from typing import Any

import pytest

from kifuse.errors import ModelError
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


def test_two_stars_in_a_text_are_no_power(tiny_tokenizer: Any):
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.chat_template = "**Bold**{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert ChatTemplate(tiny_tokenizer).turn(messages, None, "it").answer == "b"


def test_what_takes_too_long_is_stopped_and_other_alarms_go_on():
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        with pytest.raises(TooMuch, match=r"longer than 0\.05 seconds"):
            within_limits(for_ever, seconds=0.05)
        assert within_limits(lambda: "done") == "done"
        assert 900 < signal.setitimer(signal.ITIMER_REAL, 0)[0] <= 1000
    finally:
        signal.signal(signal.SIGALRM, before)
