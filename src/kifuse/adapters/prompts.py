"""Soft prompts: learned vectors before or after the input; the model's own weights stay frozen.

A decoder-only model reads `[P; x; y]`, or `[x; P; y]` when the prompts come after the input. An encoder reads
`[P; x]` or `[x; P]`. Neither padding nor the other rows of a batch change what a row gets.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kifuse.adapters.asked import ReadsAsked, put_on
from kifuse.adapters.base import attached
from kifuse.adapters.by_task import ByTask, GrowsByTask


class SoftPrompts(ReadsAsked):
    """Base of adapters that put vectors beside the input."""

    place: ClassVar[str] = "soft_prompts"
    """Name of the module on the model."""
    behind: ClassVar[bool] = False
    """Whether the vectors stand after the prompt instead of before it."""
    decoder_sees_them: ClassVar[bool] = True
    """Whether a decoder also attends to the encoder's states at the vectors' places."""

    _added = 0
    """Number of vectors that were put beside the last prompt; when `generate` goes on, they are cached."""
    _mask: Any = None
    _places: Any = None

    def make(self, embeddings: Tensor, seed: int) -> nn.Module:
        """Make the module that is put on the model.

        Args:
            embeddings: The model's input embeddings, `(vocabulary, d)`.
            seed: Seed of all random draws.
        """
        raise NotImplementedError

    def vectors(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> Tensor:
        """Return the vectors of each row.

        Args:
            ids: Token ids, `(rows, tokens)`.
            embedded: Their embeddings, `(rows, tokens, d)`.
            asked: Which of the tokens are the prompt, `(rows, tokens)`.

        Returns:
            `(rows, n, d)`.
        """
        raise NotImplementedError

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put prompts beside the input of the encoder, or of a decoder-only model."""
        model.requires_grad_(False)
        reader = self.listen(model, encoder_decoder=encoder_decoder)
        put_on(model, self.place, self.make(self.embed.weight.detach(), seed))
        reader.register_forward_pre_hook(self._insert, with_kwargs=True)
        if encoder_decoder and self.decoder_sees_them:
            model.get_decoder().register_forward_pre_hook(self._widen, with_kwargs=True)
        else:
            reader.register_forward_hook(self._cut)
        return attached(self, model)

    def _insert(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids, mask, asked = self.read(args, kwargs)
        if self.from_cache:
            self._go_on(kwargs)
            return args, kwargs
        kwargs.pop("input_ids", None)
        embedded = self.embed(ids)
        vectors = self.vectors(ids, embedded, asked)
        self._added = vectors.shape[1]
        kwargs["inputs_embeds"] = torch.cat([vectors.to(embedded.dtype), embedded], dim=1)
        kwargs["attention_mask"] = functional.pad(mask, (self._added, 0), value=1)
        places = kwargs.get("position_ids")
        if places is not None:
            first = torch.arange(self._added, device=places.device).expand(len(places), -1)
            kwargs["position_ids"] = torch.cat([first, places + self._added], dim=1)
        if self.behind:
            self._move_behind(asked, kwargs)
        self._mask = kwargs["attention_mask"]
        return (), kwargs

    def _go_on(self, kwargs: dict[str, Any]) -> None:
        """Count the vectors in the cache as columns of the mask and as positions."""
        first = (self._asked or 0) if self.behind else 0
        mask, places = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is not None:
            ones = mask.new_ones(len(mask), self._added)
            kwargs["attention_mask"] = torch.cat([mask[:, :first], ones, mask[:, first:]], dim=1)
        if places is not None:
            kwargs["position_ids"] = places + self._added

    def _move_behind(self, asked: Tensor, kwargs: dict[str, Any]) -> None:
        """Move the vectors from the front to the place after the prompt.

        n vectors stand in front of T tokens. With the prompt of a row ending at its e-th token, column c of
        the new input is token c for c < e, vector c - e for e <= c < e + n, and token c - n beyond.
        """
        n, tokens = self._added, asked.shape[1]
        column = torch.arange(n + tokens, device=asked.device)[None]
        end = (torch.arange(1, tokens + 1, device=asked.device) * asked).amax(dim=1, keepdim=True)
        order = torch.where(column < end, column + n, torch.where(column < end + n, column - end, column))
        kwargs["inputs_embeds"] = kwargs["inputs_embeds"].gather(
            1, order[..., None].expand_as(kwargs["inputs_embeds"])
        )
        kwargs["attention_mask"] = kwargs["attention_mask"].gather(1, order)
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = (kwargs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        column = column[:, :tokens]
        # the last vector predicts the first token of the answer, in the place of the prompt's last token
        self._places = torch.where(column < end - 1, column, column + n)

    def _widen(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a decoder attend to the prompts, too."""
        mask = kwargs.get("encoder_attention_mask")
        states = kwargs.get("encoder_hidden_states")
        if mask is not None and states is not None and mask.shape[1] < states.shape[1]:
            # beam search repeats each row several times
            times = len(states) // len(self._mask)
            kwargs["encoder_attention_mask"] = self._mask.repeat_interleave(times, dim=0)
        return args, kwargs

    def _cut(self, reader: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Remove the states of the vectors, so that positions are those of the input again."""
        if self.from_cache:
            return output
        states = output.last_hidden_state
        if self.behind:
            states = states.gather(1, self._places[..., None].expand(-1, -1, states.shape[-1]))
        else:
            states = states[:, self._added :]
        output.last_hidden_state = states
        return output


class OwnPrompts(ByTask):
    """The current task's prompt, and those of the earlier tasks.

    Args:
        start: Starting values of the first prompt, `(L, d)`.
    """

    prompt: nn.Parameter
    past_prompt: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.add("prompt", start)


class TaskPrompts(GrowsByTask, SoftPrompts):
    """Prompts of all tasks, one for each task, with `method.length` vectors each."""

    def make(self, embeddings: Tensor, seed: int) -> OwnPrompts:
        """Make the first task's prompt from the embeddings of random tokens."""
        draw = torch.Generator().manual_seed(seed)
        return OwnPrompts(embeddings_of_tokens(embeddings, (self.method.length,), draw))

    def renew(self, part: Any, draw: torch.Generator) -> None:
        """Start the next task's prompt from the embeddings of other random tokens."""
        part.prompt.copy_(embeddings_of_tokens(self.embed.weight.detach(), (self.method.length,), draw))

    @property
    def prompts(self) -> Tensor:
        """The prompts of all tasks, the current task's last, `(t, L, d)`."""
        return self.model.soft_prompts.all_of("prompt")


def embeddings_of_tokens(embeddings: Tensor, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Embeddings of random tokens, as starting values of prompts; float32, `(*shape, d)`."""
    tokens = torch.randint(len(embeddings), shape, generator=draw)
    return embeddings[tokens.to(embeddings.device)].float()
