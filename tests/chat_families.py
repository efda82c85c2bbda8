"""Chat templates in the documented form of well-known model families, each with a tokenizer for its tokens.

They are short and written by us. They differ in how a family begins and ends a turn, where it puts the system
text and the tools, and what it does with earlier thoughts.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.tiny import build_tokenizer

# A turn has a header and ends with <|eot_id|>, which is not the end of a text. A tool's role is "ipython".
_LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n\\n' }}
{%- if tools %}{{- 'You have access to these functions:\\n\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}{%- endif %}
{{- system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message['role'] in ('tool', 'ipython') %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}
    {%- elif message['tool_calls'] %}
        {%- if message['tool_calls'] | length != 1 %}{{- raise_exception('One call at a time!') }}{%- endif %}
        {%- set call = message['tool_calls'][0]['function'] %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call['name'] + '", ' }}
        {{- '"parameters": ' + (call['arguments'] | tojson) + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- (message['content'] | trim) + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# The last answer has a thought, which may be empty; the thoughts of earlier answers are left out.
_QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- set found = namespace(asked=0) %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{%- set found.asked = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message['content'] if message['content'] is string else '' %}
    {%- if message['role'] == 'user' or (message['role'] == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {%- set thought = '' %}
        {%- if message['reasoning_content'] is string %}{%- set thought = message['reasoning_content'] %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > found.asked and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- for call in message['tool_calls'] or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call['function']['name'] + '", "arguments": ' }}
            {{- (call['function']['arguments'] | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message['role'] == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# The assistant's role is "model". A system text goes before the first question. The roles take turns.
_GEMMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] + '\\n\\n' %}{%- set talk = messages[1:] %}
{%- else %}{%- set first = '' %}{%- set talk = messages %}{%- endif %}
{%- for message in talk %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- (first if loop.first else '') + (message['content'] | trim) + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

# There is no prompt for the answer. System text and tools go before the last question, wherever that is.
_MISTRAL3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set talk = messages[1:] %}
{%- else %}{%- set talk = messages %}{%- endif %}
{%- set found = namespace(asked=0) %}
{%- for message in talk %}
    {%- if message['role'] == 'user' %}{%- set found.asked = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in talk %}
    {%- if message['role'] == 'user' %}
        {%- if tools and loop.index0 == found.asked %}
            {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' }}
        {%- if system is defined and loop.index0 == found.asked %}{{- system + '\\n\\n' }}{%- endif %}
        {{- message['content'] + '[/INST]' }}
    {%- elif message['tool_calls'] %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message['tool_calls'] %}
            {%- if call['id'] is not defined or call['id'] | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- '{"name": "' + call['function']['name'] + '", "arguments": ' }}
            {{- (call['function']['arguments'] | tojson) + ', "id": "' + call['id'] + '"}' }}
            {%- if not loop.last %}{{- ', ' }}{%- endif %}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + (message['content'] | trim) + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + (message['content'] | tojson) }}
        {{- ', "call_id": "' + message['tool_call_id'] + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('Only user, assistant, tool and a first system message!') }}{%- endif %}
{%- endfor %}"""

# A chat without a system text gets one.
_CHATML = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
    {%- for call in message['tool_calls'] or [] %}
        {{- '\\n<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """A family of chat models.

    Args:
        template: Its chat template.
        end: The text that ends a turn of its assistant.
        eos: Its tokenizer's end-of-sequence token.
        special: Its special tokens.
        calls: Whether its template knows tools.
        header: The text at the end of its prompt for an answer.
        lead: The text that it writes before an answer without a thought.
        tokens: Its own tokens that are ordinary text.
    """

    template: str
    end: str
    eos: str
    special: tuple[str, ...]
    calls: bool
    header: str
    lead: str = ""
    tokens: tuple[str, ...] = ()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A byte-level tokenizer with the family's special tokens and template."""
        made = build_tokenizer()
        made.add_special_tokens({"additional_special_tokens": list(self.special)})
        made.add_tokens(list(self.tokens))
        made.eos_token = self.eos
        made.chat_template = self.template
        return made


_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_TOOLS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
FAMILIES = {
    "llama3": Family(
        _LLAMA3,
        end="<|eot_id|>",
        eos="<|end_of_text|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        calls=True,
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "qwen3": Family(
        _QWEN3,
        end="<|im_end|>",
        eos="<|im_end|>",
        special=_IM,
        calls=True,
        header="<|im_start|>assistant\n",
        lead="<think>\n\n</think>\n\n",
        tokens=(
            "\n\n",
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "<tool_response>",
            "</tool_response>",
        ),
    ),
    "gemma": Family(
        _GEMMA,
        end="<end_of_turn>",
        eos="</s>",
        special=("<start_of_turn>", "<end_of_turn>"),
        calls=False,
        header="<start_of_turn>model\n",
    ),
    "mistral3": Family(
        _MISTRAL3,
        end="</s>",
        eos="</s>",
        special=("[INST]", "[/INST]", *_TOOLS),
        calls=True,
        header="[/INST]",
        lead=" ",
    ),
    "chatml": Family(
        _CHATML,
        end="<|im_end|>",
        eos="<|endoftext|>",
        special=_IM,
        calls=True,
        header="<|im_start|>assistant\n",
    ),
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "track",
            "description": "Finds a parcel.",
            "parameters": {"type": "object", "properties": {"parcel": {"type": "integer"}}},
        },
    }
]
