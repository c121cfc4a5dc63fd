"""A FastSNN network as a ``NeuroBenchModel``, whose hooks see counts where ours hands on SpikeTensors."""

from __future__ import annotations

from typing import Any

from fastsnn_core.errors import MissingError
from fastsnn_core.site import SpikeSite
from fastsnn_neurobench.metrics import counts, weight_layers


def neurobench_model(model: Any) -> Any:
    """A ``neurobench.models.NeuroBenchModel`` of a network, for ``neurobench.benchmarks.Benchmark``.

    NeuroBench's hooks keep what layers are given and what activations give; a metric that fails on them is reported as
    0.0. So counts are handed on as plain tensors, and sites are registered as activations. Errors: neurobench is not
    installed, integer weights.
    """
    try:
        from neurobench.hooks.layer import LayerHook
        from neurobench.hooks.neuron import NeuronHook
        from neurobench.models import NeuroBenchModel
    except ImportError:
        raise MissingError("neurobench_model needs neurobench: pip install neurobench") from None
    weight_layers(model)

    class Inputs(LayerHook):
        """Counts that a layer reads."""

        def hook_fn(self, module: Any, input: Any) -> None:
            """Keep them."""
            self.inputs.append(tuple(counts(x) for x in input))

    class Outputs(NeuronHook):
        """Counts that a site gives."""

        def hook_fn(self, layer: Any, input: Any, output: Any) -> None:
            """Keep them."""
            self.activation_outputs.append(counts(output[0] if isinstance(output, tuple) else output))

    class Wrapped(NeuroBenchModel):
        """The network inside."""

        def __init__(self) -> None:
            super().__init__()
            self.net = model.eval()
            self.add_activation_module(SpikeSite)

        def __call__(self, batch: Any) -> Any:
            """Outputs of ``[B, …]``."""
            return self.net(batch)

        def __net__(self) -> Any:
            """The network."""
            return self.net

        def register_hooks(self) -> None:
            """Ours in the place of NeuroBench's."""
            self.activation_hooks += [Outputs(row["layer"], row["layer_name"]) for row in self.activation_layers()]
            self.connection_hooks += [Inputs(layer) for layer in self.connection_layers()]

    return Wrapped()
