"""Calibration: constants from data that leave a decoder's function as it is and make its spikes cheaper.

In front of a projection W the same numbers can be had in other coordinates,

    W x + b  =  (W diag(s)) ((x - μ) / s)  +  (b + W μ)

1/s goes into what makes x (a norm's weight, the rows of v or of the up projection), s into W, W μ into the bias; only
the subtraction of μ (a *centred* site) is left to do. Post-rotary keys need no bias for their centre, since a softmax
does not see what is the same for all keys; q and k share one s per rotary pair. (Other attentions may see either; each
is asked, and what it sees is left out.) So outlier channels move into the
weights and constant ones out of the spikes. s and μ minimise the expected output error of rounding,

    E_tokens Σ_i |W_:i|² s_i² V² ρ(x'_i / V),      ρ(u) = u² / (1 + 12 u²)   (u² where silent, 1/12 where it spikes)

with the neuron's own threshold V(x'), by Adam on a sample of tokens; no weight is trained. Sources of the parts:
SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), Outlier Suppression+ (Wei et al. 2023, arXiv 2304.09145).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.language.rebuild import numbers
from fastsnn_core import SpikeSite
from fastsnn_core.heads import Heads


@attrs.frozen(eq=False)
class Port:
    """A site in front of projections: who reads it, how its input is divided, which channels share a factor.

    `tie` maps channels to factors ``[D]``; None where no neighbour can take the factor. `cost` is |W_:i|² ``[D]`` when
    it is not that of the readers' weights.
    """

    name: str
    site: SpikeSite
    readers: tuple[nn.Linear, ...]
    tie: Tensor | None
    divide: Callable[[Tensor], None] | None
    gates: tuple[Any, ...] = ()

    def cost(self) -> Tensor:
        """Σ_o W_oi² of all readers ``[D]``."""
        return torch.stack([r.weight.detach().float().pow(2).sum(0) for r in self.readers]).sum(0)


def ports(layer: Any) -> list[Port]:
    """The spiking projection sites of a block."""
    attention, feedforward = layer.attention, layer.feedforward
    found = [
        Port(
            "attn_in",
            attention.inner,
            (attention.q, attention.k, attention.v),
            torch.arange(attention.dims.d_model),
            lambda s: divide(layer.attention_norm, s),
            gates_of(attention.mixer),
        ),
        out_port(attention),
    ]
    gate, up = getattr(feedforward, "gate", None), getattr(feedforward, "up", None)
    if up is not None and hasattr(feedforward, "down"):
        width = up.in_features
        readers = (up,) if gate is None else (gate, up)
        found.append(
            Port("ffn_in", feedforward.inner, readers, torch.arange(width), lambda s: divide(layer.feedforward_norm, s))
        )
        linear = gate is not None  # what makes the hidden channels is linear in `up` only where it is gated
        tie = torch.arange(up.out_features) if linear else None
        found.append(Port("ffn_hidden", feedforward.hidden, (feedforward.down,), tie, lambda s: divide(up, s)))
    return [p for p in found if p.site.neuron is not None]


def out_port(attention: Any) -> Port:
    """The site before the output projection: its channels come from v, or from the mixer's own norm."""
    dims, norm = attention.dims, getattr(attention.mixer, "norm", None)
    channel = torch.arange(dims.n_heads * dims.head_dim)
    tie: Tensor | None
    if attention.out.in_features != len(channel):
        tie, change = None, None  # several branches: v feeds them all, and they need not agree
    elif isinstance(norm, nn.RMSNorm):
        tie, change = channel % dims.head_dim, lambda s: divide(norm, s)
    else:
        share = dims.n_heads // dims.n_kv_heads
        tie = channel // dims.head_dim // share * dims.head_dim + channel % dims.head_dim
        change = lambda s: divide(attention.v, s)  # noqa: E731
    return Port("attn_out", attention.outer, (attention.out,), tie, change)


def gates_of(mixer: Any) -> tuple[Any, ...]:
    """Mixers (of all branches) whose low-rank gates read the layer's input spikes."""
    branches = getattr(mixer, "branches", None)
    if branches is not None:
        return tuple(g for b in branches for g in gates_of(b))
    return (mixer,) if hasattr(mixer, "gate_down") else ()


@torch.no_grad()
def divide(part: Any, s: Tensor) -> None:
    """Make a norm or a projection give its output divided by `s`, channel by channel."""
    s = s.to(part.weight.dtype)
    part.weight.div_(s if part.weight.ndim == 1 else s[:, None])
    if getattr(part, "bias", None) is not None:
        part.bias.div_(s)


# -- the factors --------------------------------------------------------------------------------------------------


def threshold(y: Tensor, neuron: Any) -> Tensor | None:
    """V ``[N,1]`` of the neuron's own rule, with gradient; None for one whose threshold does not follow its input."""
    rule = getattr(neuron, "threshold", None)
    return rule(y) if callable(rule) else None


