"""Templates from elsewhere end in bounded time and memory."""

from __future__ import annotations

import copy
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kifuse.errors import DataError, ModelError
from kifuse.tasks import limited_process
from kifuse.tasks.chat_template import ChatTemplate
from kifuse.tasks.limited_process import LimitedProcess, TooMuch

NESTED = (
    "{% set n = namespace(a=1, b=1) %}{% for _ in range(60) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}"
)
"""Two lists that take 2**60 comparisons, in a single step."""


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'a' * 10000000000 }}", "needs more than 1 GiB of memory"),
        ("{{ 'a' * 2000000 }}", "makes more than [0-9]+ characters of [0-9]+"),
        ("{{ 1|round(999999999, 'ceil') }}", "longer than 0.3 seconds"),
        (NESTED, "longer than 0.3 seconds"),
        ("{{ ('a' * 99999999).rfind('b' + 'a' * 9999999) }}", "longer than 0.3 seconds"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
        ("{% for %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused(
    template: str, words: str, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    if "seconds" in words:
        monkeypatch.setattr(limited_process, "SECONDS", 0.3)
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    tiny_tokenizer.chat_template = template
    with pytest.raises(ModelError, match=f"chat template cannot be used: .*{words}"):
        ChatTemplate(tiny_tokenizer)


def test_a_template_that_behaves_until_it_sees_a_certain_chat_is_stopped_there(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limited_process, "SECONDS", 2.0)
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)
    plain = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    tiny_tokenizer.chat_template = f"{{% if messages[0].content == 'go' %}}{NESTED}{{% endif %}}{plain}"
    template = ChatTemplate(tiny_tokenizer)
    answer = {"role": "assistant", "content": "b"}
    assert template.turn([{"role": "user", "content": "a"}, answer], None, "it").answer == "b"
    for _ in range(2):
        with pytest.raises(DataError, match=r"row 3: the model's chat template refuses .* longer than"):
            template.turn([{"role": "user", "content": "go"}, answer], None, "row 3")


def test_threads_and_forks_ask_one_at_a_time_and_get_their_own_answers():
    process = LimitedProcess(lambda value: [value, os.getpid()])
    found: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: found.append([n, process.ask(n)])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for n, _ in found) == list(range(8))
    assert all(n == answer for n, (answer, _) in found)
    [child] = {pid for _, (_, pid) in found}
    if (pid := os.fork()) == 0:
        os._exit(process.ask(1)[1] == child)
    assert os.waitpid(pid, 0)[1] == 0
    assert process.ask("again") == ["again", child]


def test_it_ends_when_it_is_idle_and_begins_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limited_process, "_IDLE", 0.01)
    process = LimitedProcess(lambda _: os.getpid())
    first = process.ask(None)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert process.ask(None) not in (first, os.getpid())


def test_it_holds_no_file_of_its_parents(tmp_path: Path):
    with (tmp_path / "lock").open("w") as file:
        process = LimitedProcess(lambda _: os.path.exists(f"/dev/fd/{file.fileno()}"))
        assert process.ask(None) is False


def test_memory_is_measured_where_the_system_does_not_limit_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limited_process, "_BOUNDED", False)
    monkeypatch.setattr(limited_process, "MEMORY", 2**25)

    def hold(_: Any) -> None:
        held = b"a" * 2**27
        time.sleep(20)
        del held

    with pytest.raises(TooMuch, match="of memory"):
        LimitedProcess(hold).ask(None)
    assert LimitedProcess(lambda value: value).ask("small") == "small"
