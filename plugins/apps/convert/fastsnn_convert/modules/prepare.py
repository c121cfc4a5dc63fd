"""A user's module as one that can be traced: unwrapped, copied, weights computed, hooks and subclasses made plain.

What a module computes does not only stand in its class's ``forward``: wrappers (`torch.compile`, `nn.DataParallel`),
parametrizations (weight norm, spectral norm, pruning), forward hooks and a ``forward`` set on the instance change it.
Each is resolved here, in a copy, into plain modules that compute the same; what cannot be is refused by name.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.adapters import without_adapters
from fastsnn_convert.modules.hooked_modules import drop_observers, hooks_outside
from fastsnn_convert.modules.inputs import HALF
from fastsnn_core.bundle_checks import unwrapped

REMOVABLE = (WeightNorm, SpectralNorm, BasePruningMethod)
HARMLESS = frozenset((
    "__init__", "__module__", "__doc__", "__qualname__", "__dict__", "__weakref__", "__repr__", "__annotations__",
    "__constants__", "__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__", "__slots__",
    "__annotate__", "__annotate_func__", "extra_repr", "reset_parameters", "_get_name", "converts_as",
))  # fmt: skip
PEERS = {  # modules of other libraries that hold spiking neurons, and which neuron is the same here
    "snntorch._neurons": (
        "Leaky(beta) is kind = 'lif' with tau = 1/(1 - beta) and reset_delay = true (it resets one step later, and "
        "fires above the threshold, not at it); Leaky(beta, reset_delay=False) is lif without that"
    ),
    "spikingjelly.activation_based.neuron": (
        "LIFNode(tau, decay_input=False) is kind = 'lif' with the same tau and hard_reset = true (v_reset=None: "
        "without it); with decay_input=True its inputs are divided by tau"
    ),
    "norse.torch.module.lif": "LIFBox is kind = 'lif' with tau = 1/(dt·tau_mem_inv), its inputs divided by tau",
    "sinabs.layers.lif": "LIF(tau_mem) is kind = 'lif' with tau = 1/(1 - exp(-1/tau_mem)), its inputs divided by tau",
}


def prepared(model: nn.Module, run: Callable[[nn.Module], Any] | None = None) -> nn.Module:
    """A copy of `model` in evaluation mode that computes the same by plain modules; `model` is left as it is.

    `run` calls a model on an example: forward hooks that only look on are told apart from those that change something
    by it. Half precision becomes float32. Errors: TorchScript, sharded, quantised, unmaterialised or non-finite
    modules, by name.
    """
    check_source(model)
    model = unwrapped(model)
    check_source(model)
    body = without_adapters(duplicate(model)).eval()
    body = replace_modules(body, simplified)
    bake_weights(body)
    check_tensors(body)
    ordinary_tensors(body)
    body = replace_modules(body, hooks_outside)
    if run is not None:
        drop_observers(body, run)
    return body.eval()


# -- what it is ------------------------------------------------------------------------------------------------------


def check_source(model: Any) -> None:
    """Refuse what is no module, or one whose computation is not in Python."""
    if isinstance(model, type):
        raise ConversionError(f"{model.__name__} is a class; convert takes an instance of it: {model.__name__}(…)")
    if not isinstance(model, nn.Module):
        what = type(model).__name__
        raise ConversionError(
            f"{'an' if what[0] in 'aeiouAEIOU' else 'a'} {what} cannot be converted; convert takes an nn.Module, a "
            "Hugging Face directory, a .snn bundle, or weights (.safetensors or a state dict) with spec="
        )
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        kind, home = type(module).__name__, type(module).__module__
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(
                f"{where} is TorchScript (torch.jit.script or torch.jit.trace): its forward is compiled code, not "
                "Python. Convert the Python module that it was made of (its state dict fits)"
            )
        if "FullyShardedDataParallel" in kind or kind.startswith("FSDP"):
            raise ConversionError(f"{where} is sharded ({kind}); convert the module inside, with its whole weights")
        if peer := next((p for p in PEERS if home.startswith(p)), ""):
            raise ConversionError(
                f"{where} is {kind} of {peer.partition('.')[0]}, a spiking neuron that keeps a state: there is nothing "
                f"to convert. {PEERS[peer]}; build the network with it (kind = 'sequential') and copy the weights, or "
                "put activations (ReLU) in the neurons' places and convert that"
            )
        if home.startswith(("torch.ao.nn", "torch.nn.quantized", "torch.nn.intrinsic", "torchao.")):
            raise ConversionError(f"{where} is quantised ({home}.{kind}); convert the float module, then quantise")
    if "eval" in model.__dict__:
        raise ConversionError(
            f"the model is a program of torch.export ({type(model).__name__} without train() and eval()), its modules "
            "taken apart; convert the Python module that it was made of"
        )
    if any(getattr(nn.modules.module, name) for name in ("_global_forward_hooks", "_global_forward_pre_hooks")):
        raise ConversionError(
            "global forward hooks are set (torch.nn.modules.module.register_module_forward_hook); remove them first: "
            "a converted network would not have them after loading"
        )


class CopyTensors(TorchFunctionMode):
    """Deep copies of tensors that were computed (weights of old weight norm, stored activations) are detached ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            x, memo = args
            return memo.setdefault(id(x), x.detach().clone())
        return func(*args, **(kwargs or {}))


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy."""
    try:
        with CopyTensors():
            return copy.deepcopy(model)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise ConversionError(
            f"{type(model).__name__} cannot be copied ({error}); take what cannot be copied (locks, files, "
            "generators, processes) out of the module"
        ) from error


def replace_modules(module: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Every module of a tree replaced by what `change` says, children first; shared modules stay shared."""
    memo: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if id(module) in memo:
            return memo[id(module)]
        memo[id(module)] = module  # a cycle ends here
        for name, child in list(module._modules.items()):
            if child is not None:
                module._modules[name] = visit(child)
        new = change(module)
        memo[id(module)] = memo[id(new)] = new
        return new

    return visit(module)


