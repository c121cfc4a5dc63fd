"""The tables of a `DecoderPlan`: rows of `fastsnn_kernel_numba.layout`, and the constants they point into."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.lowering import (
    BlockPlan,
    DecoderPlan,
    FeedforwardForm,
    LinearAttentionForm,
    MatrixForm,
    MixerForm,
    NormForm,
    SiteForm,
    SoftmaxAttentionForm,
    Unsupported,
)
from fastsnn_integer import deterministic
from fastsnn_integer.forms import FourBitForm, TernaryForm, gate_first, inputs, outputs
from fastsnn_kernel_numba.deterministic import ACTIVATIONS
from fastsnn_kernel_numba.four_bit_tile import NARROW as TILE
from fastsnn_kernel_numba.fused_decoder_four_bits import MOST_BYTES
from fastsnn_kernel_numba.fused_decoder_stages import MOST_BURST
from fastsnn_kernel_numba.fused_decoder_ternary import eight_bits, ternary_projections
from fastsnn_kernel_numba.integer_linear import input_major, is_input_major
from fastsnn_kernel_numba.layout import STATISTICS

FAR = 1e28
LEAST_BYTES = 64  # per task of 4-bit weights
LINE = 64  # bytes of a cache line
COLUMNS = 4096  # outputs per task: 8 KiB of 16-bit sums stay in L1
NARROW = 4096  # projections up to this many outputs are split over events
CACHED = 24 << 20  # bytes of INT8 weights that are taken to stay in a cache
Row = dict[str, Any]


class Tables:
    """Rows and constants of a plan."""

    def __init__(self, plan: DecoderPlan, workers: int) -> None:
        self.workers, self.cached = workers, weight_bytes(plan) <= CACHED
        self.constants: list[Any] = []
        self.size = 1  # the first constant is none's
        self.layers: list[Row] = []
        self.stages: list[Row] = []
        self.matrices: list[Row] = []
        self.tasks: list[Row] = []
        self.sites: list[Row] = []
        self.mixers: list[Row] = []
        self.names: list[str] = []  # of the sites
        self.held: list[Tensor] = []  # weights whose addresses are in use
        self.sums = self.columns = self.inputs = 1  # most of a projection, of a task, of a matrix
        self.rank = 0  # most of a gate
        self.rotary = self.ternary = False
        table: Any = plan.table
        add = self.four_bit_matrix(table, 0) if isinstance(table, FourBitForm) else -1
        for block in plan.blocks:
            add = self.block(block, add)
        (head,), tasks = self.projection([plan.head], split=0)
        self.stage("head_site", plan.site, tasks, plan.norm, add, plan.width)
        none = dict.fromkeys(("k", "v", "q_norm", "k_norm", "up", "gate", "least", "up_task"), -1)
        zero = dict.fromkeys(
            (
                "q_eps",
                "k_eps",
                "first_mixer",
                "last_mixer",
                "activation",
                "hidden",
                "up_relu",
                "block",
                "up_rows",
                "up_limit",
            ),
            0,
        )
        self.layers.append({"q": head, **none, **zero})

    def records(self) -> dict[str, list[Row]]:
        """Rows by array."""
        names = ("layers", "stages", "matrices", "tasks", "sites", "mixers")
        return {name: getattr(self, name) for name in names}

    def constant(self, values: Tensor | None) -> int:
        """Where these numbers are; -1 for none."""
        if values is None:
            return -1
        self.constants.append(values.detach().float().reshape(-1).numpy())
        self.size += values.numel()
        return self.size - values.numel()

    def matrix(self, matrix: MatrixForm, weight: Tensor, sums: int, parts: int) -> int:
        """A row of the matrices: where the outputs of one are among those of `weight`."""
        self.held.append(weight)
        tall, inputs = weight.shape
        self.inputs = max(self.inputs, inputs)
        scale, bias = self.constant(matrix.scale), self.constant(matrix.bias)
        self.matrices.append(
            {"address": weight.data_ptr(), "outputs": tall, "tall": len(matrix.scale), "inputs": inputs,
             "scale": scale, "bias": bias, "sums": sums, "parts": parts, "group": 0, "scales": 0, "minimums": 0}
        )  # fmt: skip
        return len(self.matrices) - 1

    def four_bit_matrix(self, m: FourBitForm, sums: int) -> int:
        """A row of the matrices with 4-bit weights; scales in float16, where they come from."""
        codes, scales, minimums = m.weight.contiguous(), halves(m.scale), halves(m.minimum)
        self.held += [codes, scales, minimums]
        self.inputs = max(self.inputs, inputs(m))
        self.matrices.append(
            {"address": codes.data_ptr(), "outputs": outputs(m), "tall": outputs(m), "inputs": inputs(m), "scale": -1,
             "bias": self.constant(m.bias), "sums": sums, "parts": 1, "group": m.group, "scales": scales.data_ptr(),
             "minimums": minimums.data_ptr() if minimums.numel() else 0}
        )  # fmt: skip
        return len(self.matrices) - 1

    def four_bit_projections(self, matrices: list[FourBitForm]) -> tuple[list[int], tuple[int, int]]:
        """`projection` of 4-bit matrices: a row of each is its own, and tasks are bytes of it, never events."""
        rows, begin, sums = [], len(self.tasks), 0
        for m in matrices:
            rows.append(self.four_bit_matrix(m, sums))
            half = -(-outputs(m) // 2)
            step = min(MOST_BYTES, max(LEAST_BYTES, -(-half // (TILE * self.workers)) * TILE))
            for column in range(0, half, step):
                columns = min(step, half - column)
                self.tasks.append({"matrix": rows[-1], "column": column, "columns": columns, "part": 0})
            sums += outputs(m)
        self.sums = max(self.sums, sums)
        return rows, (begin, len(self.tasks))

    def projection(self, *groups: list[MatrixForm], split: int = 1) -> tuple[list[int], tuple[int, int]]:
        """Matrices with the same input, each group as one: their rows, and the first and last task of the phase.

        The first `split` groups may be split over events (at most 4 parts, which everybody who reads them adds up) and
        over columns, so that the tasks share out evenly among the workers.
        """
        given = [m for group in groups for m in group]
        ternary = [m for m in given if isinstance(m, TernaryForm)]
        if len(ternary) == len(given):
            return ternary_projections(self, ternary)
        four = [m for m in given if isinstance(m, FourBitForm)]
        if len(four) == len(given):
            return self.four_bit_projections(four)
        if four or ternary:
            raise Unsupported("projections of 2, 4 and 8 bits that read the same spikes are not fused")
        rows: list[int] = []
        begin, sums = len(self.tasks), 0
        for i, matrices in enumerate(groups):
            weight, own = joined_weights(matrices), len(rows)
            tall = len(weight)
            parts, first, step = 1, sums, min(COLUMNS, LINE * -(-tall // (LINE * self.workers)))
            if i < split and tall <= NARROW and self.workers > 1:
                parts = 2 if self.workers < 8 else 4
                step = LINE * -(-tall // (LINE * (self.workers // gcd(parts, self.workers))))
            for matrix in matrices:
                rows.append(self.matrix(matrix, weight, first, parts))
                first += len(matrix.weight)
            for part in range(parts):
                for column in range(0, tall, step):
                    self.task(rows[own], column, min(step, tall - column), part)
            sums += tall * parts
        self.sums = max(self.sums, sums)
        return rows, (begin, len(self.tasks))

    def task(self, matrix: int, column: int, columns: int, part: int = 0) -> None:
        """One more task."""
        self.tasks.append({"matrix": matrix, "column": column, "columns": columns, "part": part})
        self.columns = max(self.columns, columns)

    def hidden_channels(self, f: FeedforwardForm) -> tuple[Row, tuple[int, int]]:
        """Of a layer: matrices of gate and up, hidden channels per task of a single row, the first task of `up` where
        that comes behind the gates; and all tasks.

        Weights that stay in the processor's cache are shared out by hidden channels, the tasks of a block one behind
        the other, the gate's first where gates shut. Others are shared out by whole rows: memory is read faster so
        (benchmarks/NOTES.md, "Decoding").
        """
        first_gates, hidden = f.gate is not None and gate_first(f), outputs(f.up)
        given = [f.up] if f.gate is None else [f.gate, f.up] if first_gates else [f.up, f.gate]
        whole = any(isinstance(m, FourBitForm | TernaryForm) for m in given)
        split = 0 if self.cached or whole else 1
        rows, (begin, _) = self.projection(*([m] for m in given) if first_gates else (given,), split=split)
        up, gate = (rows[0], rows[-1]) if given[0] is f.up else (rows[1], rows[0])
        found = {"up": up, "gate": -1 if f.gate is None else gate, "block": 0, "up_task": -1}
        if not whole and (self.cached or first_gates):
            block = min(COLUMNS, LINE * -(-hidden // (LINE * self.workers)))
            found["block"] = block
            if self.cached:
                del self.tasks[begin:]
            else:
                found["up_task"] = begin + sum(task["matrix"] != up for task in self.tasks[begin:])
                del self.tasks[found["up_task"] :]
            for first in range(0, hidden, block):
                for i, row in enumerate(rows):
                    matrix, before = (row, 0) if first_gates else (rows[0], i * hidden)
                    if self.cached or row == up:
                        self.task(matrix, before + first, min(block, hidden - first))
        return found, (begin, len(self.tasks))

    def site(self, name: str, site: SiteForm) -> int:
        """A row of the sites."""
        rule = site.rule
        if rule.burst >= MOST_BURST:
            raise Unsupported(f"burst = {rule.burst}; up to {MOST_BURST - 1} are fused", name)
        if rule.statistic not in STATISTICS:
            raise Unsupported(f"a threshold by {rule.statistic!r} is not fused ({', '.join(STATISTICS)} are)", name)
        self.sites.append(
            {"statistic": STATISTICS[rule.statistic], "centre": self.constant(site.centre), "burst": rule.burst,
             "gain": rule.gain, "divisor": rule.divisor, "v_min": rule.v_min, "v_max": rule.v_max, "bound": rule.bound,
             "dead_zone": rule.dead_zone}
        )  # fmt: skip
        self.names.append(name)
        return len(self.sites) - 1

    def mixer(self, form: MixerForm, gate_down: int, name: str) -> None:
        """A row of the mixers."""
        row = {"feature": -1, "rotary": 0, "window": 0, "gate_down": -1, "gate_up": -1, "norm": -1, "fades": 0,
               "norm_eps": 0.0, "tau": 1.0, "floor": 0.0, "keep": 1.0, "eps": 0.0, "query_scale": 1.0}  # fmt: skip
        if isinstance(form, SoftmaxAttentionForm):
            row |= {"rotary": int(form.rotary), "window": form.window}
            self.rotary |= form.rotary
        elif isinstance(form, LinearAttentionForm):
            row |= {"feature": code(form.feature, name), "eps": form.eps, "query_scale": form.query_scale}
            row |= {
                "norm": self.constant(form.norm.weight if form.norm else None),
                "norm_eps": form.norm.eps if form.norm else 0,
            }
            if form.decay and form.gate is not None:
                raise Unsupported("a decay and a gate at once are not fused", name)
            if form.decay:
                row |= {"fades": 1, "keep": float(deterministic.exp(torch.tensor(-form.decay)))}
            if form.gate is not None:
                up = eight_bits(form.gate.up)
                four = isinstance(up, FourBitForm)
                row |= {"gate_down": gate_down}
                row |= {"gate_up": self.four_bit_matrix(up, 0) if four else self.matrix(up, joined_weights([up]), 0, 1)}
                row |= {"tau": form.gate.tau, "floor": form.gate.floor}
                self.rank = max(self.rank, outputs(form.gate.down))
        else:
            raise Unsupported(f"{type(form).__name__} is not fused", name)
        self.mixers.append(row)

    def output_major(self, f: FeedforwardForm) -> Row:
        """Where `up` lies output-major, and the V up to which none of its numbers can overflow."""
        if f.gate is None or not gate_first(f):
            return {"up_rows": 0, "up_limit": 0.0}
        rows = f.up.weight.contiguous()
        self.held.append(rows)
        sound = f.up.bias is None or bool((f.up.bias.abs() < FAR).all())
        limit = FAR / (2.0**31 * max(float(f.up.scale.abs().max()), 1e-30)) if sound else -1.0
        return {"up_rows": rows.data_ptr(), "up_limit": limit}

    def stage(
        self, name: str, site: SiteForm, tasks: tuple[int, int], norm: NormForm | None, add: int, size: int
    ) -> None:
        """What the prologue of a projection does, and its tasks."""
        by, eps = self.constant(norm.weight if norm else None), norm.eps if norm else 0.0
        row = {"site": self.site(name, site), "norm": by, "norm_eps": eps, "add": add, "size": size}
        row |= {"four": int(tasks[1] > tasks[0] and self.matrices[self.tasks[tasks[0]]["matrix"]]["group"] > 0)}
        self.stages.append(row | {"first_task": tasks[0], "last_task": tasks[1]})

    def block(self, block: BlockPlan, add: int) -> int:
        """A row of the layers, behind the projection `add`; the projection that the next block begins with."""
        a, f = block.attention, block.feedforward
        gates = [m.gate.down for m in a.mixers if isinstance(m, LinearAttentionForm) and m.gate is not None]
        (q, k, v, *downs), tasks = self.projection([a.q, a.k, a.v], *([down] for down in gates))
        self.stage(f"{block.name}.attention.inner", a.inner, tasks, block.attention_norm, add, inputs(a.q))
        begin, left = len(self.mixers), iter(downs)
        for i, mixer in enumerate(a.mixers):
            gated = isinstance(mixer, LinearAttentionForm) and mixer.gate is not None
            self.mixer(mixer, next(left) if gated else -1, f"{block.name}.attention.mixer (form {i})")
        (out,), tasks = self.projection([a.out])
        self.stage(f"{block.name}.attention.outer", a.outer, tasks, a.out_norm, -1, inputs(a.out))
        channels, tasks = self.hidden_channels(f)
        self.stage(f"{block.name}.feedforward.inner", f.inner, tasks, block.feedforward_norm, out, inputs(f.up))
        (down,), tasks = self.projection([f.down])
        hidden = outputs(f.up)
        self.stage(f"{block.name}.feedforward.hidden", f.hidden, tasks, f.hidden_norm, -1, hidden)
        activation = code(f.activation, f"{block.name}.feedforward")
        self.layers.append(
            {"q": q, "k": k, "v": v, "q_norm": self.constant(a.q_norm.weight if a.q_norm else None),
             "k_norm": self.constant(a.k_norm.weight if a.k_norm else None), "q_eps": a.q_norm.eps if a.q_norm else 0.0,
             "k_eps": a.k_norm.eps if a.k_norm else 0.0, "first_mixer": begin, "last_mixer": len(self.mixers),
             "activation": activation, "hidden": hidden, "least": self.constant(f.gate_threshold),
             "up_relu": int(f.up_relu)}
            | channels | self.output_major(f)
        )  # fmt: skip
        return down


def weight_bytes(plan: DecoderPlan) -> int:
    """Bytes of the weights of all blocks."""
    layers = [(block.attention, block.feedforward) for block in plan.blocks]
    forms = [m for a, f in layers for m in (a.q, a.k, a.v, a.out, f.up, f.gate, f.down) if m is not None]
    return sum(m.weight.numel() for m in forms)


def code(activation: str, name: str) -> int:
    """The kernels' code of an activation."""
    if activation not in ACTIVATIONS:
        raise Unsupported(f"the activation {activation!r} has no compiled form ({', '.join(ACTIVATIONS)} have)", name)
    return ACTIVATIONS[activation]


def halves(t: Tensor) -> Tensor:
    """Scales as float16, in which they are stored; `Unsupported` where that would round them."""
    half = t.detach().to(torch.float16).contiguous()
    if not torch.equal(half.float(), t.float()):
        raise Unsupported("scales of 4-bit weights must be float16 numbers")
    return half


def joined_weights(matrices: list[MatrixForm]) -> Tensor:
    """The weights of matrices with the same input as one, input-major: as they lie, or a copy side by side."""
    first, tall = matrices[0].weight, sum(len(m.weight) for m in matrices)
    place, stride = first.data_ptr(), first.stride(1)
    for m in matrices:
        if not is_input_major(m.weight) or m.weight.stride(1) != stride or m.weight.data_ptr() != place:
            return input_major(torch.cat([m.weight for m in matrices]))
        place += len(m.weight)
    if stride != tall:  # a part of something larger
        return input_major(torch.cat([m.weight for m in matrices]))
    return first.as_strided((tall, first.shape[1]), (1, stride))
