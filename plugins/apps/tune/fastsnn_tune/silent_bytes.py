"""Silent bytes at a given loss: how much of a model's projections need not be read before perplexity rises by 1 %.

    silent bytes = Σ_sites (share of silent inputs) · (weights that read the site) / Σ_sites (weights that read it)

One backward pass (`fastsnn_convert.language.output_sensitivity`) gives every site a sample of its inputs and what
errors of its channels cost; so the cost of every dead zone of every site is known, ½ Σ_i F_i E[δ_i²], and the ones
that cost least at a given number of silent bytes are those of equal slope d(cost) / d(bytes). What a setting really
costs is measured on text that took no part; where to stop is found by a few measurements, guided by the estimate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_console.progress import Progress
from fastsnn_convert.language.output_sensitivity import Seen, Sensitivity, nothing, sensitivities
from fastsnn_convert.language.ports import Port, ports
from fastsnn_convert.language.rebuild import site_table
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_convert.language.site_figures import visit_spikes
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_tune.criteria import Criterion
from fastsnn_tune.dial import store_dials
from fastsnn_tune.levels import Level, Setting, between, bracketed

LEVELS = tuple(i / 20 for i in range(20))
"""Silent fractions of a site whose cost is estimated."""
FINER = (1.0, 2.0, 4.0)
"""Times k: a finer threshold rounds less, and the dead zone alone silences."""
UNCHANGED = 0.5
"""A dead zone, in thresholds, that silences nothing which rounding does not."""
UNNORMED = ("attn_out", "ffn_hidden")
"""Sites whose input comes from no norm."""
ABSOLUTE = 2.0
"""Times the mean magnitude: up to where a threshold is absolute; louder tokens have one relative to their own mean."""
PATH = 80
"""Settings between nothing and nearly everything silent."""


@attrs.frozen
class Measured:
    """A setting on held-out text: silent bytes, perplexity, its ratio to the dense model's (± standard error), KL."""

    silent_bytes: float
    perplexity: float
    ratio: float
    ratio_error: float | None
    kl: float
    estimate: float


