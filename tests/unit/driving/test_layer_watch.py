"""What layers see and put out: real tokens of the forward pass, each once, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from kifuse.config import TrainingConfig
from kifuse.driving.batches import Filler, collator_of
from kifuse.driving.layer_watch import LayerWatch, Watch
from kifuse.driving.taps import Taps
from kifuse.errors import RunError
from kifuse.methods.base import SETTINGS, Context, Method, Need
from kifuse.methods.kept import Unsaved
from kifuse.methods.layer_sums import LayerSums
from kifuse.methods.migu import magnitude
from kifuse.methods.parameters import Parameters
from kifuse.models.loading import Backbone
from kifuse.running.one_task import train_task
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


def _watching(trainer: Any, mine: Backbone, function: Any = magnitude) -> tuple[LayerWatch, Watch]:
    layers = LayerWatch(Taps(trainer), mine.model, Parameters(mine.model.named_parameters()))
    return layers, layers.watch(function)


def _found(layers: LayerWatch, watched: Watch) -> list[Tensor]:
    """Copies of a step's sums, without those that are None."""
    layers.take()
    return [n.clone() for n in watched.sums if n is not None]


def _step(layers: LayerWatch, trainer: Any, mine: Backbone, parts: list[list[Encoded]]) -> None:
    layers.clear()
    mine.model.train()
    for part in parts:
        trainer.compute_loss(mine.model, collator_of(mine)(part)).backward()


def test_sums_are_over_the_real_tokens_of_all_micro_batches(backbone: Backbone, tiny_stream: Path):
    """Every layer of attention is trained: those of the encoder, of the decoder and between them."""
    mine = adapted(backbone)
    for name, p in mine.model.named_parameters():
        p.requires_grad_("lora_" in name or "SelfAttention.o." in name or "o_proj." in name)
    examples = encoded(mine, tiny_stream)[0][:5]
    assert len({e.length for e in examples}) > 2
    params, trainer = Parameters(mine.model.named_parameters()), Trainer()
    layers, watched = _watching(trainer, mine)
    for parts in ([examples], [examples[:2], examples[2:]], [[e] for e in examples]):
        _step(layers, trainer, mine, parts)
        layers.take()
        found = dict(zip(params.names, watched.sums, strict=True))
        assert all(n is not None for n in found.values()) and set(watched.output_dims) == {0}
        for name, outputs in _outputs(mine, examples).items():
            n = found[name]
            assert n is not None and n.shape == (len(mine.model.get_parameter(name)),)
            torch.testing.assert_close(n.double(), migu.magnitude(outputs), rtol=1e-4, atol=1e-5)
    layers.remove()


def test_rows_without_a_target_and_other_passes_count_for_nothing(backbone: Backbone, tiny_stream: Path):
    mine = adapted(backbone)
    examples = encoded(mine, tiny_stream)[0][:3]
    trainer = Trainer()
    layers, watched = _watching(trainer, mine)
    _step(layers, trainer, mine, [examples])
    expected = _found(layers, watched)
    filler = Filler([7] * 60, [9] * 6, cut=False)
    _step(layers, trainer, mine, [[*examples, filler]])
    batch = collator_of(mine)(examples)
    batch.pop("labels")
    mine.model(**batch)  # not in a training loss
    with torch.no_grad():
        trainer.compute_loss(mine.model, collator_of(mine)(examples))
    mine.model.eval()
    trainer.compute_loss(mine.model, collator_of(mine)(examples))
    torch.testing.assert_close(_found(layers, watched), expected, rtol=1e-4, atol=1e-5)
    layers.remove()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_once(tiny_folder_llama: Path, tiny_stream: Path, reentrant: bool):
    mine = adapted(load(tiny_folder_llama))
    examples = encoded(mine, tiny_stream)[0][:3]
    trainer = Trainer()
    layers, watched = _watching(trainer, mine)
    _step(layers, trainer, mine, [examples])
    expected = _found(layers, watched)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    mine.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").register_forward_hook(count)
    mine.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    mine.model.enable_input_require_grads()
    _step(layers, trainer, mine, [examples])
    assert calls == 2
    torch.testing.assert_close(_found(layers, watched), expected, rtol=0, atol=0)


