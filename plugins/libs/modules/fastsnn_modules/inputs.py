"""The front doors of neurons, attentions and models: what comes in is checked once, before anything is computed.

A state belongs to the streams it came from. One that holds other streams than the input is refused (`StateError`, both
numbers in the message) instead of being cut, broadcast, or read beyond its end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.errors import ArgumentError, FastSNNError, UserError
from fastsnn_core.moved import renamed
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.state import StateError as StateError
from fastsnn_core.state import belongs as belongs
from fastsnn_modules.operands import HALF, OperandError, OperandTypeError, shown


class TokenError(FastSNNError, IndexError):
    """Token ids that the model has no row for, or that are no ids."""


def no_train(who: str, x: Any) -> Any:
    """`x`, unless it is a spike train of several steps: its value would silently be the sum over them."""
    if isinstance(x, SpikeTensor) and x.form == "dense" and x.steps > 1:
        raise OperandError(
            f"{who}: the input is a spike train [S, …] of {x.steps} steps, {list(x.train.shape)}; a network wants "
            "[B, T, …]. One token per step: spikes.train.movedim(0, 1).float(); the value of all steps: spikes.value()"
        )
    return x


def check_state_kind(who: str, state: Any, kind: type, what: str) -> None:
    """Refuse a state that another kind of module made."""
    if state is not None and not isinstance(state, kind):
        raise StateError(f"{who}: a state is {what}, or None to start afresh; got {type(state).__name__}")


def cache_state(who: str, state: Any, kind: type, k: Tensor, past: int | None, packed: bool) -> None:
    """A cache of keys and values ``[B,P,G,K]`` that goes on with `k` ``[B,T,G,K]``; of `past` tokens where that is set.

    `packed` says that it must hold INT8 codes, with their scales.
    """
    if state is None:
        return
    check_state_kind(who, state, kind, f"a {kind.__name__}")
    belongs(who, state, k.shape[0])
    length = state.k.shape[1] if past is None and state.k.ndim > 1 else past
    for name, t, wanted in (
        ("k", state.k, (k.shape[0], length, *k.shape[2:])),
        ("v", state.v, (k.shape[0], length, *k.shape[2:])),
        ("valid", state.valid, (k.shape[0], length)),
    ):
        if tuple(t.shape) != wanted:
            raise StateError(f"{who}: the state's {name} must be {list(wanted)}, got {shown(t)}")
    if packed != (state.scales is not None):
        raise StateError(f"{who}: the state is of a cache in {'floats' if packed else 'INT8'}, the model's is not")


def check_reset_mask(who: str, reset: Any, batch: int, time: int, device: torch.device) -> None:
    """`reset` is bool ``[B,T]``: true where a token starts a new document."""
    if reset is None:
        return
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        raise OperandTypeError(f"{who}: reset must be a bool tensor [B, T], got {shown(reset)}")
    if tuple(reset.shape) != (batch, time):
        raise OperandError(f"{who}: reset must be [B, T] = [{batch}, {time}], got {shown(reset)}")
    if reset.device != device:
        raise OperandTypeError(f"{who}: reset is on {reset.device} and the input on {device}; move one of them")


def check_input_device(who: str, weight: Tensor | None, x: Any) -> None:
    """Inputs lie on the device of the model's weights (weights on the meta device may be brought there by a hook)."""
    if weight is not None and isinstance(x, Tensor) and x.device != weight.device and not weight.is_meta:
        raise OperandTypeError(
            f"{who}: the input is on {x.device} and the weights on {weight.device}; move one of them: "
            f"x.to({str(weight.device)!r}), or model.to(…)"
        )


def numeric(who: str, x: Any) -> Any:
    """`x` as a tensor: spikes as their value; anything else is an error."""
    if isinstance(x, SpikeTensor):
        return x.value()
    if not isinstance(x, Tensor):
        raise OperandTypeError(f"{who}: the input must be a tensor, got {type(x).__name__}")
    return x


