"""Chat templates as the models bring them, of which TRL keeps copies: what is trained is what is served."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kifuse.tasks import Encoder
from kifuse.tasks.any_task import as_task
from tests.chat_families import TOOLS
from tests.tiny import build_tokenizer

pytest.importorskip("trl")
FOLDER = Path(str(find_spec("trl").origin)).parent / "chat_templates"  # pyright: ignore[reportOptionalMemberAccess]
# A template, the end-of-sequence token of its model, and whether it knows calls of tools.
MODELS = [
    ("llama3", "<|end_of_text|>", False),
    ("llama3_1", "<|eot_id|>", True),
    ("llama3_2", "<|eot_id|>", True),
    ("qwen2_5", "<|im_end|>", True),
    ("qwen3", "<|im_end|>", True),
    ("qwen3_instruct_2507", "<|im_end|>", True),
    ("gemma3", "<eos>", False),
    ("phi3", "<|endoftext|>", False),
    ("cohere2", "<|END_OF_TURN_TOKEN|>", False),
    ("gptoss", "<|return|>", True),
    ("lfm2_2_5", "<|im_end|>", True),
]
SPECIAL = re.compile(r"<\|[^|<>\s']{1,40}\|>|<(?:start_of_turn|end_of_turn|eos)>")
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "track", "arguments": {"parcel": 7}}}
SYSTEM = {"role": "system", "content": "You route parcels."}
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, 東京 😀!"}
ASK, ANSWER = (
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "def f():\n    return 1"},
)


@pytest.mark.parametrize(("name", "eos", "calls"), MODELS, ids=[name for name, _, _ in MODELS])
def test_a_chat_is_trained_as_the_template_of_a_known_model_serves_it(name: str, eos: str, calls: bool):
    path = FOLDER / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL brings no template {name}")
    template = path.read_text(encoding="utf-8")
    tokenizer: Any = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({eos, *SPECIAL.findall(template)})})
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    encoder = Encoder(tokenizer, encoder_decoder=False, chat_template=True).uncut()
    calling = [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    for chat in ([ASK, ANSWER], [SYSTEM, HI, HELLO, ASK, ANSWER], *([calling] if calls else [])):
        tools = TOOLS if chat is calling else None
        [example] = as_task([{"messages": chat, "tools": tools}], name="chats", to_learn=False).train
        encoded = encoder.encode(example)
        asked = tokenizer.apply_chat_template(
            chat[:-1], tools=tools, tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
        assert encoded.input_ids == tokenizer(asked, add_special_tokens=False)["input_ids"]
        trained = asked + tokenizer.decode(encoded.target_ids)
        assert whole.startswith(trained)
        # what is left is no part of the turn: a line break, or what ends a whole text at Phi 3
        assert whole.removeprefix(trained).strip() in ("", "<|endoftext|>" if name == "phi3" else "")
        assert (encoded.target_ids[-1],) in encoder.stops
