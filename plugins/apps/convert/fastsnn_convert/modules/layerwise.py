"""Thresholds of converted modules, layer by layer: one pass over the network for all of them.

Two tracks go through the network side by side, step after step, over all calibration data: the dense one (sites let
numbers pass) and the spiking one (sites that are done spike). Where a site comes up,

    V* = argmin_V ‖ W s_V(x) - W x₀ ‖²        x as it arrives through the sites before, x₀ as it is without spikes

W being the projections that read it (the identity where none does), over a grid of the largest value that is still
counted. Where a projection W, b has been given spikes, its scale and bias per output channel take up what rounding
moved on the whole (`settings.refine`):

    W' = diag(α) W,   b' = α b + β,   α, β = argmin ‖ α (W s + b) + β - (W x₀ + b) ‖²

So the cost is two passes and a search per site: linear in depth. Sites without a largest count keep the neuron's own
setting (k spikes a channel).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_console.progress import Progress
from fastsnn_conversion.spike_layers import reads_spikes
from fastsnn_conversion.time_folding import TimeFold, TimeFoldedSite
from fastsnn_convert.modules.site_thresholds import (
    CHUNK,
    ENOUGH,
    PRIOR,
    PROJECTIONS,
    SiteReader,
    ThresholdSettings,
    active,
    bound,
    by_channel,
    check_finite,
    search,
    set_neuron,
)  # fmt: skip
from fastsnn_convert.neurons import knob, largest_count, levels, limited
from fastsnn_convert.output_distance import distance, output
from fastsnn_core.spike_tensor import SpikeTensor, densify
from fastsnn_model_graph import Network, Step
from fastsnn_model_graph.steps import refs, run_all

LIVE_BYTES = 1 << 30  # of calibration data's values at one step
SAVING_ROUNDS = 6


@attrs.define(eq=False)
class Figures:
    """Of a site: mean squares of x₀ about its mean, of s(x₀) - x₀, and of s(x) - x₀."""

    spread: float
    alone: float
    so_far: float

    def errors(self) -> tuple[float, float]:
        """Relative to the spread: rounding alone, and with all that came before."""
        size = max(self.spread, 1e-24)
        return math.sqrt(self.alone / size), math.sqrt(self.so_far / size)


class Tracks:
    """The dense and the spiking network side by side over calibration data, in chunks of samples."""

    def __init__(self, network: Network, data: Sequence[Tensor], settings: ThresholdSettings) -> None:
        self.network, self.settings = network, settings
        self.data = samples_in_memory(network, data)
        self.chunks = list(zip(*(x.split(CHUNK) for x in self.data)))
        self.users: dict[str, list[Step]] = {}
        self.times: dict[str, int] = {}
        for step in network.steps:
            self.times[step.target] = self.times.get(step.target, 0) + 1
            for source in dict.fromkeys(step.sources()):
                self.users.setdefault(source, []).append(step)
        self.shared = shared_weights(network)
        self.figures: dict[str, Figures] = {}

    @torch.no_grad()
    def run(
        self, tune: Callable[[Tracks, str, TimeFoldedSite, list[Tensor], list[Tensor], list[SiteReader]], None]
    ) -> None:
        """One pass; `tune_sites` sets each site up where it comes up."""
        network, refine = self.network, self.settings.refine and self.settings.steps is not None
        dense: dict[str, list[Any]] = {}
        spiking: dict[str, list[Any]] = {}
        given, last = 0, {ref.name for ref in refs(network.output)}
        with Progress("choosing thresholds", total=len(network.steps), unit="steps") as progress:
            for step in network.steps:
                if step.kind == "input":
                    dense[step.name] = spiking[step.name] = [chunk[given] for chunk in self.chunks]
                    given += 1
                elif (site := self.site(step)) is not None:
                    source = step.sources()[0]
                    x0, x = dense[source], [densify(piece) for piece in spiking[source]]
                    check_finite(step.target, x0)
                    tune(self, step.target, site, x, x0, self.readers(step.name))
                    dense[step.name], spiking[step.name] = x0, [site(piece) for piece in x]
                    self.figures[step.target] = measured_site(site, spiking[step.name], x0)
                else:
                    together = all(dense[source] is spiking[source] for source in step.sources())
                    dense[step.name] = self.taken(step, dense)
                    spiking[step.name] = dense[step.name] if together else self.taken(step, spiking)
                    if refine and not together and self.adjustable(step):
                        adjust(network.held(step.target), spiking[step.name], dense[step.name], step.name not in last)
                for name in network.done.get(step.name, ()):
                    del dense[name], spiking[name]
                progress.step(note=step.target or step.name)

    def taken(self, step: Step, values: dict[str, list[Any]]) -> list[Any]:
        """A step on every chunk."""
        sources = step.sources()
        return [
            self.network.take(step, {source: values[source][i] for source in sources}) for i in range(len(self.chunks))
        ]

    def site(self, step: Step) -> TimeFoldedSite | None:
        """The site that a step is."""
        module = self.network.held(step.target) if step.kind == "module" else None
        return module if isinstance(module, TimeFoldedSite) and module.neuron is not None else None

    def adjustable(self, step: Step) -> bool:
        """A projection whose weights are its own, called once, on spikes."""
        if step.kind != "module" or self.times[step.target] != 1 or step.target in self.shared:
            return False
        return type(self.network.held(step.target)) in PROJECTIONS

    def readers(self, name: str, through: Callable[[Any], Any] = lambda x: x) -> list[SiteReader]:
        """Projections that read a value, through modules that hand spikes on; its own value where there are none."""
        found: list[SiteReader] = []
        for step in self.users.get(name, ()):
            module = self.network.held(step.target) if step.kind == "module" else None
            if module is None or not reads_spikes(module) or len(step.args) != 1 or step.kwargs:
                continue

            def run(x: Any, module: nn.Module = module) -> Any:
                return module(through(x))

            if type(module) in PROJECTIONS:
                found.append(SiteReader(run, -1 if isinstance(module, nn.Linear) else 1))
            elif not isinstance(module, TimeFoldedSite):
                found += [r for r in self.readers(step.name, run) if r.channels is not None]
        return found or [SiteReader(through)]

    def sample(self, pieces: list[Tensor]) -> Tensor:
        """As many samples of a value, evenly taken, as a threshold is chosen on."""
        whole = torch.cat(pieces)
        count = max(1, min(len(whole), ENOUGH // max(1, whole[0].numel())))
        return whole[torch.linspace(0, len(whole) - 1, count).long()]


def samples_in_memory(network: Network, data: Sequence[Tensor]) -> list[Tensor]:
    """As many samples as fit the memory that live values may take: every value of one sample, at its widest step."""
    live, most, sizes = 0, 1, dict[str, int]()

    def see(step: Step, value: Any) -> None:
        nonlocal live, most
        sizes[step.name] = value.numel() * 8 if isinstance(value, Tensor | SpikeTensor) else 0
        live += sizes[step.name]
        most = max(most, live)
        live -= sum(sizes[name] for name in network.done.get(step.name, ()))

    run_all(network, tuple(x[:1] for x in data), see)
    count = min(len(data[0]), max(8, LIVE_BYTES // (2 * most)))
    rows = torch.linspace(0, len(data[0]) - 1, count).long()
    return [x[rows] for x in data]


def shared_weights(network: Network) -> set[str]:
    """Paths of modules whose weights somebody else reads, too."""
    owners: dict[int, set[str]] = {}
    for step in network.steps:
        if step.kind in ("module", "tensor"):
            value = network.held(step.target)
            for tensor in [value] if isinstance(value, Tensor) else value.parameters():
                owners.setdefault(tensor.untyped_storage().data_ptr(), set()).add(step.target)
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}


def measured_site(site: TimeFoldedSite, spikes: Sequence[Any], x0: Sequence[Tensor]) -> Figures:
    """The site's figures over all chunks; its rounding alone on the first."""
    count = sum(piece.numel() for piece in x0)
    mean = sum(float(piece.sum(dtype=torch.float64)) for piece in x0) / max(count, 1)
    size = sum(float((piece - mean).square().sum(dtype=torch.float64)) for piece in x0) / max(count, 1)
    off = sum(float((densify(s) - piece).square().sum(dtype=torch.float64)) for s, piece in zip(spikes, x0))
    own = float((densify(site(x0[0])) - x0[0]).square().mean(dtype=torch.float64))
    return Figures(size, own, off / max(count, 1))