# -- subclasses ------------------------------------------------------------------------------------------------------


def torch_base(kind: type) -> type | None:
    """The class of torch.nn that a class is, or derives from; None for modules and containers of one's own."""
    found = next((c for c in kind.__mro__ if c.__module__.startswith("torch.nn.")), None)
    plain = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    return None if found is None or found in plain else found


def overridden(kind: type, base: type) -> set[str]:
    """What a subclass does in another way than `base`."""
    between = kind.__mro__[: kind.__mro__.index(base)]
    names = {name for c in between for name in vars(c)} - HARMLESS
    known = set(dir(base)) | {n for c in base.__mro__ for n in vars(c).get("__annotations__", {})}
    return names & (known | {"weight", "bias"})


def simplified(module: nn.Module) -> nn.Module:
    """A subclass that computes what its torch.nn class does becomes one of that class; wrappers are opened."""
    module = unwrapped(module)
    module.__dict__["_compiled_call_impl"] = None
    forward = module.__dict__.get("forward")
    if forward is not None:
        forward = inspect.unwrap(getattr(forward, "_torchdynamo_orig_callable", forward))
        if isinstance(forward, types.MethodType) and forward.__func__ is type(module).forward:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = forward
    kind = type(module)
    if kind is nn.SyncBatchNorm:
        from fastsnn_model_sequential.modules import AnyRankBatchNorm

        module.__class__ = AnyRankBatchNorm
        return module
    base = torch_base(kind)
    if base is None or base is kind or "converts_as" in vars(kind) or parametrize.is_parametrized(module):
        return module
    if not overridden(kind, base):
        module.__class__ = base
    return module


# -- computed weights ------------------------------------------------------------------------------------------------


@torch.no_grad()
def bake_weights(model: nn.Module) -> None:
    """Weight norm, spectral norm, pruning and parametrizations, old and new, as the weights they come to."""
    for name, module in model.named_modules():
        try:
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, REMOVABLE):
                    hook.remove(module)
                    del module._forward_pre_hooks[key]
            if parametrize.is_parametrized(module):
                kind = type(module)  # the copy's own class: removing changes it, and the user's module has the same
                own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
                module.__class__ = type(kind.__name__, kind.__bases__, own)
                for tensor in list(module.parametrizations):
                    parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
        except (RuntimeError, ValueError, AttributeError, AssertionError) as error:
            raise ConversionError(
                f"the weights of module {name!r} ({type(module).__name__}) are computed, and removing that failed "
                f"({error}); call remove_weight_norm, prune.remove or parametrize.remove_parametrizations first"
            ) from error
    for module in model.modules():  # parametrized subclasses are plain again
        simplified(module)


def ordinary_tensors(model: nn.Module) -> None:
    """Weights as they are after loading: contiguous, in single precision at least, none made in inference mode."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        groups: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for group in groups:
            for name, tensor in group.items():
                if tensor is not None and tensor.is_inference():  # no gradients through these; shared ones stay shared
                    plain = tensor.detach().clone()
                    new = nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain
                    group[name] = made.setdefault(id(tensor), new)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = (tensor.data.float() if tensor.dtype in HALF else tensor.data).contiguous()


@torch.no_grad()
def check_tensors(model: nn.Module) -> None:
    """Refuse weights that are not there, or that are no numbers."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedTensorMixin):
            raise ConversionError(f"{name} has no shape yet (a lazy module): run the model once on an input first")
        if tensor.is_meta:
            raise ConversionError(f"{name} is on the meta device: it has a shape but no values; load its weights first")
        if tensor.is_complex() or tensor.layout != torch.strided or tensor.is_quantized:
            what = "complex" if tensor.is_complex() else str(tensor.layout if not tensor.is_quantized else tensor.dtype)
            raise ConversionError(f"{name} is {what}; weights of converted networks are dense real numbers")
        if not tensor.is_floating_point():
            continue
        if tensor.element_size() == 1:
            raise ConversionError(f"{name} is {tensor.dtype}: scaled 8-bit floats; convert the network in bfloat16")
        bad = int(tensor.isnan().sum())
        if isinstance(tensor, nn.Parameter) or name.rpartition(".")[2].startswith("running_"):
            bad = int((~tensor.isfinite()).sum())  # other buffers may hold infinities: attention masks
        if bad:
            raise ConversionError(
                f"{name} holds {bad} of {tensor.numel()} values that are NaN or infinite; the checkpoint is damaged, "
                "or training diverged"
            )