def numbers(who: str, x: Any) -> Tensor:
    """`x` as floats that counts can be taken of: half precision and integers become float32, spikes their value."""
    if isinstance(x, SpikeTensor):
        x = x.value()
    if not isinstance(x, Tensor):
        raise OperandTypeError(f"{who}: the input must be a tensor [B, T, D], got {type(x).__name__}")
    if x.is_complex() or x.is_quantized or x.layout is not torch.strided:
        raise OperandTypeError(f"{who}: the input must be an ordinary tensor of real numbers, got {shown(x)}")
    return x.float() if x.dtype in HALF or not x.is_floating_point() else x


def neuron_input(who: str, x: Any, state: Any, reset: Tensor | None, *, stateful: bool = True) -> Tensor:
    """What a neuron is given: ``x [B,T,D]`` in float32 at least, a state of B streams (none where it keeps none)."""
    x = numbers(who, x)
    if x.ndim != 3:
        raise OperandError(f"{who}: the input must be [B, T, D] (batch, time, channels), got {shown(x)}")
    if state is not None and not stateful:
        raise StateError(f"{who} keeps no state; it takes None, got {type(state).__name__}")
    belongs(who, state, x.shape[0])
    check_reset_mask(who, reset, x.shape[0], x.shape[1], x.device)
    return x


def membrane_state(who: str, x: Tensor, v: Any) -> Tensor:
    """A membrane ``[B,D]`` that goes on with ``x [B,T,D]``, in its type; zeros for None."""
    if v is None:
        return x.new_zeros(x.shape[0], x.shape[2])
    check_state_kind(who, v, Tensor, "the membrane [B, D]")
    check_state_tensor(who, x, v)
    belongs(who, v, x.shape[0])
    if tuple(v.shape) != (x.shape[0], x.shape[2]):
        raise StateError(f"{who}: the state must be [B, D] = [{x.shape[0]}, {x.shape[2]}], got {shown(v)}")
    return v.to(x.dtype)


def check_state_tensor(who: str, x: Tensor, v: Any) -> None:
    """A part of a state is an ordinary (strided) tensor of real numbers, on the device of ``x``."""
    if not isinstance(v, Tensor) or v.layout is not torch.strided or v.is_quantized or v.is_complex():
        what = shown(v) if isinstance(v, Tensor) and v.layout is torch.strided else getattr(v, "layout", v)
        raise StateError(f"{who}: a state holds ordinary tensors of real numbers, got {what}")
    if v.device != x.device:
        raise StateError(f"{who}: the state is on {v.device} and the input on {x.device}; move one of them")


def named_tokens(tokens: Any, named: dict[str, Any], carries: bool = False) -> Any:
    """The token ids of a call in transformers' names: ``input_ids``, and an ``attention_mask`` that changes nothing.

    A causal model never sees what comes later, so ones followed by zeros (padding on the right) change no logits of
    the text; where the state is wanted (`carries`), nothing may be padded. Anything else raises `ArgumentError`.
    """
    named = {k: v for k, v in named.items() if v is not None}
    mask, ids = named.pop("attention_mask", None), named.pop("input_ids", None)
    elsewhere = "import fastsnn_hf: AutoModelForCausalLM.from_pretrained('model.snn') does all that transformers does"
    if named:
        hint = "; the loss is F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())" * ("labels" in named)
        raise ArgumentError(
            f"a FastSNN model takes token ids, a state, reset, return_state and last, not {', '.join(sorted(named))}"
            f"{hint}. {elsewhere}"
        )
    if (tokens is None) == (ids is None):
        given = "none" if ids is None else "tokens and input_ids"
        raise ArgumentError(f"a model takes its token ids [B, T] once, as model(ids); got {given}")
    tokens = ids if tokens is None else tokens
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.shape != getattr(tokens, "shape", None):
            raise ArgumentError(f"attention_mask has the shape of input_ids, got {shown(mask)} for {shown(tokens)}")
        on = mask != 0
        if not bool((on[:, 1:] <= on[:, :-1]).all()) or (carries and not bool(on.all())):
            raise ArgumentError(
                "attention_mask: padding on the left, holes, and padding before a state that goes on are not supported "
                f"here; give each text alone, or {elsewhere}"
            )
    return tokens