def test_a_head_on_the_last_positions_and_a_tied_one(
    tiny_folder_llama: Path, tiny_stream: Path, tiny_llama: LlamaForCausalLM
):
    mine = load(tiny_folder_llama)
    mine.model.requires_grad_(True)
    examples = encoded(mine, tiny_stream)[0][:4]
    assert "logits_to_keep" in collator_of(mine)(examples)
    params, trainer = Parameters(mine.model.named_parameters()), Trainer()
    layers, watched = _watching(trainer, mine)
    _step(layers, trainer, mine, [examples])
    layers.take()
    found = dict(zip(params.names, watched.sums, strict=True))
    others = {name for name, n in found.items() if n is None}
    assert others == {n for n in params.names if "norm" in n or "embed" in n}
    # the head sees one position more than the target's, of which shorter examples have several
    keep = max(len(e.target_ids) for e in examples) + 1
    tails = [t for e in examples for t in _outputs(mine, [e])["lm_head.weight"][-keep:]]
    head = found["lm_head.weight"]
    assert head is not None
    torch.testing.assert_close(head.double(), migu.magnitude(tails), rtol=1e-4, atol=1e-4)

    tiny_llama.lm_head.weight = tiny_llama.model.embed_tokens.weight
    params = Parameters(tiny_llama.requires_grad_(True).named_parameters())
    tied = LayerWatch(Taps(Trainer()), tiny_llama, params)
    assert "lm_head" not in {layer.name for layer in tied.layers}


def test_a_transposed_layer_has_its_units_in_columns():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=50, n_positions=16))
    model.requires_grad_(False)
    model.transformer.h[0].attn.c_attn.weight.requires_grad_(True)
    params, trainer = Parameters(model.named_parameters()), Trainer()
    layers = LayerWatch(Taps(trainer), model, params)
    watched, seen = layers.watch(magnitude), layers.watch(lambda x, y: x.abs().sum(0))
    model.train()
    ids = torch.tensor([[5, 6, 7]])
    trainer.compute_loss(model, {"input_ids": ids}).backward()
    layers.take()
    (n,), (x,) = watched.sums, seen.sums
    assert n is not None and n.shape == (48,) and bool((n > 0).all())
    assert x is not None and x.shape == (16,) and watched.output_dims == [1]


def test_hooks_are_taken_off(tiny_llama: LlamaForCausalLM):
    layers = LayerWatch(Taps(Trainer()), tiny_llama, Parameters(tiny_llama.named_parameters()))
    assert not any(m._forward_hooks for m in tiny_llama.modules())
    layers.watch(magnitude)
    assert any(m._forward_hooks for m in tiny_llama.modules())
    layers.remove()
    late = layers.watch(magnitude)
    assert not any(m._forward_hooks for m in tiny_llama.modules())
    with late:
        assert any(m._forward_hooks for m in tiny_llama.modules())
    assert not any(m._forward_hooks for m in tiny_llama.modules())


