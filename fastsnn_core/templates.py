"""What ``fastsnn new-plugin`` writes: the four files of a plugin of every kind, with words to be filled in."""

from __future__ import annotations

PYPROJECT = """[build-system]
requires = ["flit_core>=3.11,<5"]
build-backend = "flit_core.buildapi"

[project]
name = "@dist"
dynamic = ["version", "description"]
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["fastsnn-core>=0.1,<1"]

[project.entry-points.fastsnn1]
@name = "@name"
"""

TEST = '''"""The conformance kit over this plugin."""

from fastsnn_core.testing import conformance

test_@name = conformance("@name")
'''

README = """# @dist

A FastSNN @kind. Say here what it computes and why one would use it.

```bash
pip install .
fastsnn show @name
pytest --pyargs fastsnn_core.testing --fastsnn @name
```
"""

TOML = """
```toml
@kind = { kind = "@name" }
```
"""

HEAD = '''"""@title: say in one line what it is."""

from __future__ import annotations

'''

TAIL = '''

@hookimpl
def @offer():
    """This plugin's @kinds."""
    return [@class]
'''

BODIES = {
    "surrogate": '''import torch
from attrs import frozen
from fastsnn_core import Surrogate, hookimpl, param

__version__ = "0.1.0"


@frozen
class @class(Surrogate):
    """d count / d u = exp(-sharpness d(u)), d the distance to [first threshold, last threshold]; u of any shape."""

    name = "@name"
    sharpness: float = param(1.0, gt=0.0, le=10.0, unit="1/thresholds", doc="how fast the gradient falls off")

    def derivative(self, u, first, last):
        """The bell."""
        distance = (first - u).clamp_min(0) + (u - last).clamp_min(0)
        return torch.exp(-self.sharpness * distance)
''',
    "neuron": '''from attrs import frozen
from fastsnn_core import Neuron, SpikeTensor, hookimpl, ops, param
from torch import nn

__version__ = "0.1.0"


@frozen
class @class(Neuron):
    """c = round(x / θ), value c θ. x [B,T,D] -> SpikeTensor [B,T,D]; no state; straight-through gradient."""

    name = "@name"
    threshold: float = param(1.0, gt=0.0, le=100.0, doc="θ, the height of one count", draw=(0.5, 1.0))

    def build(self, features):
        """The module for `features` channels."""
        return @classModule(self.threshold)


class @classModule(nn.Module):
    """``(x, state, reset) -> (SpikeTensor, state)``; keep state explicit, and clear it where `reset` is true."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x, state=None, reset=None):
        """Counts of `x`."""
        counts = ops.count(x / self.threshold, float("-inf"), float("inf"), slope=lambda u: u.new_ones(u.shape))
        return SpikeTensor(counts, x.new_tensor(self.threshold)), state
''',
    "coder": '''import torch
from attrs import frozen
from fastsnn_core import Coder, SpikeTensor, hookimpl
from fastsnn_core.coding import extremes, fit, whole_counts

__version__ = "0.1.0"


@frozen
class @class(Coder):
    """s_t = sign(c) 1[t < |c|] for t = 0 … S-1; counts […] -> train [S, …] in {-1, 0, 1}. Errors: |c| above S."""

    name = "@name"

    def steps_for(self, largest):
        """One step per spike."""
        return max(1, largest)

    def encode(self, x, steps=None):
        """Counts to a train."""
        counts, scale = whole_counts(x)
        low, high = extremes(counts)
        steps = fit(counts, steps, self.steps_for(max(-low, high)), "@name")
        slots = torch.arange(steps, device=counts.device).reshape(-1, *[1] * counts.ndim)
        train = (counts.abs() > slots) * counts.sign()
        return SpikeTensor.from_train(train.to(torch.int8), slots.new_ones(steps), scale, self.name)

    def decode(self, spikes):
        """A train back to counts."""
        return spikes.counts
''',
    "attention": '''import torch
from attrs import frozen
from fastsnn_core import Attention, hookimpl, param
from torch import nn

__version__ = "0.1.0"


@frozen
class @class(Attention):
    """m_t = a m_{t-1} + v_t, o_t = q_t k_t·m_t per channel: heads [B,T,H,K] -> o [B,T,H,K], state m [B,G,K]."""

    name = "@name"
    decay: float = param(0.5, gt=0.0, lt=1.0, doc="a, what is left after one token")

    def build(self, dims):
        """The mixer."""
        return @classMixer(self.decay)


class @classMixer(nn.Module):
    """``(heads, state, reset) -> (o, state)``."""

    def __init__(self, decay):
        super().__init__()
        self.decay = decay

    def forward(self, heads, state=None, reset=None):
        """Mix the tokens of a (piece of a) stream."""
        m = torch.zeros_like(heads.v[:, 0]) if state is None else state
        share, outs = heads.q.shape[2] // heads.k.shape[2], []
        for t in range(heads.q.shape[1]):
            if reset is not None:
                m = torch.where(reset[:, t, None, None], torch.zeros_like(m), m)
            m = self.decay * m + heads.v[:, t]
            outs.append(heads.q[:, t] * (heads.k[:, t] * m).repeat_interleave(share, 1))
        return torch.stack(outs, 1), m
''',
    "feedforward": '''from attrs import frozen
from fastsnn_core import Feedforward, hookimpl
from torch import nn

__version__ = "0.1.0"


@frozen
class @class(Feedforward):
    """y = W₂ spikes(relu(W₁ spikes(x))): x [B,T,D] -> y [B,T,D], d_ff hidden channels."""

    name = "@name"

    def build(self, d_model, d_ff, site):
        """The layer; `site` makes its spike sites."""
        return @classLayer(d_model, d_ff, site)


class @classLayer(nn.Module):
    """``(x, states, reset) -> (y, states)``."""

    def __init__(self, d_model, d_ff, site):
        super().__init__()
        self.inner, self.hidden = site("ffn_in", d_model), site("ffn_hidden", d_ff)
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x, state=None, reset=None):
        """Both spike layers and the projections between them."""
        first, second = state or (None, None)
        spikes, first = self.inner(x, first, reset)
        spikes, second = self.hidden(self.up(spikes).relu(), second, reset)
        return self.down(spikes), (first, second)
''',
    "model": '''import torch
from attrs import frozen
from fastsnn_core import Model, hookimpl, param
from torch import nn

__version__ = "0.1.0"


@frozen
class @class(Model):
    """y = W₂ relu(W₁ x): x [B, features] -> y [B, classes]."""

    name = "@name"
    features: int = param(8, ge=1, doc="input channels", draw=(4,))
    classes: int = param(3, ge=1, doc="outputs", draw=(2,))

    def build(self):
        """The network."""
        return nn.Sequential(nn.Linear(self.features, 16), nn.ReLU(), nn.Linear(16, self.classes))

    def example(self, batch):
        """A small input."""
        return torch.linspace(-1, 1, batch * self.features).reshape(batch, self.features)
''',
    "rule": '''from attrs import frozen
from fastsnn_core import Rule, hookimpl
from torch import nn

__version__ = "0.1.0"


@frozen
class @class(Rule):
    """nn.Identity stays what it is; any shape."""

    name = "@name"
    covers = ("Identity",)

    def matches(self, module):
        """Whether this rule speaks for `module`."""
        return isinstance(module, nn.Identity)

    def convert(self, module, context):
        """What stands in its place."""
        return context.keep(module)
''',
    "exporter": '''from pathlib import Path

from attrs import frozen
from fastsnn_core import Exporter, hookimpl
from fastsnn_core.files import beside

__version__ = "0.1.0"


@frozen
class @class(Exporter):
    """Writes the names and shapes of a model's parameters as text, one per line."""

    name = "@name"

    def unsupported(self, model):
        """Reasons why `model` cannot be exported; empty when it can."""
        return []

    def export(self, model, path):
        """Write `model` to `path`."""
        with beside(path) as scratch:
            lines = [f"{name} {tuple(p.shape)}" for name, p in model.named_parameters()]
            scratch.write_text("\\n".join(lines), encoding="utf-8")
        return Path(path)
''',
    "scope": '''from attrs import frozen
from fastsnn_core import Scope, hookimpl

__version__ = "0.1.0"


@frozen
class @class(Scope):
    """Mean count per spike site, as bars."""

    name = "@name"
    title = "Mean count"

    def measure(self, subject):
        """Numbers for report.json."""
        return {site: record.spikes.sparsity().mean_count for site, record in subject.trace.items()}

    def draw(self, data, figure):
        """Draw them on a matplotlib figure."""
        axes = figure.add_subplot()
        axes.barh(list(data), list(data.values()))
''',
    "kernel": '''from attrs import frozen
from fastsnn_core import Kernel, hookimpl
from fastsnn_core.ops.event import count_linear_naive

__version__ = "0.1.0"


def count_linear(counts, weight):
    """``counts [N, D] @ weight [out, D]ᵀ``, exact."""
    return count_linear_naive(counts, weight)


@frozen
class @class(Kernel):
    """count_linear on the CPU; put a faster one here."""

    name = "@name"
    priority = -1

    def operators(self):
        """Operator name to implementation."""
        return {"count_linear": count_linear}
''',
    "tracker": '''from attrs import frozen
from fastsnn_core import Session, Tracker, hookimpl, param

__version__ = "0.1.0"


@frozen
class @class(Tracker):
    """Ends a run whose held-out loss (nats per token) has not improved for `patience` evaluations."""

    name = "@name"
    patience: int = param(3, ge=1, unit="evaluations", doc="evaluations without improvement before the run is ended")

    def start(self, run):
        """The session of one run."""
        return @classSession(run, self.patience)


class @classSession(Session):
    """Watches ``held_out``; `run.history` has the rows of before a resume, and of now."""

    def __init__(self, run, patience):
        self.run, self.patience = run, patience

    def log(self, row):
        """A row of the log."""
        losses = [r["held_out"] for r in self.run.history if "held_out" in r]
        if len(losses) > self.patience and min(losses[-self.patience :]) > min(losses):
            self.run.stop(f"no better for {self.patience} evaluations")
''',
}
SLOTTED = ("surrogate", "neuron", "coder", "attention", "feedforward", "model")
