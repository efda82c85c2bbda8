"""Loads a backbone (a hub id, a folder, or a bundled model) in a precision that the machine supports."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from kifuse.errors import ModelError
from kifuse.models.bundled import bundled_model
from kifuse.models.catalog import BUNDLED, is_model_folder
from kifuse.models.model_folder import check_config, check_weights, refuse_random, unused
from kifuse.models.tokenizer import cannot_load, checked_name, load_tokenizer

Precision = Literal["fp32", "bf16", "fp16"]
Quantization = Literal["none", "8bit", "4bit"]


@dataclass
class Backbone:
    """A loaded model with the facts that other parts of kifuse need.

    Attributes:
        model: The transformers model. Its weights are float32 (autocast provides reduced precision), or its
            linear layers have 8 or 4 bits.
        tokenizer: Its tokenizer, with a padding token.
        encoder_decoder: T5-like (True) or decoder-only (False).
        accepts: Argument names of its forward pass.
        precision: Precision of the matrix products.
        device: The device that it runs on.
        source: Where it was loaded from.
    """

    model: Any
    tokenizer: Any
    encoder_decoder: bool
    accepts: frozenset[str]
    precision: Precision
    device: torch.device
    source: str

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that sets the precision for a forward pass outside the Trainer."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)


def pick_device() -> torch.device:
    """The device that training will use in this process."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve `auto`: bf16 if the hardware multiplies it, else fp16 on CUDA, else fp32.

    Raises:
        ModelError: fp16 was requested on a CPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise ModelError("model.precision: 'fp16' needs a GPU. Use 'bf16', 'fp32' or 'auto' on a CPU.")
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if has_bf16 else "fp32"


def quantization_config(quantization: str, precision: Precision) -> Any:
    """The transformers setting that loads a model's linear layers in 8 or 4 bits through bitsandbytes.

    Args:
        quantization: `none`; `8bit` (LLM.int8, as in the papers' LLaMA runs); `4bit` (NF4, as in QLoRA).
        precision: Precision of the matrix products, to which 4-bit weights are expanded.

    Returns:
        A `BitsAndBytesConfig`, or None for `none`.

    Raises:
        ModelError: bitsandbytes is not installed, or there is no such quantization.
    """
    if quantization == "none":
        return None
    if quantization not in get_args(Quantization):
        raise ModelError(
            f"model.quantization: found {quantization!r}, "
            f"expected one of {', '.join(get_args(Quantization))}."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization: {quantization!r} needs the package bitsandbytes, which is not installed. "
            "Run: pip install bitsandbytes"
        )
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def load_backbone(
    name: str,
    *,
    precision: str = "auto",
    quantization: str = "none",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Backbone:
    """Load a causal or encoder-decoder model with its tokenizer.

    Args:
        name: `smollm2-135m`, a hub id, or a folder.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        quantization: `none`, `8bit` or `4bit`, for the frozen linear layers.
        trust_remote_code: Run model code from the hub; only when the user asks.
        device: Device to load to; None takes the GPU if there is one.
        say: Called with one line about the present work.

    Raises:
        ModelError: There is no such model, it is neither causal nor encoder-decoder, bitsandbytes is missing,
            or its folder is damaged, lacks weights, or holds them in a format other than safetensors.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    name = checked_name(name)
    device = device or pick_device()
    chosen = pick_precision(precision, device)
    quantized = quantization_config(quantization, chosen)
    loaded = load_tokenizer(name, trust_remote_code=trust_remote_code, say=say)
    auto = AutoModelForSeq2SeqLM if loaded.encoder_decoder else AutoModelForCausalLM
    # on a CPU and for short inputs, plain attention trains faster than the fused kernel
    attention = {"attn_implementation": "eager"} if device.type == "cpu" else {}
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **attention}
    if quantized is not None:
        # quantised weights are created on their device and cannot be moved later
        options |= {"quantization_config": quantized, "device_map": {"": device}}
    if is_model_folder(loaded.source):
        outline, _ = empty_model(loaded.source, trust_remote_code=trust_remote_code)
        tensors = [*outline.parameters(), *outline.buffers()]
        check_weights(name, Path(loaded.source), sum(t.numel() for t in tensors))
    try:
        pair: Any = auto.from_pretrained(
            loaded.source,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # for a damaged folder, libraries raise errors of any kind
        raise ModelError(cannot_load(name, error)) from error
    model, found = pair
    refuse_random(name, found)
    if said := unused(found):
        say(said)
    if quantized is None:
        model.to(device)  # pyright: ignore[reportArgumentType] - transformers' stub is wrong here
    elif narrow := narrow_4bit_layer(model):
        raise ModelError(f"model.quantization: {quantization!r}: {narrow}. Use '8bit' or none, or a GPU.")
    model.config.use_cache = True
    accepts = frozenset(inspect.signature(model.forward).parameters)
    return Backbone(model, loaded.tokenizer, loaded.encoder_decoder, accepts, chosen, device, loaded.source)


def narrow_4bit_layer(model: nn.Module) -> str:
    """Find a 4-bit layer that fails on this CPU outside of training, for example when answers are scored.

    Outside of training, on a CPU with AVX512-BF16, bitsandbytes repacks such layers in blocks of 32 outputs
    and 64 inputs.

    Args:
        model: Any model.

    Returns:
        What is wrong, in words; empty if nothing is.
    """
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__ != "Linear4bit" or getattr(weight, "device", None) != torch.device("cpu"):
            continue
        if not getattr(module, "support_avx512bf16_for_cpu", True):
            continue
        inputs, outputs = int(getattr(module, "in_features", 0)), int(getattr(module, "out_features", 0))
        block = getattr(weight, "blocksize", 64)
        for count, each, step in ((inputs, "inputs", block), (outputs, "outputs", 32)):
            if count % step:
                return (
                    f"the 4-bit layer {name} cannot be used on this CPU outside of training: its {count} "
                    f"{each} are no multiple of {step}"
                )
    return ""


def empty_model(name: str, *, trust_remote_code: bool = False) -> tuple[Any, bool]:
    """Build a model without its weights, on the meta device, only from its `config.json`.

    Args:
        name: As in `load_backbone`.
        trust_remote_code: Run model code from the hub; only when the user asks.

    Returns:
        The model, and whether it is an encoder-decoder.

    Raises:
        ModelError: There is no such model, or it is neither causal nor encoder-decoder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    name = checked_name(name)
    source = str(bundled_model(name)) if name in BUNDLED else name
    try:
        if is_model_folder(source):
            check_config(name, Path(source))
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
        auto = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=trust_remote_code)
        model.tie_weights()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(cannot_load(name, error)) from error
    return model, encoder_decoder


def shrink_frozen(model: nn.Module, precision: Precision) -> None:
    """Keep the weights of frozen linear layers in the precision in which they are multiplied.

    Autocast would otherwise cast them to it in every forward and backward pass. Casting once gives the same
    results bit for bit, a faster step, and weights of half the size. Layers under DoRA are left alone,
    because the norms of their weights are computed in full precision. So are layers of `osf`, because what
    was learned is merged into their weights.

    Args:
        model: The model that `add_adapter` returned; changed in place.
        precision: Precision of the matrix products; nothing is done for fp32.
    """
    if precision == "fp32":
        return
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    kept = ("lora_magnitude_vector", "osf_svd_params")
    wide = {id(m.base_layer) for m in model.modules() if any(len(getattr(m, each, ())) for each in kept)}
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad and id(module) not in wide:
            # make a new parameter: an output layer may share its weights with the embeddings, which stay as
            # they are
            module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