def expected_error(y: Tensor, cost: Tensor, v: Tensor) -> Tensor:
    """Mean over tokens of Σ_i cost_i V² ρ(y_i / V)."""
    u2 = (y / v.clamp_min(1e-9)).pow(2)
    return (cost * v.pow(2) * (u2 / (1 + 12 * u2))).sum(-1).mean()


@attrs.frozen(eq=False)
class Balanced:
    """Factors s ``[D]``, centre μ ``[D]``, and the expected relative output error before and after."""

    s: Tensor
    mu: Tensor
    before: float
    after: float


def balance(
    x: Tensor, cost: Tensor, neuron: Any, tie: Tensor | None, centred: bool, *, steps: int = 150, rate: float = 0.05
) -> Balanced:
    """s and μ of one site from samples ``[N,D]`` of its (dense) input; see the module's equation."""
    width = x.shape[1]
    mean, ones = x.mean(0), torch.ones(width)
    base = threshold(x, neuron)
    power = float((cost * x.pow(2)).sum(-1).mean()) or 1.0
    if base is None or (tie is None and not centred):
        return Balanced(ones, torch.zeros(width), 0.0, 0.0)
    before = float(expected_error(x, cost, base)) / power
    groups = tie if tie is not None else torch.zeros(width, dtype=torch.long)
    log_s = torch.zeros(int(groups.max()) + 1, requires_grad=tie is not None)
    share = torch.full((width,), float(centred), requires_grad=centred)
    trained = [p for p in (log_s, share) if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=rate)
    best = (before, ones, torch.zeros(width))
    with torch.enable_grad():
        for step in range(steps + 1):
            s = (log_s - log_s.mean())[groups].exp()
            y = (x - mean * share) / s
            error = expected_error(y, cost * s.pow(2), threshold(y, neuron))  # type: ignore[arg-type]
            if error.item() / power < best[0]:
                best = (error.item() / power, s.detach().clone(), (mean * share).detach().clone())
            if step < steps:
                optimiser.zero_grad()
                error.backward()
                optimiser.step()
    return Balanced(best[1], best[2], before, best[0])


# -- applying them ------------------------------------------------------------------------------------------------


@torch.no_grad()
def apply(port: Port, found: Balanced) -> None:
    """Put factors and centre into a site's neighbours; the dense function stays what it was."""
    if port.site.centre is not None:
        for reader in port.readers:
            if reader.bias is None:
                raise ConversionError(f"{port.name} is centred, but a projection behind it has no bias")
            reader.bias.add_((reader.weight.float() @ found.mu).to(reader.bias.dtype))
        for gate in port.gates:
            gate.gate_up.bias.add_(gate.gate_up.weight @ (gate.gate_down.weight @ found.mu.to(gate.gate_up.weight)))
        port.site.centre.copy_(found.mu / found.s)
    if port.tie is not None and port.divide is not None:
        last = torch.zeros(int(port.tie.max()) + 1).scatter_(0, port.tie, found.s)
        port.divide(last)
        for reader in (*port.readers, *(g.gate_down for g in port.gates)):
            reader.weight.mul_(found.s.to(reader.weight.dtype))


@torch.no_grad()
def calibrate(
    model: Any, tokens: Tensor, *, scale: bool = True, samples: int = 2048, steps: int = 150, seed: int = 0
) -> list[dict[str, Any]]:
    """Balance every projection site of a spiking decoder on ``tokens [N,T]``, a layer at a time.

    Returns a row per site: name, expected relative output error before and after, the largest factor, and the share of
    the input's power that the centre took. Sites that are not `centred` in the spec get factors only.
    """
    if tokens.ndim != 2 or not len(tokens):
        raise ConversionError(f"calibration needs tokens [N, T], got shape {list(tokens.shape)}")
    rows: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(tokens.shape[1]).expand(tokens.shape)
    with numbers(model):
        angles = model.angles(places) if model.rotary else None
        x = model.embed(tokens)
    pick = torch.randperm(tokens.numel(), generator=generator)[:samples]
    for i, layer in enumerate(model.layers):
        found = ports(layer)
        inputs = capture(layer, found, x, angles, pick)
        for port in found:
            tie = port.tie if scale else None
            centred = port.site.centre is not None
            done = balance(inputs[port.name], port.cost(), port.site.neuron, tie, centred, steps=steps)
            apply(port, done if scale else attrs.evolve(done, s=torch.ones_like(done.s)))
            power = float(inputs[port.name].pow(2).sum(-1).mean()) or 1.0
            rows.append(
                {
                    "site": f"layers.{i}.{port.name}",
                    "error_before": done.before,
                    "error_after": done.after,
                    "factor": float((done.s / done.s.median()).max()),
                    "centre_power": float(done.mu.pow(2).sum()) / power,
                }
            )
        balance_heads(layer, x, angles, pick, rows, i)
        with numbers(layer):
            x = layer(x, None, None, angles)[0]
    return rows


