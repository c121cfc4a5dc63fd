"""Names of the first-party components, so that an error can say what to ``pip install``; a test keeps it true."""

NEURONS = """adaptive_max adaptive_threshold alif axonal_delay eif ilif izhikevich lateral_lif lif lif_sint plif qif
recurrent_lif refractory_lif synaptic"""
FIRST_PARTY: dict[str, tuple[str, ...]] = {
    "surrogate": ("atan", "fast_sigmoid", "identity", "triangle", "window"),
    "neuron": tuple(NEURONS.split()),
    "coder": ("binary", "bitwise", "delta", "latency", "rate", "ternary", "twos_complement"),
    "attention": ("gla", "hybrid", "linear", "sliding_window", "softmax"),
    "feedforward": ("pulse",),
    "model": ("decoder", "graph", "nir_graph", "sequential"),
    "rule": ("activations", "attention", "conv", "embedding", "linear_layer", "norms", "pooling", "residual"),
    "exporter": ("llama", "nir", "onnx", "w1.58a", "w4a", "w8a"),
    "scope": ("energy", "membrane", "paths", "raster", "scaling", "sparsity"),
    "kernel": ("numba", "triton"),
    "tracker": ("early_stopping", "jsonl", "tensorboard"),
    "objective": ("cross_entropy", "first_spike", "mean_squared", "spike_count", "van_rossum"),
}

_VERBS = """chat fastsnn-text, completion fastsnn-console, convert fastsnn-convert, doctor fastsnn-doctor,
eval fastsnn-train, export fastsnn, extend fastsnn-train, fit fastsnn-train, generate fastsnn, heal fastsnn-convert,
lm-eval fastsnn-lm-eval, new-plugin fastsnn-author, run fastsnn, scope fastsnn-scope, serve fastsnn-serve,
show fastsnn-author, test fastsnn-kit, tune fastsnn-tune"""
VERBS: dict[str, str] = dict(str.split(row) for row in _VERBS.split(","))  # of the first-party apps, what brings each

KIT = dict.fromkeys(FIRST_PARTY, "fastsnn-kit") | {"coder": "fastsnn-events"}  # what checks a kind
