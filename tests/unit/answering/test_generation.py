from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from kifuse.answering import session
from kifuse.answering.generation import greedy_generate
from kifuse.errors import ConfigError, DataError

NEW = 12
FIRST = 6  # ids below are special tokens


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shake(model: Any, scale: float = 0.2) -> Any:
    """Random weights large enough that the output depends on the whole prompt."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def ragged_prompts(vocabulary: int, count: int = 14, prefix: int = 0) -> list[list[int]]:
    draw = random.Random(0)
    shared = [draw.randrange(FIRST, vocabulary) for _ in range(prefix)]
    return [
        shared + [draw.randrange(FIRST, vocabulary) for _ in range(1 + (7 * i) % 19)] for i in range(count)
    ]


def plain_ids(model: Any, prompt: list[int], encoder_decoder: bool, **settings: Any) -> list[int]:
    """The reference: the model's own greedy search on one prompt alone."""
    ids = torch.tensor([prompt])
    model.eval()
    with torch.no_grad():
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW,
            **settings,
        )
    return found[0, 1 if encoder_decoder else len(prompt) :].tolist()


def plain_texts(
    model: Any, tokenizer: Any, prompts: list[list[int]], encoder_decoder: bool = False
) -> list[str]:
    found = [plain_ids(model, prompt, encoder_decoder) for prompt in prompts]
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]


def end_somewhere(
    model: Any, tokenizer: Any, prompts: list[list[int]], encoder_decoder: bool = False
) -> None:
    """Make a token that some outputs contain an end token, so that rows end at different steps."""
    model.generation_config.eos_token_id = None
    counts: Counter[int] = Counter()
    for prompt in prompts:
        counts.update(set(plain_ids(model, prompt, encoder_decoder)[2:]) - {tokenizer.eos_token_id})
    often = [token for token, _ in counts.most_common(2)]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *often]
    tokenizer.add_special_tokens({"additional_special_tokens": tokenizer.convert_ids_to_tokens(often)})


def build_gpt2(vocabulary: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def build_mistral(vocabulary: int) -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


def build_mamba(vocabulary: int) -> MambaForCausalLM:
    torch.manual_seed(0)
    return MambaForCausalLM(
        MambaConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, pad_token_id=0, eos_token_id=2
        )
    )


