"""Make tiny tokenizers and models in the process, without a download or a file."""

from __future__ import annotations

from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SENTENCES = [
    "What is the topic of the following paragraph? Choose one from the option.",
    "What is the sentiment of the following paragraph? Choose one from the option.",
    "Option: World, Sports, Business, Science or Technology.",
    "Option: very negative, negative, neutral, positive, very positive.",
    "Title: The harbour opens again\nText: After two years the old harbour takes ships again.\nAnswer:",
    "According to the following passage, is the question true or false? True False Good Bad",
    "The team won the game in the last minute, and the town sang all night.",
    "Grüße aus Köln: schöne Straße, 東京 and a 😀 too.",
]
ENDS = {2, 5}
"""The tokens that end a text (`</s>`) and a turn (`<|end|>`) in these tokenizers."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def build_tokenizer(
    kind: Literal["bytes", "pieces"] = "bytes", *, bos: bool = False, eos: bool = False
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on a few sentences.

    `bytes` is a byte-level BPE like GPT-2's. `pieces` marks words with a space in front, like Llama 2's and
    T5's, and falls back to bytes. With `bos` or `eos` it adds these tokens around every text.
    """
    special = ["<pad>", "<s>", "</s>", "<unk>", "<|turn|>", "<|end|>"]
    if kind == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))  # noqa: S106
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        core.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = [chr(code) for code in range(33, 127)]
    core.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if bos or eos:
        core.post_processor = processors.TemplateProcessing(
            single=" ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos),
            special_tokens=[(token, core.token_to_id(token)) for token in ("<s>", "</s>")],
        )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_llama(
    vocabulary: int, *, pad: int = 0, bos: int = 1, eos: int = 2, groups: int = 2
) -> LlamaForCausalLM:
    """Build a decoder-only model with fixed random weights, four heads and `groups` key-value heads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=groups,
            max_position_embeddings=1024,
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=eos,
        )
        return LlamaForCausalLM(config).eval()


def build_t5(vocabulary: int, *, pad: int = 0, eos: int = 2) -> T5ForConditionalGeneration:
    """Build an encoder-decoder model with fixed random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=vocabulary,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            pad_token_id=pad,
            eos_token_id=eos,
        )
        config.decoder_start_token_id = pad
        return T5ForConditionalGeneration(config).eval()
