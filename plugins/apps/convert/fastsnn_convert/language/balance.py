"""Calibration: constants from data that leave a decoder's function as it is and make its spikes cheaper.

In front of a projection W the same numbers can be had in other coordinates,

    W x + b  =  (W diag(s)) ((x - μ) / s)  +  (b + W μ)

1/s goes into what makes x (a norm's weight, the rows of v or of the up projection), s into W, W μ into the bias; only
the subtraction of μ (a *centred* site) is left to do. Post-rotary keys need no bias for their centre, since a softmax
does not see what is the same for all keys; q and k share one s per rotary pair. (Other attentions may see either; each
is asked, and what it sees is left out.) So outlier channels move into the
weights and constant ones out of the spikes. s and μ minimise the expected output error of rounding,

    E_tokens Σ_i |W_:i|² s_i² V² ρ(x'_i / V),      ρ(u) = u² / (1 + 12 u²)   (u² where silent, 1/12 where it spikes)

with the neuron's own threshold V(x'), in closed form and by some steps of Adam on a sample of tokens; no weight is
trained. In the place of |W_:i|² stands F_i, what an error of channel i costs at the network's output
(`output_sensitivity`). Sources of the parts: SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), Outlier Suppression+
(Wei et al. 2023, arXiv 2304.09145).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.descent import Descent
from fastsnn_convert.language.output_sensitivity import nothing, sensitivities
from fastsnn_convert.language.ports import Port, divide, ports
from fastsnn_convert.language.rebuild import bypass_neurons, site_table
from fastsnn_core.heads import Heads

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


def starts(y: Tensor, cost: Tensor, neuron: Any, groups: Tensor) -> list[Tensor]:
    """Factors to begin with, as logarithms by group: none, and in closed form.

    Where noise is V²/12 in every channel and V the mean magnitude, Σ cost_i s_i² (Σ E|y_i| / s_i)² is least for
    s_i ∝ (E|y_i| / cost_i)^(1/3); where V is the maximum, the largest magnitudes are made alike half-way, too.
    """
    count = int(groups.max()) + 1

    def grouped(log: Tensor) -> Tensor:
        sums, sizes = torch.zeros(count), torch.zeros(count)
        return sums.index_add_(0, groups, log) / sizes.index_add_(0, groups, torch.ones_like(log)).clamp_min(1)

    size = y.abs()
    found = [torch.zeros(count), grouped((size.mean(0).clamp_min(1e-9) / cost).log() / 3)]
    if hasattr(neuron, "most"):
        found.append(grouped(size.amax(0).clamp_min(1e-9).log() / 2))
    return found


def balance(
    x: Tensor, cost: Tensor, neuron: Any, tie: Tensor | None, centred: bool, *, steps: int = 60, rate: float = 0.05
) -> Balanced:
    """s and μ of one site from samples ``[N,D]`` of its (dense) input; see the module's equation.

    The best of `starts`, with and without the centre, goes into Adam, which stops when ten steps gain less than 1 %.
    """
    width = x.shape[1]
    mean, ones = x.mean(0), torch.ones(width)
    base = threshold(x, neuron)
    cost = cost + 1e-3 * cost.mean() + 1e-30
    power = float((cost * x.pow(2)).sum(-1).mean()) or 1.0
    if base is None or (tie is None and not centred):
        return Balanced(ones, torch.zeros(width), 0.0, 0.0)
    groups = tie if tie is not None else torch.zeros(width, dtype=torch.long)

    def error_of(log_s: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        s = (log_s - log_s.mean())[groups].exp()
        y = (x - mean * share) / s
        return expected_error(y, cost * s.pow(2), threshold(y, neuron)) / power, s  # type: ignore[arg-type]

    before = float(expected_error(x, cost, base)) / power
    best, begin = (before, ones, torch.zeros(width)), (torch.zeros(int(groups.max()) + 1), torch.zeros(width))
    for share in (torch.zeros(width), torch.ones(width)) if centred else (torch.zeros(width),):
        for log_s in starts(x - mean * share, cost, neuron, groups) if tie is not None else [begin[0]]:
            error, s = error_of(log_s, share)
            if float(error) < best[0]:
                best, begin = (float(error), s, mean * share), (log_s, share)
    log_s, share = begin[0].clone().requires_grad_(tie is not None), begin[1].clone().requires_grad_(centred)
    descent = Descent((log_s, share), rate)
    mark = best[0]
    with torch.enable_grad():
        for step in range(steps):
            error, s = error_of(log_s, share)
            if error.item() < best[0]:
                best = (error.item(), s.detach().clone(), (mean * share).detach().clone())
            if step and step % 10 == 0:
                if best[0] > 0.99 * mark:
                    break
                mark = best[0]
            descent.step(error)
    return Balanced(best[1], best[2], before, best[0])


# -- applying them ------------------------------------------------------------------------------------------------


@torch.no_grad()
def apply_balance(port: Port, found: Balanced) -> None:
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


@attrs.define(eq=False)
class BalanceReport:
    """What `calibrate` found: a row per balanced site, and of every spiking site what errors cost at the output.

    `fisher` ``[D]`` weighs the channels of a site's spikes (`output_sensitivity`), `cost` is ½ Σ_i F_i E[δ_i²] of its
    present neuron, nats per token; `stream` ``[D]`` weighs the residual stream in front of each block and of the head.
    """

    rows: list[dict[str, Any]] = attrs.field(factory=list)
    fisher: dict[str, Tensor] = attrs.field(factory=dict)
    cost: dict[str, float] = attrs.field(factory=dict)
    stream: list[Tensor] = attrs.field(factory=list)


@torch.no_grad()
def calibrate(
    model: Any,
    tokens: Tensor,
    *,
    move: bool = True,
    samples: int = 512,
    steps: int = 60,
    seed: int = 0,
    step: Callable[[], Any] = nothing,
) -> BalanceReport:
    """Balance every projection site of a spiking decoder on ``tokens [N,T]``, in one pass forwards and backwards.

    A row per site: name, expected relative output error before and after, the largest factor, and the share of the
    input's power that the centre took. Sites that are not `centred` in the spec get factors only. Without `move`
    nothing is changed, only costs are measured. `step` is called twice per block.
    """
    if tokens.ndim != 2 or not len(tokens):
        raise ConversionError(f"calibration needs tokens [N, T], got shape {list(tokens.shape)}")
    made = BalanceReport()
    table = site_table(model)
    for block in sensitivities(model, tokens, samples=samples, seed=seed, step=step):
        rows: list[dict[str, Any]] = []
        if block.stream is not None:
            made.stream.insert(0, block.stream)
        left = {path: (s.x, s.fisher) for path, s in block.sites.items()}
        if block.number is not None and move:
            layer = model.layers[block.number]
            for port in ports(layer):
                path = next(p for p in left if table[p][1] is port.site)
                x, fisher = left[path]
                centred = port.site.centre is not None
                done = balance(x, fisher, port.site.neuron, port.tie, centred, steps=steps)
                apply_balance(port, done)
                left[path] = ((x - done.mu) / done.s, fisher * done.s.pow(2))
                power = float(x.pow(2).sum(-1).mean()) or 1.0
                rows.append(
                    {
                        "site": f"layers.{block.number}.{port.name}",
                        "error_before": done.before,
                        "error_after": done.after,
                        "factor": float((done.s / done.s.median()).max()),
                        "centre_power": float(done.mu.pow(2).sum()) / power,
                    }
                )
            for path, (mu, s) in balance_heads(layer, block.x, block.angles, samples, rows, block.number).items():
                x, fisher = left[path]
                left[path] = ((x - mu) / s, fisher * s.pow(2))
        for path, (y, fisher) in left.items():
            made.fisher[path] = fisher
            made.cost[path] = cost_of(table[path][1].neuron, y, fisher)
        made.rows = rows + made.rows
    order = {path: i for i, path in enumerate(table)}
    made.cost = dict(sorted(made.cost.items(), key=lambda item: order[item[0]]))
    return made


@torch.no_grad()
def cost_of(neuron: Any, y: Tensor, fisher: Tensor) -> float:
    """½ Σ_i F_i E[(spikes - y)_i²] of a neuron on a sample ``[n,D]``, nats per token."""
    spikes, _ = neuron(y[None], None, None)
    return 0.5 * float((fisher * (spikes.value()[0] - y).pow(2)).sum(-1).mean())


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
    layer: Any, x: Tensor, angles: Any, samples: int, rows: list[dict[str, Any]], number: int, steps: int = 60
) -> dict[str, tuple[Tensor, Tensor]]:
    """Spiking q and k: one factor per rotary pair (k / s, q · s), and a centre for the keys after rotation.

    Returns the centre and factors of the sites that were changed, by path.
    """
    attention = layer.attention
    q_site, k_site = attention.q_site, attention.k_site
    if q_site.neuron is None and k_site.neuron is None:
        return {}
    seen: list[Any] = []
    handle = attention.mixer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with bypass_neurons(layer):
        layer(x, None, None, angles)
    handle.remove()
    pick = torch.randperm(x.shape[0] * x.shape[1], generator=torch.Generator().manual_seed(0))[:samples]
    q, k = (t.flatten(0, 1)[pick].float() for t in seen[0].rotated())  # [n,H,K], [n,G,K]
    groups, width = k.shape[1:]
    mu = k.mean(0) if k_site.centre is not None else torch.zeros(groups, width)
    if not blind(attention.mixer, seen[0], torch.ones(groups, width), k.mean(0)):
        mu = torch.zeros(groups, width)
    if not blind(attention.mixer, seen[0], torch.linspace(0.5, 2.0, width // 2).repeat(groups, 2), 0 * mu):
        return {}
    k = k - mu
    wide = k.repeat_interleave(q.shape[1] // groups, 1)
    cost_q = wide.pow(2).mean(0).flatten()
    cost_k = q.pow(2).mean(0).unflatten(0, (groups, -1)).sum(1).flatten()
    shared = attention.q_norm is not None
    log_s = torch.zeros(1 if shared else groups, width // 2, requires_grad=True)
    descent = Descent((log_s,), 0.05)
    best, before, mark = (float("inf"), torch.ones(groups, width)), 0.0, float("inf")
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
                return {}
            before = before or error.item()
            if error.item() < best[0]:
                best = (error.item(), s.detach().clone())
            if step and step % 10 == 0:
                if best[0] > 0.99 * mark:
                    break
                mark = best[0]
            if step < steps:
                descent.step(error)
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
    share = q.shape[1] // groups
    changed = {
        f"layers.{number}.attention.q_site": (torch.zeros(q[0].numel()), 1 / s.repeat_interleave(share, 0).flatten()),
        f"layers.{number}.attention.k_site": (mu.flatten(), s.flatten()),
    }
    return {path: found for path, found in changed.items() if (q_site if "q_site" in path else k_site).neuron}