@attrs.define(eq=False)
class SilentBytes:
    """A decoder whose dead zones can be set; its weights are a copy, rescaled by the criterion."""

    model: Any
    chosen: Criterion
    ports: dict[str, Port]
    weights: dict[str, int]
    ladders: dict[float, dict[str, list[list[Level]]]] = attrs.field(factory=dict)
    k: dict[str, float] = attrs.field(factory=dict)
    biases: dict[str, list[Tensor]] = attrs.field(factory=dict)
    fitted: Tensor | None = None
    trained: dict[str, bool] = attrs.field(factory=dict)

    @classmethod
    def of(
        cls,
        model: Any,
        chosen: Criterion,
        tokens: Tensor,
        *,
        blocks: Iterable[Seen] | None = None,
        spiking: bool = False,
        quiet: bool = False,
    ) -> SilentBytes:
        """Rescale a copy of `model` and estimate costs on ``tokens [N,T]``; `spiking` where it was trained so.

        `blocks` are the model's sensitivities, where they are known already.
        """
        check_tunable(model)
        new: Any = copy.deepcopy(model).eval().requires_grad_(False)
        if chosen.prepare is not None:  # what is known of the model as it was is of other channels
            new, blocks = chosen.prepare(new, tokens), None
        table = site_table(new)
        found: dict[str, Any] = {
            path: port for layer in new.layers for port in ports(layer) for path in paths_of(table, port)
        }
        sizes = {path: sum(r.weight.numel() for r in port.readers) for path, port in found.items()}
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        self = cls(new, chosen, found, sizes, {f: {} for f in FINER}, fitted=tokens, trained=trained)
        self.k = {path: float(port.site.neuron.k) for path, port in found.items()}
        with Progress("costs of all sites", 2 * len(new.layers), "half blocks", quiet=quiet) as progress:
            for block in blocks or sensitivities(new, tokens, step=progress.step, spiking=spiking):
                for path, seen in block.sites.items():
                    if path in found:
                        y, fisher = self.rescale(path, seen)
                        for finer in FINER:
                            self.ladders[finer][path] = self.levels(path, y, fisher, finer)
        self.biases = {
            path: [r.bias.clone() for r in port.readers if r.bias is not None] for path, port in found.items()
        }
        return self

    @torch.no_grad()
    def rescale(self, path: str, seen: Sensitivity) -> tuple[Tensor, Tensor]:
        """Fold the criterion's importances in; the site's centred sample ``[n,D]`` and Fisher weights afterwards."""
        port = self.ports[path]
        site, x, fisher = port.site, seen.x, seen.fisher
        if self.chosen.importance is not None and port.tie is not None and port.divide is not None:
            log = -self.chosen.importance(port, fisher).clamp_min(1e-12).log()
            count = int(port.tie.max()) + 1
            sums = torch.zeros(count).index_add_(0, port.tie, log)
            log = sums / torch.zeros(count).index_add_(0, port.tie, torch.ones_like(log))
            group = (log - log.mean()).exp()
            s = group[port.tie]
            port.divide(group)
            for reader in (*port.readers, *(g.gate_down for g in port.gates)):
                reader.weight.mul_(s.to(reader.weight.dtype))
            if site.centre is not None:
                site.centre.div_(s)
            x, fisher = x / s, fisher * s.pow(2)
        return (x if site.centre is None else x - site.centre), fisher

    def levels(self, path: str, y: Tensor, fisher: Tensor, finer: float) -> list[list[Level]]:
        """Ladders of a site: relative to each token's mean, and absolute where criterion and neuron have it.

        Not behind a norm: there tokens are about as loud as each other, but for a few, such as the first, on which
        attention rests and which a threshold for all might silence.
        """
        port = self.ports[path]
        absolute = self.chosen.absolute and port.name in UNNORMED and "v_min" in getattr(port.site.neuron, "dials", ())
        kinds = (0.0, ABSOLUTE * float(y.abs().mean())) if absolute else (0.0,)
        return [self.ladder(path, y, fisher, finer, least) for least in kinds]

    @torch.no_grad()
    def ladder(self, path: str, y: Tensor, fisher: Tensor, finer: float, least: float = 0.0) -> list[Level]:
        """Dead zones and their costs on a sample of the site's input."""
        k = self.k[path] * finer
        mean = y.abs().mean(-1, keepdim=True).clamp_min(max(1e-12, least))
        u, v = y.abs() / mean, mean / k
        rounded = (y / v.clamp_min(1e-12)).round() * v - y
        order = u.flatten().sort().values
        rows = []
        for level in LEVELS:
            zone = float(order[int(level * (len(order) - 1))]) if level else 0.0
            mute = (u < zone) | (u * k <= 0.5)
            error = torch.where(mute, -y, rounded)
            cost = 0.5 * float((fisher * error.pow(2)).sum(-1).mean())
            rows.append(Level(zone, float(mute.float().mean()), cost, least))
        return rows

    # -- settings ---------------------------------------------------------------------------------------------------

    def path(self) -> list[Setting]:
        """Settings by rising silent bytes, of every fineness the one that costs least."""
        made = [s for finer in FINER for s in self.settings(finer)]
        made.sort(key=lambda s: (s.cost, -s.silent_bytes))
        best: list[Setting] = []
        for s in made:  # by rising cost: only those that silence more than all cheaper ones
            if not best or s.silent_bytes > best[-1].silent_bytes + 1e-4:
                best.append(s)
        return best

    def settings(self, finer: float) -> list[Setting]:
        """Settings at one fineness, along the criterion's shares."""
        ladders, total = self.ladders[finer], sum(self.weights.values())
        made = []
        fine = {path: [level for rows in kinds for level in between(rows)] for path, kinds in ladders.items()}
        if self.chosen.shares == "equal":
            steps = range(1 + 4 * (len(LEVELS) - 1))
            return [self.joined({p: rows[i] for p, rows in fine.items()}, finer) for i in steps]
        for i in range(PATH):
            slope = 10 ** (-5 + 7 * i / PATH)
            pick = {
                path: min(rows, key=lambda r: r.cost - slope * r.silent * self.weights[path] / total)
                for path, rows in fine.items()
            }
            made.append(self.joined(pick, finer))
        return made

    def joined(self, pick: dict[str, Level], finer: float) -> Setting:
        """One setting from a level per site."""
        total = sum(self.weights.values())
        silent = sum(level.silent * self.weights[path] for path, level in pick.items()) / total
        zones = {path: level.zone for path, level in pick.items()}
        least = {path: level.least for path, level in pick.items()}
        return Setting(zones, least, finer, silent, sum(level.cost for level in pick.values()))

    @torch.no_grad()
    def apply(self, setting: Setting | None) -> None:
        """Set all dead zones (None: the model as it was given, rescaled)."""
        for path, port in self.ports.items():
            neuron: Any = port.site.neuron
            finer = 1.0 if setting is None else setting.finer
            neuron.dial_("k", self.k[path] * finer)
            least = 0.0 if setting is None else setting.least[path] / float(neuron.k)
            if least or getattr(neuron, "v_min", None) is not None:
                neuron.dial_("v_min", least)
            zone = 0.0 if setting is None else setting.zones[path] * float(neuron.k)
            if zone or getattr(neuron, "sparser", False):
                neuron.dial_("dead_zone", zone)
            for reader, bias in zip((r for r in port.readers if r.bias is not None), self.biases[path]):
                reader.bias.copy_(bias)
        if setting is not None and self.chosen.constants and self.fitted is not None:
            self.make_up(self.fitted)

    @torch.no_grad()
    def make_up(self, tokens: Tensor) -> None:
        """Add W E[x - spikes(x)] to the biases behind every site: constants that stand for what was dropped."""
        lost: dict[str, Tensor] = {}
        handles = [site_hook(port, path, lost) for path, port in self.ports.items()]
        try:
            self.model(tokens[:2], last=True)
        finally:
            for handle in handles:
                handle.remove()
        for path, port in self.ports.items():
            for reader in port.readers:
                if reader.bias is not None:
                    reader.bias.add_(reader.weight @ lost[path].to(reader.weight.dtype))

    @torch.no_grad()
    def measure(self, setting: Setting | None, held: HeldOutReference) -> Measured:
        """What a setting does on held-out text."""
        self.apply(setting)
        sums: dict[str, list[float]] = {path: [0.0, 0.0] for path in self.ports}

        def visit(path: str, x: Tensor, spikes: SpikeTensor) -> None:
            if path in sums:
                sums[path][0] += float((spikes.counts == 0).sum())
                sums[path][1] += spikes.numel()

        with visit_spikes(self.model, visit):
            found = held.windows(self.model).figures()
        silent = sum(self.weights[p] * a / max(1.0, n) for p, (a, n) in sums.items()) / sum(self.weights.values())
        estimate = 0.0 if setting is None else setting.cost
        return Measured(silent, found["perplexity"], found["ratio"], found["ratio_error"], found["kl"], estimate)


