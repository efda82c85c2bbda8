"""Magnitudes of output units: real tokens of the training forward pass, each once, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from kifuse.driving.batches import Filler, collator_of
from kifuse.driving.magnitudes import StepMagnitudes
from kifuse.driving.taps import Taps
from kifuse.errors import RunError
from kifuse.methods.parameters import Parameters
from kifuse.models.loading import Backbone
from kifuse.tasks.encoding import Encoded
from tests.reference import migu
from tests.two_tasks import adapted, encoded, load

pytestmark = pytest.mark.usefixtures("quick")


class Trainer:
    """As much of a Trainer as a loss needs; like the real one it takes the labels out of the batch."""

    def __init__(self, compiled: bool = False) -> None:
        self.accelerator = SimpleNamespace(num_processes=1)
        self.args = SimpleNamespace(torch_compile=compiled)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Some loss of the logits."""
        inputs.pop("labels", None)
        return model(**inputs).logits.square().mean()


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def _outputs(mine: Backbone, examples: list[Encoded]) -> dict[str, list[Tensor]]:
    """The outputs of each trained linear layer token by token, of each example on its own, not padded."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, __, y, name=f"{name}.weight": seen.setdefault(name, []).extend(y.detach()[0])
        )
        for name, module in mine.model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    for e in examples:
        if mine.encoder_decoder:
            decoder = torch.tensor([[0, *e.target_ids[:-1]]])
            mine.model(input_ids=torch.tensor([e.input_ids]), decoder_input_ids=decoder)
        else:
            mine.model(input_ids=torch.tensor([e.input_ids + e.target_ids]))
    for handle in handles:
        handle.remove()
    return seen


def _step(magnitudes: StepMagnitudes, trainer: Any, mine: Backbone, parts: list[list[Encoded]]) -> None:
    magnitudes.clear()
    mine.model.train()
    for part in parts:
        trainer.compute_loss(mine.model, collator_of(mine)(part)).backward()


def test_magnitudes_are_sums_over_the_real_tokens_of_all_micro_batches(backbone: Backbone, tiny_stream: Path):
    """Every layer of attention is trained: those of the encoder, of the decoder and between them."""
    mine = adapted(backbone)
    for name, p in mine.model.named_parameters():
        p.requires_grad_("lora_" in name or "SelfAttention.o." in name or "o_proj." in name)
    examples = encoded(mine, tiny_stream)[0][:5]
    assert len({e.length for e in examples}) > 2
    params, trainer = Parameters(mine.model.named_parameters()), Trainer()
    magnitudes = StepMagnitudes(Taps(trainer), mine.model, params)
    for parts in ([examples], [examples[:2], examples[2:]], [[e] for e in examples]):
        _step(magnitudes, trainer, mine, parts)
        found = dict(zip(params.names, magnitudes.take(), strict=True))
        assert all(n is not None for n in found.values())
        for name, outputs in _outputs(mine, examples).items():
            n = found[name]
            assert n is not None and n.shape == (len(mine.model.get_parameter(name)), 1)
            torch.testing.assert_close(n[:, 0].double(), migu.magnitude(outputs), rtol=1e-4, atol=1e-5)
    magnitudes.remove()


def test_rows_without_a_target_and_other_passes_count_for_nothing(backbone: Backbone, tiny_stream: Path):
    mine = adapted(backbone)
    examples = encoded(mine, tiny_stream)[0][:3]
    params, trainer = Parameters(mine.model.named_parameters()), Trainer()
    magnitudes = StepMagnitudes(Taps(trainer), mine.model, params)
    _step(magnitudes, trainer, mine, [examples])
    expected = [n.clone() for n in magnitudes.take() if n is not None]
    filler = Filler([7] * 60, [9] * 6, cut=False)
    _step(magnitudes, trainer, mine, [[*examples, filler]])
    batch = collator_of(mine)(examples)
    batch.pop("labels")
    mine.model(**batch)  # not in a training loss
    with torch.no_grad():
        trainer.compute_loss(mine.model, collator_of(mine)(examples))
    mine.model.eval()
    trainer.compute_loss(mine.model, collator_of(mine)(examples))
    found = [n for n in magnitudes.take() if n is not None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    magnitudes.remove()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_once(tiny_folder_llama: Path, tiny_stream: Path, reentrant: bool):
    mine = adapted(load(tiny_folder_llama))
    examples = encoded(mine, tiny_stream)[0][:3]
    params, trainer = Parameters(mine.model.named_parameters()), Trainer()
    magnitudes = StepMagnitudes(Taps(trainer), mine.model, params)
    _step(magnitudes, trainer, mine, [examples])
    expected = [n.clone() for n in magnitudes.take() if n is not None]
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    mine.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").register_forward_hook(count)
    mine.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    mine.model.enable_input_require_grads()
    _step(magnitudes, trainer, mine, [examples])
    assert calls == 2
    torch.testing.assert_close([n for n in magnitudes.take() if n is not None], expected, rtol=0, atol=0)


def test_a_head_on_the_last_positions_and_a_tied_one(
    tiny_folder_llama: Path, tiny_stream: Path, tiny_llama: LlamaForCausalLM
):
    mine = load(tiny_folder_llama)
    mine.model.requires_grad_(True)
    examples = encoded(mine, tiny_stream)[0][:4]
    assert "logits_to_keep" in collator_of(mine)(examples)
    params, trainer = Parameters(mine.model.named_parameters()), Trainer()
    magnitudes = StepMagnitudes(Taps(trainer), mine.model, params)
    _step(magnitudes, trainer, mine, [examples])
    found = dict(zip(params.names, magnitudes.take(), strict=True))
    others = {name for name, n in found.items() if n is None}
    assert others == {n for n in params.names if "norm" in n or "embed" in n}
    # the head sees one position more than the target's, of which shorter examples have several
    keep = max(len(e.target_ids) for e in examples) + 1
    tails = [t for e in examples for t in _outputs(mine, [e])["lm_head.weight"][-keep:]]
    head = found["lm_head.weight"]
    assert head is not None
    torch.testing.assert_close(head[:, 0].double(), migu.magnitude(tails), rtol=1e-4, atol=1e-4)

    tiny_llama.lm_head.weight = tiny_llama.model.embed_tokens.weight
    params = Parameters(tiny_llama.requires_grad_(True).named_parameters())
    tied = StepMagnitudes(Taps(Trainer()), tiny_llama, params)
    assert "lm_head" not in {layer.name for layer in tied._layers}


def test_a_transposed_layer_has_its_units_in_columns():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=50, n_positions=16))
    model.requires_grad_(False)
    model.transformer.h[0].attn.c_attn.weight.requires_grad_(True)
    params, trainer = Parameters(model.named_parameters()), Trainer()
    magnitudes = StepMagnitudes(Taps(trainer), model, params)
    model.train()
    ids = torch.tensor([[5, 6, 7]])
    trainer.compute_loss(model, {"input_ids": ids}).backward()
    (n,) = magnitudes.take()
    assert n is not None and n.shape == (1, 48) and bool((n > 0).all())
    n * model.transformer.h[0].attn.c_attn.weight  # broadcasts


def test_hooks_are_taken_off(tiny_llama: LlamaForCausalLM):
    magnitudes = StepMagnitudes(Taps(Trainer()), tiny_llama, Parameters(tiny_llama.named_parameters()))
    assert any(m._forward_hooks for m in tiny_llama.modules())
    magnitudes.remove()
    assert not any(m._forward_hooks for m in tiny_llama.modules())


def test_what_cannot_be_masked_is_refused(tiny_llama: LlamaForCausalLM):
    params = Parameters(tiny_llama.named_parameters())
    with pytest.raises(RunError, match=r"torch_compile.*turn it off"):
        StepMagnitudes(Taps(Trainer(compiled=True)), tiny_llama, params)
    ids = torch.tensor([[5, 6, 7]])
    trainer = Trainer()
    magnitudes = StepMagnitudes(Taps(trainer), tiny_llama, params)
    tiny_llama.train()
    with pytest.raises(RunError, match=r"attention_mask of shape \(rows, positions\)"):
        mask = torch.ones(1, 1, 3, 3)
        trainer.compute_loss(tiny_llama, {"input_ids": ids, "attention_mask": mask})
    weight = tiny_llama.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RunError, match=r"up_proj: its weight has a gradient though the layer was not called"):
        magnitudes.take()
    magnitudes.remove()
    dora = get_peft_model(copy.deepcopy(tiny_llama), LoraConfig(use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(RunError, match="do not work with DoRA"):
        StepMagnitudes(Taps(Trainer()), dora, Parameters(dora.named_parameters()))
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    scaled = get_peft_model(tiny_llama, config)
    with pytest.raises(RunError, match=r"no weight of one is trained.*LoRA or full fine-tuning"):
        StepMagnitudes(Taps(Trainer()), scaled, Parameters(scaled.named_parameters()))


def test_a_layer_on_other_positions_is_refused():
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, input_ids: Tensor) -> Any:
            pairs = torch.rand(2, input_ids.shape[1] ** 2, 3)
            return SimpleNamespace(logits=self.layer(pairs))

    model, trainer = Pairs().train(), Trainer()
    StepMagnitudes(Taps(trainer), model, Parameters(model.named_parameters()))
    with pytest.raises(RunError, match=r"layer: the output has shape \(2, 16, 2\)"):
        trainer.compute_loss(model, {"input_ids": torch.ones(2, 4, dtype=torch.long)})
