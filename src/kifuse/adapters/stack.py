"""One pair of LoRA factors for each task: earlier tasks' pairs are frozen and active, the last is trained.

After t earlier tasks, a layer computes

    y = W x + s B_past (A_past x) + s B (A x),        s = alpha/r (alpha/sqrt(r) for rank-stabilised LoRA)

where A_past (t r, in) holds the stored A one below the other and B_past (out, t r) the stored B side by side,
so that B_past A_past is the sum of the earlier updates. r is the rank of one task: s does not change as the
stack grows. In the model, the earlier pairs are a second PEFT adapter, `past`, beside the trained adapter,
`default`. On disk they are one standard adapter of rank (t + 1) r, whose last r ranks belong to the last
task.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.adapters.folder import WEIGHTS, read_adapter, refuse_other_tensors
from kifuse.adapters.lora import CURRENT, Peft, in_order
from kifuse.errors import ModelError
from kifuse.io.storage import write_tensors
from kifuse.io.whole_folders import replace_folder

PAST = "past"
"""Name of the PEFT adapter that holds the earlier tasks' pairs."""

STACKABLE = ("lora", "rslora")
"""Kinds of adapter whose updates can be added into one adapter of a higher rank."""

Factors = dict[str, Tensor]
"""A and B of every layer, by the names under which PEFT saves them."""


