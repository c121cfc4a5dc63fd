"""`FastSNN`: the whole life of a spiking model, each step one call.

Importing this imports no torch (benchmarks/import_time.py): every step brings what it needs.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from fastsnn.checks import (
    as_named_table,
    check_target,
    exporter_of,
    learns_samples,
    needs_model,
    needs_path,
    needs_spec,
)
from fastsnn_console import targets
from fastsnn_console.gradients import gradients_on
from fastsnn_console.starting import starting
from fastsnn_console.typed import check_fields, typed
from fastsnn_core import Model, Neuron
from fastsnn_core.errors import ArgumentError, FastSNNError, check_options

if TYPE_CHECKING:
    from typing import Unpack

    import torch
    from torch import nn

    from fastsnn.options import (
        ConvertOptions,
        ExtendOptions,
        GenerateOptions,
        ScopeOptions,
        ServeOptions,
        TrainOptions,
    )
    from fastsnn_core import spec as specs

LATE = {"nn": "torch.nn", "specs": "fastsnn_core.spec", "torch": "torch"}
"""Modules that annotations name, imported at the first call (`fastsnn_console.typed`)."""

NeuronCell = Neuron
"""A neuron by the name that FastSNN's first documents use."""


class FastSNN:
    """build → fit → extend_context → scope → export → serve; and convert, load, generate, from_spec.

    Models are ordinary ``torch.nn.Module``; ``model.spec`` is what they were built from. Nothing here holds state.
    """

    @staticmethod
    @starting("build")
    @typed
    def build(arch: str = "snn-tiny", attn: Any = "hybrid_alt", neuron: Any = None, **changes: Any) -> nn.Module:
        """A fresh model from a preset: of language, or (snn-mlp, snn-conv, snn-recurrent …) over time.

        `arch`: snn-tiny, snn-small, snn-base, snn-large. `attn`: hybrid_alt (gated linear and sliding-window layers
        in turn), hybrid (linear ∥ sliding window), linear, gla, sliding_window, softmax, or a list for the layers.
        `neuron`: any installed neuron by name, table or component. `changes` are the decoder's parameters (vocab_size,
        d_model, n_layers, n_heads, d_ff, sites …; ``attention`` is the same as `attn`) and ``window``.

        snn-mlp, snn-conv, snn-recurrent, snn-resnet18 and spikformer-tiny take ``input`` (shape of one sample:
        (1, 28, 28)), ``classes``, ``time_steps``, ``coder``, ``widths`` …; their `neuron` is lif (recurrent_lif) unless
        given, and they give one value per class at every step.
        """
        from fastsnn.presets import model_spec
        from fastsnn_core import build as build_component

        return build_component(model_spec(arch, attn, neuron, **changes))

    @staticmethod
    @starting("from_spec")
    @typed
    def from_spec(source: str | Path | Model | specs.Spec) -> nn.Module:
        """A fresh model from a TOML file, TOML text, or a component."""
        from fastsnn_core import build as build_component
        from fastsnn_core import spec as specs

        if isinstance(source, Model):
            return build_component(source)
        if isinstance(source, specs.Spec):
            found = source
        elif isinstance(source, str) and "\n" in source:
            found = specs.loads(source)
        else:
            found = specs.load(source)
        model: Any = build_component(found.model)
        model.sections = {name: specs.to_table(section) for name, section in found.sections.items()}
        return model

    @staticmethod
    @starting("load")
    @typed
    def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
        """The model of a bundle, verified."""
        from fastsnn_console import arguments
        from fastsnn_core import bundle

        return bundle.load(path, arguments.device(str(device)))

    @staticmethod
    @starting("fit")
    @gradients_on()
    @typed
    def fit(
        model: nn.Module,
        dataset: Any = "builtin:pydoc",
        seq_len: int = 512,
        max_steps: int = 1000,
        *,
        task: str = "",
        tokenizer: Any = None,
        text_field: str = "text",
        held_out: Any = None,
        holdout: float = 0.1,
        class_weights: Any = None,
        transforms: Sequence[Any] = (),
        input: str = "",
        target: str = "",
        out: str | Path | None = None,
        resume: bool = False,
        quiet: bool = False,
        **train: Unpack[TrainOptions],
    ) -> Any:
        """Train `model`; returns the `Trainer` (its ``history`` has the losses).

        Language models: `dataset` is texts (a Hugging Face name, a file, folder or pattern, a list of texts, a
        ``datasets.Dataset``, builtin:pydoc) or token ids (batches ``[B, T]`` or sequences from a list, a
        ``DataLoader``, a torch ``Dataset`` or any iterable; dicts with ``input_ids``, ``labels``, ``attention_mask``;
        one long array of tokens). `tokenizer`: the model's own unless given; also one of transformers or tokenizers.

        Other networks: `dataset` is labelled samples (arrays ``(x, y)``, a torch ``Dataset``, a ``datasets.Dataset``,
        an .npz, IDX files, class folders of images, CSV or parquet of series), or ``{"train": …, "test": …}``. `task`
        is "classification", "regression" or "labelling" (a class for every step); left out, the targets say it.
        Evaluated are `held_out`, the dataset's own test samples, or a share (`holdout`) of the training samples.
        `class_weights`: "balanced" or a number for each class; `transforms`: "shift:2", "rotate:10", "pad", … or
        functions; `input` and `target` name columns.

        `train` are the settings of `TrainConfig` (lr, batch_size, epochs, objective, trackers, …).
        """
        from torch import nn

        from fastsnn.presets import structure
        from fastsnn_core import Objective, Tracker
        from fastsnn_train import TrainConfig, Trainer, fit_data, sample_data
        from fastsnn_train.config import with_epochs

        if not isinstance(model, nn.Module):
            given = "None" if model is None else f"a {type(model).__name__}"
            raise ArgumentError(f"fit() trains a torch.nn.Module, got {given}; load a bundle with FastSNN.load(path)")
        settings: dict[str, Any] = dict(train)
        check_options("fit", settings, (f.name for f in attrs.fields(TrainConfig)))
        if isinstance(settings.get("trackers"), str) or not isinstance(settings.get("trackers", ()), Sequence):
            raise ArgumentError(f"trackers is a list of trackers, got {settings['trackers']!r}")
        if settings.get("objective") is not None:
            settings["objective"] = structure(as_named_table(settings["objective"]), Objective)
        if "trackers" in settings:
            settings["trackers"] = tuple(structure(as_named_table(item), Tracker) for item in settings["trackers"])
        config = TrainConfig(max_steps=max_steps, **settings)
        if out is not None:
            targets.folder(out, option="out")
        if not learns_samples(model, task, dataset):
            data = fit_data(model, dataset, tokenizer=tokenizer, seq_len=seq_len, text_field=text_field)
            return Trainer(model, config, out=out, quiet=quiet).fit(data, resume=resume)
        samples = sample_data(
            model,
            dataset,
            task=task,
            objective=config.objective,
            holdout=holdout,
            held_out=held_out,
            class_weights=class_weights,
            change=transforms,
            x=input,
            y=target,
            seed=config.seed,
            quiet=quiet,
        )
        config = with_epochs(config, len(samples.train))
        return Trainer(model, config, out=out, quiet=quiet).fit(samples, resume=resume)

    @staticmethod
    @starting("extend_context")
    @gradients_on()
    @typed
    def extend_context(
        model: nn.Module,
        trainer: Any,
        new_seq_len: int | tuple[int, ...],
        max_steps: int = 100,
        **settings: Unpack[ExtendOptions],
    ) -> dict[str, Any]:
        """Train on to a longer context; returns the proof, loss by position before and after."""
        from fastsnn_core.errors import ArgumentError
        from fastsnn_train import Trainer, extend_context

        if not isinstance(trainer, Trainer):
            given = "None" if trainer is None else f"a {type(trainer).__name__}"
            raise ArgumentError(f"extend_context() goes on from the Trainer that FastSNN.fit returns, got {given}")
        return extend_context(model, trainer, new_seq_len=new_seq_len, max_steps=max_steps, **settings)

    @staticmethod
    @starting("convert")
    @typed
    def convert(source: Any, **options: Unpack[ConvertOptions]) -> Any:
        """A trained network (Hugging Face directory, module, weights and spec) as a spiking one, with a report."""
        from fastsnn_convert import convert

        return convert(source, **options)

    @staticmethod
    @starting("scope")
    @typed
    def scope(model: nn.Module, **options: Unpack[ScopeOptions]) -> Any:
        """What the model's spikes do: ``FastSNN.scope(model).report("runs/exp")`` writes page, pictures and numbers."""
        from fastsnn_scope import scope

        needs_model("scope", model)
        check_options("scope", dict(options), inspect.signature(scope).parameters)
        return scope(model, **options)

    @staticmethod
    @starting("export")
    @typed
    def export(model: nn.Module, path: str | Path, to: str = "snn", **options: Any) -> Path:
        """Write `model`: as a ``.snn`` bundle, or through an installed exporter (`to`).

        A bundle takes `report`: a folder that SpikeScope wrote, or True to look at the spikes now. Without it the
        newest report that was made of this model (``FastSNN.scope(model).report(…)``) goes inside as spike.report/.
        The bundle that a model was loaded from is never replaced by what loses precision.
        """
        from fastsnn_core import bundle, bundle_checks

        needs_model("export", model)
        model = bundle_checks.unwrapped(model)
        exporter = exporter_of(to, **options)
        source = getattr(model, "loaded_from", None)
        check_target(path, exporter, [source] if exporter is not None and source is not None else [])
        if exporter is None:
            needs_spec(model)
            if options.get("report") is True:
                with tempfile.TemporaryDirectory() as folder:
                    report = FastSNN.scope(model).report(Path(folder, "report"))
                    return bundle.save(model, path, **(options | {"report": report}))
            return bundle.save(model, path, **{k: v for k, v in options.items() if v is not False})
        if reasons := exporter.unsupported(model):
            raise FastSNNError(f"this model cannot be exported to {to}: " + "; ".join(reasons))
        return Path(exporter.export(model, path))

    @staticmethod
    @starting("serve")
    @typed
    def serve(path: str | Path, port: int = 8000, **options: Unpack[ServeOptions]) -> Any:
        """Serve a bundle over the OpenAI API until stopped (``block=False``: a handle, ``.url``, ``.close()``)."""
        from fastsnn_serve import serve

        return serve(path, port=port, **options)

    @staticmethod
    @starting("generate")
    def generate(
        model: nn.Module | str | Path,
        prompt: str | list[int],
        max_tokens: int = 128,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """Text after `prompt`, a text or ids. `options`: temperature (0 is greedy), top_p, top_k, seed, stop."""
        return "".join(FastSNN.stream(model, prompt, max_tokens, **options))

    @staticmethod
    def stream(
        model: nn.Module | str | Path,
        prompt: str | list[int],
        max_tokens: int = 128,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[str]:
        """`generate`, piece by piece; `prompt` may be a list of token ids."""
        with starting("stream"):
            from fastsnn_text import Sampling, generate_text
            from fastsnn_text.generate import stop_texts

        ids = isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt)
        if not isinstance(prompt, str) and not ids:
            hint = "; one call for each text" if isinstance(prompt, list | tuple) else ""
            raise ArgumentError(f"the prompt is one text, got {type(prompt).__name__} {prompt!r}{hint}")
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise ArgumentError(f"max_tokens is a whole number of at least 1, got {max_tokens!r}")
        settings: dict[str, Any] = dict(options)
        stop = stop_texts(settings.pop("stop", ()))
        check_options("generate", settings, ["stop", *(f.name for f in attrs.fields(Sampling))])
        check_fields("generate", Sampling, settings)
        sampling = Sampling(**settings)
        from torch import nn

        from fastsnn_core import bundle

        if not isinstance(model, nn.Module):
            model = bundle.load(needs_path("generate", model))
        yield from generate_text(model, prompt, max_tokens, sampling, stop=stop)