class Passes:
    """Counts what goes through a model."""

    def __init__(self, model: Any, kind: str = "input_ids") -> None:
        self.shapes: list[tuple[int, int]] = []
        self.count = 0

        def note(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
            self.count += 1
            if inputs.get(kind) is not None:
                self.shapes.append(tuple(inputs[kind].shape))

        model.register_forward_pre_hook(note, with_kwargs=True)

    @property
    def tokens(self) -> int:
        return sum(rows * width for rows, width in self.shapes)


@pytest.fixture
def tokenizer() -> Any:
    from tests.tiny import build_tokenizer

    return build_tokenizer("bytes")  # a fresh one: end_somewhere changes it


KINDS = ["llama", "plain attention", "gpt2", "sliding window", "mamba", "t5", "lora", "lora t5"]


def build(kind: str, size: int, tiny_llama: Any, tiny_t5: Any) -> tuple[Any, Any]:
    """A model of random weights, and the same with a random adapter where the kind says so."""
    builders: dict[str, Callable[[int], Any]] = {
        "gpt2": build_gpt2,
        "sliding window": build_mistral,
        "mamba": build_mamba,
    }
    t5 = kind.endswith("t5")
    base = model = shake(builders[kind](size) if kind in builders else (tiny_t5 if t5 else tiny_llama))
    if kind == "plain attention":
        base.set_attn_implementation("eager")
    if kind.startswith("lora"):
        names = ["q", "v"] if t5 else ["q_proj", "v_proj"]
        task = "SEQ_2_SEQ_LM" if t5 else "CAUSAL_LM"
        torch.manual_seed(1)  # some adapters answer most prompts alike
        model = get_peft_model(
            model,
            LoraConfig(r=2, target_modules=names, init_lora_weights=False, lora_dropout=0.5, task_type=task),
        )
    return base, model


@pytest.mark.parametrize("prefix", [0, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_generate_on_each_prompt_alone(
    kind: str, prefix: int, tokenizer: Any, tiny_llama: Any, tiny_t5: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(tokenizer)
    encoder_decoder = kind.endswith("t5")
    base, model = build(kind, size, tiny_llama, tiny_t5)
    prompts = ragged_prompts(size, prefix=prefix)
    if prefix:
        prompts.append(prompts[0][:prefix])  # a prompt that is nothing but the shared start
    end_somewhere(base, tokenizer, prompts, encoder_decoder)
    expected = plain_texts(model, tokenizer, prompts, encoder_decoder)
    assert len(set(expected)) > len(prompts) // 2
    model.train()
    for at_once, least in ((session._CPU_TOKENS, 4), (40, 1)):  # in one piece, and in pieces of some rows
        monkeypatch.setattr(session, "_CPU_TOKENS", at_once)
        monkeypatch.setattr(session, "_CPU_ROWS", least)
        found = greedy_generate(
            model, tokenizer, prompts, encoder_decoder=encoder_decoder, max_new_tokens=NEW, batch_tokens=120
        )
        assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_likely_answers_change_nothing_but_the_number_of_passes(
    kind: str, tokenizer: Any, tiny_llama: Any, tiny_t5: Any
) -> None:
    encoder_decoder = kind.endswith("t5")
    base, model = build(kind, len(tokenizer), tiny_llama, tiny_t5)
    prompts = ragged_prompts(len(tokenizer), prefix=10)
    end_somewhere(base, tokenizer, prompts, encoder_decoder)
    expected = plain_texts(model, tokenizer, prompts, encoder_decoder)
    true = [plain_ids(model, prompt, encoder_decoder) for prompt in prompts]
    wrong = [[*ids[:3], FIRST, FIRST + 1, FIRST + 2] for ids in true]
    some = [ids[:-2] for ids in true[::3]] + wrong[1::2] + [[]]
    passes = Passes(base)
    counts = []
    for likely in ([], true, wrong, some):
        passes.count = 0
        found = greedy_generate(
            model,
            tokenizer,
            prompts,
            encoder_decoder=encoder_decoder,
            max_new_tokens=NEW,
            likely=likely,
        )
        assert found == expected
        counts.append(passes.count)
    if kind not in ("sliding window", "mamba"):
        assert counts[1] < counts[0]
        assert max(counts) == counts[0]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(FIRST, 40), max_size=NEW + 3), max_size=6), st.integers(1, NEW))
def test_no_guess_changes_an_answer(shaken: Any, likely: list[list[int]], most: int) -> None:
    model, tokenizer, prompts = shaken
    without, with_them = (
        greedy_generate(model, tokenizer, prompts, encoder_decoder=False, max_new_tokens=most, likely=guessed)
        for guessed in ([], likely)
    )
    assert with_them == without


@pytest.fixture
def shaken(tiny_llama: Any, tokenizer: Any) -> tuple[Any, Any, list[list[int]]]:
    """A model that says few different tokens, so that random guesses are right now and then."""
    model = shake(tiny_llama)
    with torch.no_grad():
        model.lm_head.weight[40:] = 0.0
        model.lm_head.weight[:FIRST] = 0.0
    return model, tokenizer, ragged_prompts(40, 6, prefix=9)


def test_settings_that_are_more_than_an_argmax_are_respected(tiny_llama: Any, tokenizer: Any) -> None:
    model = shake(tiny_llama)
    prompts = ragged_prompts(len(tokenizer), 5)
    before = plain_texts(model, tokenizer, prompts)
    model.generation_config.repetition_penalty = 3.0
    expected = plain_texts(model, tokenizer, prompts)
    assert expected != before
    assert greedy_generate(model, tokenizer, prompts, encoder_decoder=False, max_new_tokens=NEW) == expected


def test_end_tokens_of_the_tokenizer_end_an_output_too(tiny_llama: Any, tokenizer: Any) -> None:
    model = shake(tiny_llama)
    prompt = ragged_prompts(len(tokenizer), 3)[2]
    model.generation_config.eos_token_id = None
    free = plain_ids(model, prompt, False)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(free[3])
    [found] = greedy_generate(model, tokenizer, [prompt], encoder_decoder=False, max_new_tokens=NEW)
    assert found == tokenizer.decode(free[: free.index(free[3])], skip_special_tokens=True).strip()


def test_a_shared_start_goes_through_the_model_once(tiny_llama: Any, tokenizer: Any) -> None:
    prompts = ragged_prompts(len(tokenizer), 10, prefix=40)
    passes, with_logits = Passes(tiny_llama.model), Passes(tiny_llama)
    greedy_generate(tiny_llama, tokenizer, prompts, encoder_decoder=False, max_new_tokens=1)
    assert passes.shapes[0] == (1, 40)
    assert with_logits.shapes == passes.shapes[1:]
    assert passes.tokens < 40 + 10 * 20


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_rows_that_ended_leave_the_batch_and_generation_stops(
    encoder_decoder: bool, tiny_llama: Any, tiny_t5: Any, tokenizer: Any
) -> None:
    model = shake(tiny_t5 if encoder_decoder else tiny_llama)
    prompts = ragged_prompts(len(tokenizer))
    end_somewhere(model, tokenizer, prompts, encoder_decoder)
    lengths = [len(plain_ids(model, prompt, encoder_decoder)) for prompt in prompts]
    assert len(set(lengths)) > 1
    passes = Passes(model, "decoder_input_ids" if encoder_decoder else "input_ids")
    greedy_generate(model, tokenizer, prompts, encoder_decoder=encoder_decoder, max_new_tokens=NEW)
    assert len(passes.shapes) == max(lengths)
    rows = [shape[0] for shape in passes.shapes]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0]