def token_input(tokens: Any, vocab_size: int) -> Tensor:
    """Token ids ``[B,T]``, every one in 0 … vocab_size - 1 (on a GPU the embedding itself checks the range)."""
    check_token_ids(tokens, vocab_size)
    if tokens.ndim != 2:
        hint = "; a batch of one is ids[None]" if tokens.ndim == 1 else ""
        raise TokenError(f"tokens: expected [B, T], got shape {list(tokens.shape)}{hint}")
    return tokens if tokens.dtype in (torch.int32, torch.int64) else tokens.long()


def check_token_ids(tokens: Any, vocab_size: int | None, where: str = "tokens") -> Tensor:
    """`tokens`, if all are ids in 0 … `vocab_size` - 1 (None: any size); else `TokenError` names the first that is not.

    Values are looked at on the CPU only: on another device that would make the host wait.
    """
    if not isinstance(tokens, Tensor):
        raise TokenError(f"{where}: expected token ids [B, T] as a tensor of integers, got {type(tokens).__name__}")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TokenError(f"{where}: token ids are integers, got {tokens.dtype}")
    if tokens.device.type != "cpu" or not tokens.numel() or torch.compiler.is_compiling():
        return tokens
    low, high = (int(v) for v in tokens.aminmax())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        wrong = (tokens < 0) if low < 0 else (tokens >= (vocab_size or 0))
        place = tuple(int(i) for i in wrong.nonzero()[0])
        names = ("row", "position") if len(place) == 2 else ("index",) * len(place)
        at = ", ".join(f"{name} {i}" for name, i in zip(names, place))
        size = "" if vocab_size is None else f" the model's vocabulary of {vocab_size} tokens (0 … {vocab_size - 1})"
        what = f"is outside{size}" if size else "is negative"
        raise TokenError(f"{where}: token id {int(tokens[place])}{at and f' at {at}'} {what}")
    return tokens


def vocabulary_of(model: nn.Module) -> int | None:
    """How many tokens a language model knows, by its spec or its first embedding; None where neither says."""
    size = getattr(getattr(model, "spec", None), "vocab_size", None)
    if size is None:
        size = next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), None)
    return size


def refuse_trace(model: nn.Module, tokens: Any = None) -> None:
    """Refuse tracers of a model whose path depends on its inputs' lengths, and `torch.vmap` over its `tokens`.

    Errors: `UserError`, which names what to take instead.
    """
    if isinstance(tokens, torch.fx.Proxy):
        raise UserError(
            f"torch.fx.symbolic_trace does not read {type(model).__name__}: its path depends on what it reads. Take "
            "torch.export, or fastsnn export MODEL.snn FILE --to onnx"
        )
    if torch.compiler.is_compiling():  # dynamo cannot look at what is below
        return
    functorch = torch._C._functorch
    while isinstance(tokens, Tensor) and functorch.is_gradtrackingtensor(tokens):
        tokens = functorch.get_unwrapped(tokens)
    if isinstance(tokens, Tensor) and functorch.is_batchedtensor(tokens):
        raise UserError(
            f"torch.vmap over the tokens of {type(model).__name__}: their values are checked, and vmap hides them. It "
            "takes a batch [B, T] itself; gradients per sample: one call of torch.func.grad per sample"
        )
    if torch.jit.is_tracing():
        raise UserError(
            f"torch.jit.trace keeps the path of one input's length, and {type(model).__name__} takes another for a "
            "prompt than for a token. Take torch.export, or fastsnn export MODEL.snn FILE --to onnx"
        )


__getattr__ = renamed(__name__, {"check_reset": "check_reset_mask", "like": "check_state_kind"})
