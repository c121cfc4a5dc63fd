"""`FastSNN`: the whole life of a spiking model, each step one call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from fastsnn.presets import model_spec
from fastsnn_core import Model, bundle, create
from fastsnn_core import build as build_component
from fastsnn_core import spec as specs
from fastsnn_core.errors import ArgumentError, FastSNNError


class FastSNN:
    """build → fit → extend_context → scope → export → serve; and convert, load, generate, from_spec.

    Models are ordinary ``torch.nn.Module``; ``model.spec`` is what they were built from. Nothing here holds state.
    """

    @staticmethod
    def build(
        arch: str = "snn-tiny", attn: Any = "hybrid_alt", neuron: Any = "adaptive_threshold", **changes: Any
    ) -> nn.Module:
        """A fresh language model from a preset.

        `arch`: snn-tiny, snn-small, snn-base, snn-large. `attn`: hybrid_alt (gated linear and sliding-window layers
        in turn), hybrid (linear ∥ sliding window), linear, gla, sliding_window, softmax, or a list for the layers.
        `neuron`: any installed neuron by name, table or component. `changes` are the decoder's parameters (vocab_size,
        d_model, n_layers, n_heads, d_ff, sites …) and ``window``.
        """
        return build_component(model_spec(arch, attn, neuron, **changes))

    @staticmethod
    def from_spec(source: str | Path | Model | specs.Spec) -> nn.Module:
        """A fresh model from a TOML file, TOML text, or a component."""
        if isinstance(source, Model):
            return build_component(source)
        if isinstance(source, specs.Spec):
            found = source
        elif isinstance(source, str) and "\n" in source:
            found = specs.loads(source)
        else:
            found = specs.load(source)
        model = build_component(found.model)
        model.sections = {name: specs.to_table(section) for name, section in found.sections.items()}
        return model

    @staticmethod
    def load(path: str | Path, device: str = "cpu") -> nn.Module:
        """The model of a bundle, verified."""
        return bundle.load(path, device)

    @staticmethod
    def fit(
        model: nn.Module,
        dataset: Any = "builtin:pydoc",
        seq_len: int = 512,
        max_steps: int = 1000,
        *,
        tokenizer: Any = None,
        text_field: str = "text",
        out: str | Path | None = None,
        resume: bool = False,
        quiet: bool = False,
        **settings: Any,
    ) -> Any:
        """Train `model`; returns the `Trainer` (its ``history`` has the losses).

        `dataset`: texts (a Hugging Face name, a file, folder or pattern, a list of texts, a ``datasets.Dataset``,
        builtin:pydoc) or token ids (batches ``[B, T]`` or sequences from a list, a ``DataLoader``, a torch ``Dataset``
        or any iterable; dicts with ``input_ids``, ``labels``, ``attention_mask``; one long array of tokens).
        `tokenizer`: the model's own unless given; also one of transformers or tokenizers. `settings` are those of
        `TrainConfig` (lr, batch_size, …).
        """
        from fastsnn_core.errors import ArgumentError, check_options
        from fastsnn_train import TrainConfig, Trainer, fit_data

        if not isinstance(model, nn.Module):
            given = "None" if model is None else f"a {type(model).__name__}"
            raise ArgumentError(f"fit() trains a torch.nn.Module, got {given}; load a bundle with FastSNN.load(path)")
        check_options("fit", settings, (f.name for f in attrs.fields(TrainConfig)))
        config = TrainConfig(max_steps=max_steps, **settings)
        data = fit_data(model, dataset, tokenizer=tokenizer, seq_len=seq_len, text_field=text_field)
        return Trainer(model, config, out=out, quiet=quiet).fit(data, resume=resume)

    @staticmethod
    def extend_context(
        model: nn.Module, trainer: Any, new_seq_len: int | tuple[int, ...], max_steps: int = 100, **settings: Any
    ) -> dict[str, Any]:
        """Train on to a longer context; returns the proof, loss by position before and after."""
        from fastsnn_core.errors import ArgumentError
        from fastsnn_train import Trainer, extend_context

        if not isinstance(trainer, Trainer):
            given = "None" if trainer is None else f"a {type(trainer).__name__}"
            raise ArgumentError(f"extend_context() goes on from the Trainer that FastSNN.fit returns, got {given}")
        return extend_context(model, trainer, new_seq_len=new_seq_len, max_steps=max_steps, **settings)

    @staticmethod
    def convert(source: Any, **options: Any) -> Any:
        """A trained network (Hugging Face directory, module, weights and spec) as a spiking one, with a report."""
        from fastsnn_convert import convert

        return convert(source, **options)

    @staticmethod
    def scope(model: nn.Module, **options: Any) -> Any:
        """What the model's spikes do: ``FastSNN.scope(model).report("runs/exp")`` writes page, pictures and numbers."""
        from fastsnn_scope import scope

        return scope(model, **options)

    @staticmethod
    def export(model: nn.Module, path: str | Path, to: str = "snn", **options: Any) -> Path:
        """Write `model`: as a ``.snn`` bundle, or through an installed exporter (`to`)."""
        if to == "snn":
            return bundle.save(model, path, **options)
        exporter = create("exporter", to, **options)
        if reasons := exporter.unsupported(model):
            raise FastSNNError(f"this model cannot be exported to {to}: " + "; ".join(reasons))
        return Path(exporter.export(model, path))

    @staticmethod
    def serve(path: str | Path, port: int = 8000, **options: Any) -> Any:
        """Serve a bundle over the OpenAI API until stopped (``block=False``: a handle, ``.url``, ``.close()``)."""
        from fastsnn_serve import serve

        return serve(path, port=port, **options)

    @staticmethod
    def generate(model: nn.Module | str | Path, prompt: str, max_tokens: int = 128, **settings: Any) -> str:
        """Text after `prompt`. `settings`: temperature (0 is greedy), top_p, top_k, seed, stop."""
        return "".join(FastSNN.stream(model, prompt, max_tokens, **settings))

    @staticmethod
    def stream(model: nn.Module | str | Path, prompt: str, max_tokens: int = 128, **settings: Any) -> Iterator[str]:
        """`generate`, piece by piece."""
        from fastsnn_text import Sampling, generate_text

        if not isinstance(model, nn.Module):
            model = bundle.load(model)
        stop = settings.pop("stop", ())
        known = [f.name for f in attrs.fields(Sampling)]
        if unknown := sorted(set(settings) - set(known)):
            raise ArgumentError(f"generate has no setting {', '.join(unknown)}; there are {', '.join(known)}, stop")
        yield from generate_text(
            model, prompt, max_tokens, Sampling(**settings), stop=(stop,) if isinstance(stop, str) else stop
        )