class Stack(Peft):
    """A pair of LoRA factors for each task."""

    @classmethod
    def refuse(cls, settings: Any, method: str) -> None:
        """Refuse a kind of adapter whose updates cannot be added."""
        if settings.kind not in STACKABLE:
            raise ModelError(
                f"model.adapter.kind: found {settings.kind!r}, expected one of {', '.join(STACKABLE)}: "
                f"{method!r} adds up one pair of LoRA factors for each task, which works with these kinds "
                "only."
            )

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put the first pair on the model.

        Raises:
            ModelError: A chosen module is an embedding or a convolution, whose factors are not two matrices.
        """
        adapted = super().attach(model, encoder_decoder=encoder_decoder, seed=seed)
        for name, layer in adapted.named_modules():
            if hasattr(layer, "lora_A") and not isinstance(dict(layer.lora_A).get(CURRENT), nn.Linear):
                raise ModelError(
                    f"model.adapter.target_modules: {name} is not a linear layer, and "
                    f"{type(self.method).__name__} can stack adapters of linear layers only. Leave it out."
                )
        return adapted

    @property
    def count(self) -> int:
        """Number of earlier tasks whose frozen pairs are in the model."""
        configs = self.model.peft_config
        return configs[PAST].r // configs[CURRENT].r if PAST in configs else 0

    def begin_task(self, index: int, seed: int) -> None:
        """After the first task: freeze the trained pair beside the earlier ones, and start a new one."""
        if index:
            # each task has its own seed, within the range that every generator accepts
            self.grow((seed * 1000 + index) % 2**32)

    def grow(self, seed: int) -> None:
        """Freeze the trained pair beside the earlier ones, and start a new one; the function stays the same.

        A of the new pair is drawn as PEFT draws it (Kaiming-uniform), B is 0. Both are written into the
        parameters of the old pair.

        Args:
            seed: Seed of the new A.
        """
        self._set_past(self._all_pairs())
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self._layers():
                a, b = layer.lora_A[CURRENT].weight, layer.lora_B[CURRENT].weight
                # drawn on the CPU, so that it is the same on every device
                start = nn.init.kaiming_uniform_(torch.empty(a.shape), a=math.sqrt(5), generator=draw)
                a.copy_(start)
                b.zero_()

    def frozen(self) -> dict[str, Tensor]:
        """Return the factors of the earlier tasks, by the name of the trained parameter that they belong to.

        Returns:
            (t r, in) for each A, (out, t r) for each B; empty if there is no earlier task.
        """
        if PAST not in self.model.peft_config:
            return {}
        named = dict(self.model.named_parameters())
        beside = {n: n.replace(f".{CURRENT}.", f".{PAST}.") for n, p in named.items() if p.requires_grad}
        return {name: named[other] for name, other in beside.items() if other != name and other in named}

    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Remove the pairs of earlier tasks, and set the first one."""
        self._drop_past()
        super().restart(values)

    def save(self, folder: Path) -> None:
        """Write all pairs as one standard PEFT adapter.

        Its rank is the sum of the ranks. Its alpha is such that alpha/rank is the scale of one task.
        """
        if not self.count:
            return super().save(folder)
        tensors = self._all_pairs()
        config = self._config_of(_rank(tensors))
        config.inference_mode = True
        in_order(config)

        def fill(partial: Path) -> None:
            # PEFT writes this metadata
            write_tensors(partial / WEIGHTS, tensors, {"format": "pt"})
            config.save_pretrained(str(partial))

        replace_folder(folder, fill)

    def load(self, folder: Path) -> None:
        """Load saved pairs: the last one is trained, those before it are frozen.

        Raises:
            ModelError: The folder holds no adapter, its rank is not a multiple of one task's rank, or it
                belongs to another model.
        """
        from peft import set_peft_model_state_dict

        found, rank = read_adapter(folder), self.model.peft_config[CURRENT].r
        ranks = {t.shape[_across(name)] for name, t in found.tensors.items() if _is_factor(name)}
        if found.full or len(ranks) != 1 or max(ranks) % rank:
            named = ", ".join(map(str, sorted(ranks)))
            ranked = f"an adapter of rank {named}" if ranks else "no LoRA adapter"
            raise ModelError(
                f"{folder}: holds {ranked}, expected an adapter whose rank is a multiple of {rank}, the "
                "rank of one task."
            )
        total = max(ranks)
        own = self._pair(CURRENT)
        parts = {
            name: t.split([total - rank, rank], _across(name)) if _is_factor(name) else (t, t)
            for name, t in found.tensors.items()
        }
        refuse_other_tensors(
            found.weights,
            {name: tuple(last.shape) for name, (_, last) in parts.items()},
            {name: tuple(t.shape) for name, t in own.items()},
        )
        if total > rank:
            self._set_past({name: past.contiguous() for name, (past, _) in parts.items()})
        else:
            self._drop_past()
        set_peft_model_state_dict(self.model, {name: last.contiguous() for name, (_, last) in parts.items()})

    def _layers(self) -> Iterator[Any]:
        from peft.tuners.lora import LoraLayer

        return (x for x in self.model.modules() if isinstance(x, LoraLayer) and CURRENT in x.lora_A)

    def _pair(self, adapter: str) -> Factors:
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(self.model, adapter_name=adapter, save_embedding_layers=False)

    def _all_pairs(self) -> Factors:
        """The earlier pairs and the trained pair joined into one: A (t r + r, in), B (out, t r + r)."""
        last = self._pair(CURRENT)
        if not self.count:
            return {name: t.detach().clone() for name, t in last.items()}
        past = self._pair(PAST)
        return {name: torch.cat([past[name], t.detach()], _across(name)) for name, t in last.items()}

    def _config_of(self, rank: int) -> Any:
        """The configuration of a stack of this rank: one task's configuration with the scale of one task."""
        config = copy.deepcopy(self.model.peft_config[CURRENT])
        one, alpha = config.r, config.lora_alpha
        # s = alpha / one must be config.lora_alpha / rank
        config.lora_alpha = alpha * rank / math.sqrt(one) if config.use_rslora else alpha * (rank // one)
        config.r, config.use_rslora = rank, False
        return config

    def _set_past(self, tensors: Factors) -> None:
        from peft import set_peft_model_state_dict

        self._drop_past()
        config = self._config_of(_rank(tensors))
        config.lora_dropout = 0.0
        with torch.random.fork_rng(devices=[]):
            self.model.add_adapter(PAST, config)
        for layer in self._layers():
            layer.scaling[PAST] = layer.scaling[CURRENT]
        set_peft_model_state_dict(self.model, tensors, adapter_name=PAST)
        self.model.base_model.set_adapter([CURRENT, PAST])
        self._freeze()

    def _drop_past(self) -> None:
        """Remove the pairs of earlier tasks, if there are any."""
        if PAST in self.model.peft_config:
            # do this first, so that PEFT need not choose another active adapter
            self.model.base_model.set_adapter([CURRENT])
            self.model.delete_adapter(PAST)
        self._freeze()

    def _freeze(self) -> None:
        """Freeze all pairs but the last: PEFT makes every active adapter trainable."""
        for layer in self._layers():
            for factors in (layer.lora_A, layer.lora_B):
                for name, factor in factors.items():
                    factor.requires_grad_(name == CURRENT)


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _across(name: str) -> int:
    """The dimension of a factor that is the rank: A (rank, in), B (out, rank)."""
    return 0 if ".lora_A." in name else 1


def _rank(tensors: Factors) -> int:
    return next((t.shape[0] for name, t in tensors.items() if ".lora_A." in name), 0)