def capture(layer: Any, found: list[Port], x: Tensor, angles: Any, pick: Tensor) -> dict[str, Tensor]:
    """Samples ``[n,D]`` in float32 of the dense input of each port's site."""
    inputs: dict[str, Tensor] = {}
    handles = [
        p.site.register_forward_pre_hook(
            lambda _, args, name=p.name: inputs.__setitem__(name, args[0].flatten(0, 1)[pick].float())
        )
        for p in found
    ]
    with numbers(layer):
        layer(x, None, None, angles)
    for handle in handles:
        handle.remove()
    return inputs


# -- queries and keys ---------------------------------------------------------------------------------------------


def blind(mixer: Any, heads: Heads, s: Tensor, mu: Tensor) -> bool:
    """Does a mixer give the same with keys ``(k - μ) / s`` and queries ``q · s``, all after rotation? [G,K] each."""
    q, k = heads.rotated()
    s_q = s.repeat_interleave(q.shape[2] // k.shape[2], 0)
    plain, moved = (
        mixer(Heads(*pair, heads.v, heads.x), None, None)[0].float() for pair in ((q, k), (q * s_q, (k - mu) / s))
    )
    return bool((plain - moved).abs().max() <= 1e-3 * plain.abs().max())


def balance_heads(
    layer: Any, x: Tensor, angles: Any, pick: Tensor, rows: list[dict[str, Any]], number: int, steps: int = 150
) -> None:
    """Spiking q and k: one factor per rotary pair (k / s, q · s), and a centre for the keys after rotation."""
    attention = layer.attention
    q_site, k_site = attention.q_site, attention.k_site
    if q_site.neuron is None and k_site.neuron is None:
        return
    seen: list[Any] = []
    handle = attention.mixer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with numbers(layer):
        layer(x, None, None, angles)
    handle.remove()
    q, k = (t.flatten(0, 1)[pick].float() for t in seen[0].rotated())  # [n,H,K], [n,G,K]
    groups, width = k.shape[1:]
    mu = k.mean(0) if k_site.centre is not None else torch.zeros(groups, width)
    if not blind(attention.mixer, seen[0], torch.ones(groups, width), k.mean(0)):
        mu = torch.zeros(groups, width)
    if not blind(attention.mixer, seen[0], torch.linspace(0.5, 2.0, width // 2).repeat(groups, 2), 0 * mu):
        return
    k = k - mu
    wide = k.repeat_interleave(q.shape[1] // groups, 1)
    cost_q = wide.pow(2).mean(0).flatten()
    cost_k = q.pow(2).mean(0).unflatten(0, (groups, -1)).sum(1).flatten()
    shared = attention.q_norm is not None
    log_s = torch.zeros(1 if shared else groups, width // 2, requires_grad=True)
    optimiser = torch.optim.Adam([log_s], lr=0.05)
    best, before = (float("inf"), torch.ones(groups, width)), 0.0
    with torch.enable_grad():
        for step in range(steps + 1):
            s = log_s.exp().expand(groups, -1).repeat(1, 2)  # pairs are (i, i + K/2)
            s_q = s.repeat_interleave(q.shape[1] // groups, 0)
            error: Any = 0.0
            for site, y, cost in (
                (k_site, (k / s).flatten(1), cost_k * s.flatten().pow(2)),
                (q_site, (q * s_q).flatten(1), cost_q / s_q.flatten().pow(2)),
            ):
                v = None if site.neuron is None else threshold(y, site.neuron)
                error = error + (0.0 if v is None else expected_error(y, cost, v))
            if not isinstance(error, Tensor):
                return
            before = before or error.item()
            if error.item() < best[0]:
                best = (error.item(), s.detach().clone())
            if step < steps:
                optimiser.zero_grad()
                error.backward()
                optimiser.step()
    s = best[1]
    with torch.no_grad():
        if shared:
            attention.k_norm.weight.div_(s[0].to(attention.k_norm.weight.dtype))
            attention.q_norm.weight.mul_(s[0].to(attention.q_norm.weight.dtype))
        else:
            divide(attention.k, s.flatten())
            divide(attention.q, 1 / s.repeat_interleave(q.shape[1] // groups, 0).flatten())
        if k_site.centre is not None:
            k_site.centre.copy_((mu / s).flatten())
    power = float((q.pow(2).mean(0).flatten() * cost_q).sum()) or 1.0
    centre = float(mu.pow(2).sum()) / (float((k + mu).pow(2).sum((1, 2)).mean()) or 1.0)
    rows.append(
        {
            "site": f"layers.{number}.q, k",
            "error_before": before / power,
            "error_after": best[0] / power,
            "factor": float((s / s.median()).max()),
            "centre_power": centre,
        }
    )
