"""FastSNN bundles in transformers: ``import fastsnn_hf``, then ``AutoModelForCausalLM.from_pretrained("model.snn")``.

Importing registers a configuration, a model and a tokenizer under the model type ``fastsnn``; no code comes with a
model.
A directory that ``save_pretrained`` wrote is loaded in the same way.
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fastsnn_hf.cache import FastSNNCache
from fastsnn_hf.configuration import FastSNNConfig, read_bundles_as_configurations
from fastsnn_hf.modeling import FastSNNForCausalLM
from fastsnn_hf.tokenization import FastSNNTokenizer

__version__ = "0.1.0"
__all__ = ["FastSNNCache", "FastSNNConfig", "FastSNNForCausalLM", "FastSNNTokenizer"]

AutoConfig.register("fastsnn", FastSNNConfig, exist_ok=True)
AutoModelForCausalLM.register(FastSNNConfig, FastSNNForCausalLM, exist_ok=True)
AutoTokenizer.register(FastSNNConfig, FastSNNTokenizer, exist_ok=True)
read_bundles_as_configurations()