@torch.no_grad()
def adjust(module: Any, spiking: list[Tensor], dense: list[Tensor], scaled: bool) -> None:
    """Scale and shift per output channel by which the projection's spiking output comes closest to its dense one.

    A ridge of `PRIOR` samples holds the scale at 1 and the shift at 0. Weights, bias and the outputs change in
    place. Where the network's own outputs come from, only the shift is taken (`scaled` is False): class scores compare.
    """
    dim = -1 if isinstance(module, nn.Linear) else 1
    y, y0 = (torch.cat([by_channel(piece, dim) for piece in pieces]).double() for pieces in (spiking, dense))
    rows = sum(map(len, dense)) / (sum(map(len, dense)) + PRIOR)
    mean, mean0 = y.mean(0), y0.mean(0)
    variance = (y - mean).square().mean(0)
    together = ((y - mean) * (y0 - mean0)).mean(0)
    scale = 1 + rows * (together / variance.clamp_min(1e-12) - 1)
    scale = torch.where((variance > 1e-12) & scaled, scale, 1.0).clamp(0.5, 2.0)
    shift = rows * (mean0 - scale * mean)
    weight, transposed = module.weight, isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    by_output = scale.reshape(-1, *[1] * (weight.ndim - 1))
    if transposed:  # [in, out / groups, …]
        by_output = scale.reshape(module.groups, 1, -1).expand(-1, weight.shape[0] // module.groups, -1)
        by_output = by_output.reshape(weight.shape[0], -1)[(...,) + (None,) * (weight.ndim - 2)]
    weight.copy_(weight.double() * by_output)
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros(len(scale), dtype=weight.dtype, device=weight.device))
    module.bias.copy_(module.bias.double() * scale + shift)
    shape = [1] * (dim if dim > 0 else 0) + [-1] + [1] * (spiking[0].ndim - 2 if dim > 0 else 0)
    for piece in spiking:
        piece.mul_(scale.reshape(shape).to(piece.dtype)).add_(shift.reshape(shape).to(piece.dtype))


