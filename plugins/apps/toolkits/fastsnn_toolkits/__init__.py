"""Networks built of snnTorch's, SpikingJelly's and Norse's neurons as FastSNN models: ``FastSNN.convert(module)``.

Nothing of those packages is imported: neurons are recognised by the module path and name of their class and read by
their parameters. What was read is run beside the original before it is handed over.
"""

from fastsnn_toolkits.read import read_toolkit_network

__version__ = "0.1.0"
__all__ = ["read_toolkit_network"]