def at_loss(
    made: SilentBytes,
    held: HeldOutReference,
    loss: float,
    rows: list[tuple[Setting, Measured]],
    *,
    tries: int = 5,
    step: Callable[[], Any] = nothing,
) -> tuple[Setting, Measured] | None:
    """The most silent setting whose perplexity is within `loss` (0.01: 1 %) of the dense model's on `held`.

    `rows` are settings that were measured already, and grows. The next one is where the estimate, scaled by what
    was measured nearest, meets the loss, and where that is known already, between what was measured on both sides. None
    where even the first setting costs more.
    """
    path, limit = made.path(), math.log1p(loss)
    for _ in range(tries):
        near = min(rows, key=lambda r: abs(math.log(r[1].ratio) - limit), default=None)
        scale = 1.0 if near is None else max(0.2, min(5.0, math.log(max(near[1].ratio, 1.0001)) / near[0].cost))
        wanted = max((s for s in path if s.cost * scale <= limit), key=lambda s: s.silent_bytes, default=path[0])
        if any(s is wanted for s, _ in rows):
            inner = bracketed(path, [(s, math.log(m.ratio)) for s, m in rows], limit)
            if inner is None or any(s is inner for s, _ in rows):
                break
            wanted = inner
        rows.append((wanted, made.measure(wanted, held)))
        step()
    within = [row for row in rows if row[1].ratio <= 1 + loss]
    return max(within, key=lambda r: r[1].silent_bytes, default=None)


def settled(made: SilentBytes, setting: Setting) -> Any:
    """The model of `made` with these dead zones for good: its spec says that the sites have constants of their own."""
    made.apply(setting)
    k = {path: float(port.site.neuron.k) for path, port in made.ports.items()}
    zones = {path: max(UNCHANGED, zone * k[path]) for path, zone in setting.zones.items()}
    store_dials(made.model, dict.fromkeys(zones, "dead_zone"), zones)
    for name, p in made.model.named_parameters():  # it may be trained as far as the model it was made of
        p.requires_grad_(made.trained.get(name, True))
    return made.model


def check_tunable(model: Any) -> None:
    """Silent bytes are of decoders with float weights and neurons whose dead zone can be set."""
    if not hasattr(getattr(model, "spec", None), "sites") or not hasattr(model, "layers"):
        raise FastSNNError("silent bytes are measured on decoders (language models); this is none")
    if getattr(model.spec, "quant", None) is not None:
        raise FastSNNError("this bundle has INT8 weights; tune the float one, then export it: fastsnn export --to w8a")
    at = [port for layer in model.layers for port in ports(layer)]
    if not at:
        raise FastSNNError("this model has no spike sites in front of its projections, so there is nothing to tune")
    for port in at:
        if "dead_zone" not in getattr(port.site.neuron, "dials", ()):
            raise FastSNNError(f"{type(port.site.neuron).__name__} at {port.name} has no dead zone to set")


def paths_of(table: dict[str, tuple[str, Any]], port: Port) -> list[str]:
    """The path of a port's site."""
    return [path for path, (_, site) in table.items() if site is port.site]


def site_hook(port: Port, path: str, lost: dict[str, Tensor]) -> Any:
    """Record the mean over tokens of what a neuron does not pass on ``[D]``."""

    def hook(_: Any, args: tuple[Any, ...], out: tuple[SpikeTensor, Any]) -> None:
        lost[path] = (args[0] - out[0].value()).float().mean((0, 1))

    return port.site.neuron.register_forward_hook(hook)