def tune_sites(
    network: Network, data: Sequence[Tensor], settings: ThresholdSettings, *, calibrated: bool
) -> tuple[dict[str, Figures], int]:
    """Steps and threshold of every site of a network in evaluation mode, and what each costs, by the site's path; and
    how many samples they were chosen on. Without calibration data of the user's thresholds stay where they are."""
    sites = {step.target: site for step in network.steps if (site := site_of(network, step)) is not None}
    bound(sites, settings)
    if not sites:
        return {}, 0
    tracks = Tracks(network, data, settings)
    if isinstance(settings.per_site, int | float) and calibrated:
        return save_steps(tracks, sites), len(tracks.data[0])
    tracks.run(choose_threshold if calibrated else calibrate_site)
    return tracks.figures, len(tracks.data[0])


def site_of(network: Network, step: Step) -> TimeFoldedSite | None:
    """The site that a step is."""
    module = network.held(step.target) if step.kind == "module" else None
    return module if isinstance(module, TimeFoldedSite) and module.neuron is not None else None


def choose_threshold(
    tracks: Tracks, name: str, site: TimeFoldedSite, x: list[Tensor], x0: list[Tensor], readers: list[SiteReader]
) -> None:
    """A threshold: by search where counts are bounded, by the neuron's own rule otherwise."""
    if knob(site.component) is None:
        return
    if math.isfinite(largest_count(site.neuron)) and tracks.settings.steps is not None:
        search(site, tracks.sample(x), tracks.sample(x0), readers, tracks.settings.refine)
    else:
        calibrate_site(tracks, name, site, x, x0, readers)


def calibrate_site(
    tracks: Tracks, name: str, site: TimeFoldedSite, x: list[Tensor], x0: list[Tensor], readers: list[SiteReader]
) -> None:
    """The neuron's own rule, where it has one."""
    if hasattr(site.neuron, "calibrate_"):
        whole = torch.cat(x0)
        site.neuron.calibrate_(TimeFold(whole.shape, len(whole), 1, site.channels).unfold(whole))


def save_steps(tracks: Tracks, sites: Mapping[str, TimeFoldedSite]) -> dict[str, Figures]:
    """The fewest steps per site whose own error stays under a bound that all share; the bound is the largest for which
    the output's error stays under `settings.per_site` (by bisection, a pass each)."""
    settings, network = tracks.settings, tracks.network
    assert isinstance(settings.per_site, int | float)
    assert settings.steps is not None
    whole = {name: site.component for name, site in sites.items()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    biases = {m: m.bias for m in network.modules() if type(m) in PROJECTIONS}

    def attempt(bound: float) -> float:
        """Set the network up afresh; returns its output's error."""
        for module, bias in biases.items():
            module.bias = bias
        for name, site in sites.items():
            set_neuron(site, whole[name])
        network.load_state_dict(before, strict=False)

        def fewest(
            tracks: Tracks,
            name: str,
            site: TimeFoldedSite,
            x: list[Tensor],
            x0: list[Tensor],
            readers: list[SiteReader],
        ) -> None:
            for steps in range(1, (settings.steps or 1) + 1):
                set_neuron(site, limited(whole[name], levels(steps, settings.code)))
                choose_threshold(tracks, name, site, x, x0, readers)
                if measured_site(site, [site(piece) for piece in x[:1]], x0[:1]).errors()[0] <= bound:
                    break

        tracks.figures.clear()
        tracks.run(fewest)
        return distance(output(network, tracks.data), y0)

    with active(sites, ()):
        y0 = output(network, tracks.data)
    low, high = 0.0, 2.0 * float(settings.per_site)
    for _ in range(SAVING_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if attempt(middle) <= settings.per_site else (low, middle)
    attempt(low)
    return tracks.figures