def test_batches_keep_to_the_token_budget_and_report_progress(tiny_llama: Any, tokenizer: Any) -> None:
    prompts = ragged_prompts(len(tokenizer), 20)
    prompts.append([FIRST] * 90)  # longer than the budget on its own
    passes, steps = Passes(tiny_llama), []
    greedy_generate(
        tiny_llama,
        tokenizer,
        prompts,
        encoder_decoder=False,
        max_new_tokens=1,
        batch_tokens=60,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert passes.shapes[0] == (1, 90)
    assert all(rows * width <= 60 for rows, width in passes.shapes[1:])
    assert steps[-1] == (21, 21)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


def test_modes_and_gradients_are_left_as_they_were(tiny_llama: Any, tokenizer: Any) -> None:
    tiny_llama.train()
    tiny_llama.model.layers[0].eval()
    before = {name: module.training for name, module in tiny_llama.named_modules()}
    greedy_generate(
        tiny_llama, tokenizer, ragged_prompts(len(tokenizer), 3), encoder_decoder=False, max_new_tokens=2
    )
    assert {name: module.training for name, module in tiny_llama.named_modules()} == before
    ids = torch.tensor([[7, 8, 9]])
    tiny_llama(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in tiny_llama.parameters())


def test_modes_come_back_after_an_error(tiny_llama: Any, tokenizer: Any) -> None:
    tiny_llama.train()
    with pytest.raises(IndexError):
        greedy_generate(tiny_llama, tokenizer, [[10**6]], encoder_decoder=False, max_new_tokens=2)
    assert tiny_llama.training


def test_no_prompts_give_no_outputs(tiny_llama: Any, tokenizer: Any) -> None:
    assert greedy_generate(tiny_llama, tokenizer, [], encoder_decoder=False, max_new_tokens=2) == []


def test_an_empty_prompt_is_named(tiny_llama: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        greedy_generate(tiny_llama, tokenizer, [[7], []], encoder_decoder=False, max_new_tokens=2)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"max_new_tokens": 2, "batch_tokens": 0}])
def test_wrong_limits_are_named(wrong: dict[str, int], tiny_llama: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="found 0, expected"):
        greedy_generate(tiny_llama, tokenizer, [[7]], encoder_decoder=False, **wrong)  # pyright: ignore[reportArgumentType]


def test_a_prompt_beyond_learned_positions_is_refused_with_the_setting_to_change(tokenizer: Any) -> None:
    model = build_gpt2(len(tokenizer))
    with pytest.raises(DataError, match=r"prompt 1 has 60 tokens.*64 positions.*data\.max_input"):
        greedy_generate(model, tokenizer, [[7], [7] * 60], encoder_decoder=False, max_new_tokens=6)
    assert len(greedy_generate(model, tokenizer, [[7] * 60], encoder_decoder=False, max_new_tokens=5)) == 1
