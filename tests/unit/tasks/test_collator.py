from __future__ import annotations

import pytest
import torch

from kifuse.tasks import Encoder, Example
from kifuse.tasks.collator import Collator
from kifuse.tasks.encoding import Encoded

SHORT = Encoded([5, 6, 7], [8, 2], False)
LONG = Encoded([5], [9, 9, 9, 2], False)


def test_decoder_only_batches_are_padded_left_and_learn_the_target_only():
    batch = Collator(0, False)([SHORT, LONG, Encoded([3], [2], False)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2], [5, 9, 9, 9, 2], [0, 0, 0, 3, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * 5, [0, 0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 2], [-100, 9, 9, 9, 2], [-100] * 4 + [2]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_position_ids_start_at_the_first_real_token():
    batch = Collator(0, False, {"position_ids"})([SHORT, Encoded([3], [2], False)])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]


def test_only_the_logits_of_targets_are_asked_for():
    batch = Collator(0, False, {"logits_to_keep"})([SHORT, Encoded([1] * 9, [4, 4, 2], False)])
    assert batch["logits_to_keep"] == 4
    assert batch["labels"].tolist() == [[-100, -100, 8, 2], [-100, 4, 4, 2]]


def test_encoder_decoder_batches_are_padded_right():
    batch = Collator(0, True, {"position_ids", "logits_to_keep"})([SHORT, LONG])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[8, 2, -100, -100], [9, 9, 9, 2]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


@pytest.fixture
def encoded(tiny_tokenizer):
    items = [
        Example("", "Text: one short text", "\nAnswer:", ("Sports",)),
        Example(
            "", "Title: a text that is quite a bit longer than the other", "\nAnswer:", ("very negative",)
        ),
    ]
    return items, tiny_tokenizer


@pytest.mark.parametrize("accepts", [set(), {"position_ids"}, {"position_ids", "logits_to_keep"}])
def test_llama_gives_the_loss_of_each_example_alone_whatever_the_padding(tiny_llama, encoded, accepts):
    items, tokenizer = encoded
    rows = Encoder(tokenizer, encoder_decoder=False).encode_many(items)
    with torch.no_grad():
        together = tiny_llama(**Collator(0, False, accepts)(rows)).loss
        alone = []
        for row in rows:
            ids = torch.tensor([row.input_ids + row.target_ids])
            logits = tiny_llama(input_ids=ids).logits[0, len(row.input_ids) - 1 : -1]
            alone += torch.nn.functional.cross_entropy(
                logits, torch.tensor(row.target_ids), reduction="none"
            ).tolist()
    torch.testing.assert_close(together, torch.tensor(alone).mean(), rtol=1e-5, atol=1e-5)


def test_t5_gives_the_loss_of_each_example_alone_whatever_the_padding(tiny_t5, encoded):
    items, tokenizer = encoded
    rows = Encoder(tokenizer, encoder_decoder=True).encode_many(items)
    with torch.no_grad():
        together = tiny_t5(**Collator(0, True)(rows)).loss
        losses = [
            tiny_t5(input_ids=torch.tensor([r.input_ids]), labels=torch.tensor([r.target_ids])).loss
            * len(r.target_ids)
            for r in rows
        ]
    tokens = sum(len(row.target_ids) for row in rows)
    torch.testing.assert_close(together, sum(losses) / tokens, rtol=1e-5, atol=1e-5)