def test_what_cannot_be_watched_is_refused(tiny_llama: LlamaForCausalLM):
    params = Parameters(tiny_llama.named_parameters())
    with pytest.raises(RunError, match=r"torch_compile.*Turn it off"):
        LayerWatch(Taps(Trainer(compiled=True)), tiny_llama, params)
    ids = torch.tensor([[5, 6, 7]])
    trainer = Trainer()
    layers = LayerWatch(Taps(trainer), tiny_llama, params)
    layers.watch(magnitude)
    tiny_llama.train()
    with pytest.raises(RunError, match=r"attention_mask of shape \(rows, positions\)"):
        mask = torch.ones(1, 1, 3, 3)
        trainer.compute_loss(tiny_llama, {"input_ids": ids, "attention_mask": mask})
    weight = tiny_llama.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RunError, match=r"up_proj: its weight has a gradient, but the layer was not called"):
        layers.take()
    layers.remove()
    dora = get_peft_model(copy.deepcopy(tiny_llama), LoraConfig(use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(RunError, match="does not work with DoRA"):
        LayerWatch(Taps(Trainer()), dora, Parameters(dora.named_parameters()))
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    scaled = get_peft_model(tiny_llama, config)
    with pytest.raises(RunError, match=r"no linear layer is trained.*LoRA or full fine-tuning"):
        LayerWatch(Taps(Trainer()), scaled, Parameters(scaled.named_parameters()))


def test_a_layer_on_other_positions_is_refused():
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, input_ids: Tensor) -> Any:
            pairs = torch.rand(2, input_ids.shape[1] ** 2, 3)
            return SimpleNamespace(logits=self.layer(pairs))

    model, trainer = Pairs().train(), Trainer()
    LayerWatch(Taps(trainer), model, Parameters(model.named_parameters())).watch(magnitude)
    with pytest.raises(RunError, match=r"layer: the output has shape \(2, 16, 2\)"):
        trainer.compute_loss(model, {"input_ids": torch.ones(2, 4, dtype=torch.long)})


def _inputs(mine: Backbone, examples: list[Encoded]) -> dict[str, Tensor]:
    """The inputs of each trained linear layer, `(tokens, in)`, of each example on its own, not padded."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, x, __, name=f"{name}.weight": seen.setdefault(name, []).append(x[0].detach()[0])
        )
        for name, module in mine.model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    for e in examples:
        batch = collator_of(mine)([e])
        if not mine.encoder_decoder:
            batch = {"input_ids": torch.tensor([e.input_ids + e.target_ids])}
        mine.model(**batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def test_a_block_sums_what_is_read_in_it_and_nothing_of_training(backbone: Backbone, tiny_stream: Path):
    """The covariance of the inputs, of padded batches that are read at the end of a task."""
    mine = adapted(backbone)
    examples, trainer = encoded(mine, tiny_stream)[0][:5], Trainer()
    layers, trained = _watching(trainer, mine)
    _step(layers, trainer, mine, [examples])
    before = _found(layers, trained)
    mine.model.eval()
    with layers.watch(lambda x, _: x.double().mT @ x.double()) as watched:
        for part in (examples[:3], examples[3:]):
            batch = collator_of(mine)(part)
            with torch.no_grad(), layers.read(batch):
                mine.model(**batch)
        _step(layers, trainer, mine, [examples])
        with pytest.raises(RunError, match="when the block has ended"):
            watched.sums  # noqa: B018
    torch.testing.assert_close(_found(layers, trained), before, rtol=1e-6, atol=1e-7)
    mine.model.eval()
    wanted = _inputs(mine, examples)
    names = [name for name, p in mine.model.named_parameters() if p.requires_grad]
    for name, found in zip(names, watched.sums, strict=True):
        x = wanted[name].double()
        assert found is not None and found.dtype == torch.float64
        torch.testing.assert_close(found, x.mT @ x, rtol=1e-4, atol=1e-5)
    layers.remove()


def test_steps_are_known_when_their_gradients_are_complete_and_only_then(
    tiny_folder_llama: Path, tiny_stream: Path
):
    mine = adapted(load(tiny_folder_llama))
    examples, trainer = encoded(mine, tiny_stream)[0][:3], Trainer()
    layers, watched = _watching(trainer, mine)
    _step(layers, trainer, mine, [examples])
    with pytest.raises(RunError, match="in on_gradients and on_update"):
        watched.sums  # noqa: B018
    found = _found(layers, watched)
    # what a method looks at on its own between the gradients and the end of the step
    trainer.compute_loss(mine.model, collator_of(mine)(examples))
    torch.testing.assert_close([n for n in watched.sums if n is not None], found, rtol=0, atol=0)
    layers.clear()
    with pytest.raises(RunError, match="in on_gradients and on_update"):
        watched.sums  # noqa: B018
    layers.remove()


def test_a_function_keeps_its_precision_under_autocast(tiny_folder_llama: Path, tiny_stream: Path):
    mine = adapted(load(tiny_folder_llama))
    examples, seen = encoded(mine, tiny_stream)[0][:3], list[Tensor]()

    def product(inputs: Tensor, outputs: Tensor) -> Tensor:
        seen.append(inputs.float().mT @ inputs.float())
        return seen[-1]

    layers, watched = _watching(Trainer(), mine, product)
    mine.model.train()
    layers.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layers._listen(Trainer().compute_loss, mine.model, collator_of(mine)(examples)).backward()
    assert {each.dtype for each in seen} == {torch.float32}
    assert all(n.dtype == torch.float32 for n in _found(layers, watched))
    layers.remove()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y: x @ y, r"on inputs \(0, \d+\) and outputs \(0, \d+\) with RuntimeError"),
        (lambda x, y: x.amax(0), "must return a sum over tokens, also when there are no tokens"),
        (lambda x, y: None, "returned NoneType, expected a tensor"),
    ],
)
def test_a_function_that_cannot_be_summed_is_refused_before_the_first_step(
    tiny_llama: LlamaForCausalLM, function: Any, message: str
):
    layers = LayerWatch(Taps(Trainer()), tiny_llama, Parameters(tiny_llama.named_parameters()))
    with pytest.raises(RunError, match=message):
        layers.watch(function)
    assert not any(m._forward_hooks for m in tiny_llama.modules())


def test_a_function_of_single_tokens_is_refused(tiny_folder_llama: Path, tiny_stream: Path):
    mine, trainer = adapted(load(tiny_folder_llama)), Trainer()
    layers, _ = _watching(trainer, mine, lambda x, y: y.abs())
    with pytest.raises(RunError, match=r"returned shape \(\d+, \d+\) after \(0, \d+\); it must return a sum"):
        _step(layers, trainer, mine, [encoded(mine, tiny_stream)[0][:2]])
    layers.remove()


def squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Squared norms of a layer's inputs, as Wanda needs them."""
    return inputs.square().sum(0)


@dataclass(kw_only=True, config=SETTINGS)
class InputNorms(Method):
    """Sums them in each step, and once more over the task's examples at its end."""

    wants: frozenset[Need] = frozenset({"layers", "examples"})
    _norms: Unsaved[LayerSums]
    _steps: Unsaved[tuple[list[Tensor], ...]] = ()
    _end: Unsaved[tuple[Tensor, ...]] = ()

    @property
    def needs(self) -> frozenset[Need]:
        return self.wants

    def begin_task(self, ctx: Context) -> None:
        self._norms = ctx.watch(squares)

    def on_gradients(self, ctx: Context) -> None:
        self._steps = (*self._steps, [n.clone() for n in self._norms.sums if n is not None])

    def end_task(self, ctx: Context) -> None:
        with ctx.watch(squares) as watched:
            for batch in ctx.task_examples():
                ctx.forward(batch)
        self._end = tuple(n for n in watched.sums if n is not None)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_method_of_one_s_own_sees_the_same_in_steps_and_at_the_end(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, accumulation: int
):
    """One epoch without dropout at nearly no learning rate: its steps see what the end sees."""
    mine, method = adapted(backbone, dropout=0.0), InputNorms()
    training = TrainingConfig(learning_rate=1e-12, epochs=1, batch_size=4, accumulation=accumulation)
    examples = encoded(mine, tiny_stream)[0]
    train_task(mine.model, mine, method, training, index=0, name="first", current=examples, folder=tmp_path)
    sums = [torch.stack(each).sum(0) for each in zip(*method._steps, strict=True)]
    assert len(method._steps) == 3 and all(bool((n > 0).all()) for n in sums[::2])
    torch.testing.assert_close(list(method._end), sums, rtol=1e-4, atol=1e-6)
    assert not any(m._forward_hooks for m in mine.model.modules())


def test_layers_are_watched_only_where_they_are_needed(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    mine = adapted(load(tiny_folder_llama))
    method = InputNorms(wants=frozenset())
    with pytest.raises(RunError, match="watched by a method that needs 'layers'"):
        train_task(
            mine.model,
            mine,
            method,
            TrainingConfig(epochs=1, batch_size=4),
            index=0,
            name="first",
            current=encoded(mine, tiny_stream)[0],
            folder=tmp_path,
        )
