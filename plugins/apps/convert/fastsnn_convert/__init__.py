"""Converting trained networks to spiking ones: ``convert(source, …) -> Conversion``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastsnn_console import targets
from fastsnn_console.gradients import gradients_on
from fastsnn_console.typed import typed
from fastsnn_convert import moved as moved
from fastsnn_core.errors import FileError, MissingError
from fastsnn_core.lazy import lazy

__version__ = "0.1.0"

_EXPORTS = {
    "Conversion": ".result",
    "ConversionError": ".result",
    "Report": ".report",
    "TinyANN": ".ann2snn",
    "convert_ann_to_snn": ".ann2snn",
}
__all__ = sorted([*_EXPORTS, "convert"])


@gradients_on()
@typed
def convert(source: Any, *, to: str | Path | None = None, neuron: Any = None, **options: Any) -> Any:
    """A trained network as a spiking one, a `Conversion` with ``.model``, ``.report`` and ``.save(path)``.

    `source` is a Hugging Face directory, a model of transformers in memory, or a GGUF file (a language model; options
    of `fastsnn_convert.language`), a NIR graph (a spiking network already; `dt`), a network of snnTorch's,
    SpikingJelly's or Norse's neurons (likewise; `example`), any other ``nn.Module``, a ``.snn`` bundle, or a state dict
    or ``.safetensors`` file together with ``spec=`` (options of `fastsnn_convert.modules.convert_module`; one of
    snnTorch's linear layers and neurons needs none). `neuron` is a neuron component, its name, or a table as in a spec
    (adaptive_threshold without; for language models with `steps` but no `k`, adaptive_max); `to`
    writes a bundle. Errors: `ConversionError`, naming the file or the part, the reason, and what is possible.
    """
    from fastsnn_conversion.context import ConversionError

    try:
        check_before(source, to, options)
    except FileError as error:
        raise ConversionError(str(error)) from None
    from fastsnn_convert import networks
    from fastsnn_convert.adapters import merged_copy

    source = merged_copy(source) if hasattr(source, "modules") else source
    if "spec" not in options and (reader := networks.reader_of(source)) is not None:
        done: Any = networks.read_network(source, reader, neuron, options)
    elif isinstance(source, str | Path) and is_language_source(Path(source)):
        from fastsnn_convert.language import convert_language  # each half is imported only where it is needed

        done = convert_language(source, neuron=neuron, **options)
    elif type(source).__module__.startswith("transformers.") and is_loaded_model(source):
        from fastsnn_convert.language import convert_language
        from fastsnn_convert.language.loaded import written_folder

        with written_folder(source) as folder:
            done = convert_language(folder, neuron=neuron, **options)
    else:
        from fastsnn_convert.modules import convert_module

        plain = "adaptive_threshold" if neuron is None else neuron
        module = module_of(source, options)
        done = convert_module(module, neuron=plain, must_save=to is not None, **of_modules(options))
    if to is not None:
        done.save(to)
    return done


def is_language_source(path: Path) -> bool:
    """A Hugging Face directory (any folder that is no bundle), or a file of a language model such as GGUF."""
    if path.is_dir():
        return not ((path / "weights.safetensors").is_file() and (path / "meta.json").is_file())
    return is_language_model(path)


def is_loaded_model(source: Any) -> bool:
    """A causal language model of transformers, in memory."""
    from fastsnn_convert.language.loaded import is_loaded

    return is_loaded(source)


def module_of(source: Any, options: dict[str, Any]) -> Any:
    """The module of a bundle, of weights with their ``spec=`` (taken out of `options`), or `source` itself."""
    from fastsnn_convert.modules import from_bundle, from_weights

    if isinstance(source, str | Path) and Path(source).is_dir():
        return from_bundle(source)
    if isinstance(source, str | Path | dict):
        return from_weights(source, options.pop("spec", None), options.pop("names", None))
    return source


def is_language_model(path: Path) -> bool:
    """Is there a reader of language models for files with this ending?"""
    from fastsnn_convert.language.families import source_plugin

    return path.suffix.lower() != ".safetensors" and source_plugin(path) is not None


def check_before(source: Any, to: str | Path | None, options: dict[str, Any]) -> None:
    """What can be known to fail before the work: the target, files that are read late, packages that are missing."""
    import importlib.util

    sources = [s for s in (source, options.get("heal"), options.get("calibration")) if isinstance(s, str | Path)]
    if isinstance(source, str | Path):
        targets.existing(source)
    if to is not None:
        targets.bundle(to, [s for s in sources if len(str(s)) < 1000 and "\n" not in str(s)], "to")
    if isinstance(heal := options.get("heal"), str | Path):
        targets.existing_file(heal, "heal")
    if options.get("out") is not None:
        targets.folder(options["out"], option="out")
    healing = options.get("healing")
    if isinstance(healing, dict) and healing.get("lora") and importlib.util.find_spec("peft") is None:
        raise MissingError("healing with lora needs peft: pip install peft")


def of_modules(options: dict[str, Any]) -> dict[str, Any]:
    """`options`, all of which `fastsnn_convert.modules.convert_module` knows."""
    import inspect

    from fastsnn_conversion.context import ConversionError
    from fastsnn_convert.modules import convert_module

    known = [name for name in inspect.signature(convert_module).parameters if name not in ("model", "must_save")]
    if unknown := sorted(set(options) - set(known)):
        raise ConversionError(
            f"a network of layers is converted without {', '.join(unknown)}; options: {', '.join(known)} "
            "(others are for language models, which come as a Hugging Face directory)"
        )
    return options


__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return __all__
