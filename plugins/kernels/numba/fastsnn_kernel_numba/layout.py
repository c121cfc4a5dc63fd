"""Tables of the fused decoder: records with named fields, and a `pack` that refuses what is missing or unknown.

Kernels read ``w.matrices[m].inputs``; nothing is found by a number. Places in `Workspace.constants`, and rows of other
tables, are counted from 0; -1 stands for none. Addresses are bytes, sizes are elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from typing import Any

import numpy as np

INT, FLOAT, INT8, INT16, INT32, UINT8 = (np.dtype(kind) for kind in ("i8", "f4", "i1", "i2", "i4", "u1"))


def record_type(**fields: np.dtype[Any]) -> np.dtype[Any]:
    """A record type; fields lie as C would have them."""
    return np.dtype(list(fields.items()), align=True)


STATISTICS = {"max_abs": 0, "mean_abs": 1, "rms": 2}  # of `SITE.statistic`
MAX_ABS, MEAN_ABS, RMS = STATISTICS.values()

# A spike site: `fastsnn_core.lowering.SpikeRule`, and where its centre lies among the constants.
SITE = record_type(
    statistic=INT, centre=INT, burst=INT,
    gain=FLOAT, divisor=FLOAT, v_min=FLOAT, v_max=FLOAT, bound=FLOAT, dead_zone=FLOAT,
)  # fmt: skip

# INT8 weights, input-major: one row of `outputs` codes per input, `tall` of which are this matrix's (others may lie
# beside it). `scale` and `bias` are constants; `sums` is where its
# int32 sums begin, of which there are `parts` (of the events: 1, 2 or 4) one after the other, each of the whole
# product's width.
# 4-bit weights have a `group` (of inputs; 0: INT8), and `scales` and `minimums` are addresses of float16 numbers
# [groups, outputs] (0: none); what they come to begins at `sums` of `Workspace.dots`, as float32. Ternary weights have
# a `group` of -1.
MATRIX = record_type(
    address=INT, outputs=INT, tall=INT, inputs=INT, scale=INT, bias=INT, sums=INT, parts=INT, group=INT, scales=INT,
    minimums=INT,
)  # fmt: skip

# A task: `columns` outputs of a matrix from `column` on, for one part of the events; bytes of a row of 4-bit weights.
TASK = record_type(matrix=INT, column=INT, columns=INT, part=INT)

# A projection: what its prologue does (add the matrix `add` to the residual stream, norm, site of `size` channels), its
# tasks, and whether its weights have 4 bits. `add` of the first stage is the embedding's table where that has 4 bits.
STAGE = record_type(site=INT, first_task=INT, last_task=INT, norm=INT, norm_eps=FLOAT, add=INT, size=INT, four=INT)

# A block; its four stages are rows 4·l … 4·l + 3 of the stages. Matrices, norms per head, mixers first … last; `least`
# are the thresholds of the gates, -1 for none. A task of a step of one row computes `block` hidden channels (0: of
# weights that come from memory, of 4 and of 2 bits it computes sums, and hidden channels are a phase of their own).
# Where gates shut exactly, `up_rows` is the address of the weights of `up` output-major (else 0), `up_limit` the V up
# to which nothing of `up` can overflow, and `up_task` the first of its tasks, one for each block, where gates are a
# phase of their own (else -1).
LAYER = record_type(
    q=INT, k=INT, v=INT, q_norm=INT, k_norm=INT, q_eps=FLOAT, k_eps=FLOAT, first_mixer=INT, last_mixer=INT,
    up=INT, gate=INT, activation=INT, hidden=INT, least=INT, up_relu=INT, block=INT, up_task=INT, up_rows=INT,
    up_limit=FLOAT,
)  # fmt: skip

# An attention: `feature` -1 for softmax. Linear ones: S and z times `keep` per token where it `fades`, or times a gate.
MIXER = record_type(
    feature=INT, rotary=INT, window=INT, gate_down=INT, gate_up=INT, norm=INT, fades=INT,
    norm_eps=FLOAT, tau=FLOAT, floor=FLOAT, keep=FLOAT, eps=FLOAT, query_scale=FLOAT,
)  # fmt: skip

# A mixer's state in one stream: addresses of (S, z) or (keys, values), slots of the cache, tokens seen.
STATE = record_type(first=INT, second=INT, capacity=INT, seen=INT)

# What a row of spikes came to: events, whether its sums need 64 bits, what is wrong (`NOT_FINITE`, …), and where. In a
# step of several rows also whether it goes the dense way, with which sum of counts; its events are the rest then.
# `small`: its counts, in `Workspace.narrow`, fit 16 bits.
ROW = record_type(events=INT, wide=INT, problem=INT, site=INT, dense=INT, total=INT, small=INT)
NOT_FINITE, GATE_NOT_FINITE = 1, 2

# Arrays of a `Work`: type, in the order of its fields.
ARRAYS: dict[str, np.dtype[Any]] = {
    "sync": INT,  # counters of the phases
    "layers": LAYER,
    "stages": STAGE,  # [4 L + 1]
    "matrices": MATRIX,
    "tasks": TASK,
    "sites": SITE,
    "mixers": MIXER,
    "constants": FLOAT,  # scales, biases, norms, centres
    "codes": INT8,  # the embedding's table; empty where it is floats
    "table": FLOAT,  # its scales, or its rows
    "row": ROW,  # [1]
    "threshold": FLOAT,  # [1] V of the latest spikes
    "x": FLOAT,  # residual stream [D]
    "y": FLOAT,  # what becomes spikes
    "z": FLOAT,  # hidden channels before their activation
    "hidden": FLOAT,  # and behind it
    "mixed": FLOAT,  # outputs of the mixers [H · n · K]
    "counts": INT32,  # of a row
    "index": INT32,  # of its events: inputs
    "count": INT32,  # of its events: counts
    "acc": INT16,  # of every worker: running sums
    "sums": INT32,
    "sums_64": INT,
    "dots": FLOAT,  # what 4-bit products come to, before V and bias
    "acc_64": INT,  # of every worker: sums of a group of 4-bit weights that 16 bits do not hold
    "lists": INT,  # of every worker: events of two groups of 4-bit weights by pairs
    "heads": FLOAT,  # of every worker: one group of heads
    "folds": FLOAT,  # of every worker: partial sums
    "logits": FLOAT,
    "gates": INT32,  # of every worker: sums of gates
    "narrow": INT16,  # counts in front of a gate, input by input
    "ways": INT,  # of every layer: blocks of hidden channels whose `up` was computed behind open gates only, and others
    "count_bytes": INT8,  # of a row that goes the dense way: its counts
}
PLACES = record_type(**{f"{name}_{part}": INT for name in ARRAYS for part in ("at", "size")})

# A row of a step: the states of its stream, the token it takes and where that stands; of how many rows of the stream it
# is the first (0: another one is), and the stream's next row (-1: none).
STREAM = record_type(state_at=INT, state_size=INT, token=INT, position=INT, run=INT, next=INT)

# A call: places of the PLACES and of the STREAMs, one of each per row (a single row has the places of
# `fastsnn_kernel_numba.fused_decoder_single`), and how many of the first rows want logits; `pieces` of a key/value
# head's queries that are tasks of their own;
# scores, rotary tables, sizes. Of several rows
# also the flags of inputs that any of them has an event of, every worker's places in the rows' lists of events and its
# room for dense products, and the shares of active inputs, of a row and of all, from which a row goes the dense way;
# and what a weight of `up` read behind an open gate costs, in weights read by events.
CALL = record_type(
    places=INT, streams=INT, rows=INT, wanted=INT, score_at=INT, score_size=INT, cos_at=INT, sin_at=INT,
    angles_size=INT, n_heads=INT, n_kv_heads=INT, head_dim=INT, head_room=INT, fold_room=INT, widest=INT, workers=INT,
    pieces=INT,
    used_at=INT, used_size=INT, cursor_at=INT, dense_at=INT, softmax_scale=FLOAT, dense_from=FLOAT,
    dense_least=FLOAT, open_cost=FLOAT,
)  # fmt: skip


# One INT8 product of a row of spikes (`fastsnn_kernel_numba.gemv_events`): addresses (scale and threshold 0 for sums in
# 64 bits), the type of the counts, sizes, parts of the events, workers.
GEMV = record_type(
    counts=INT, kind=INT, weight=INT, scale=INT, threshold=INT, out=INT, inputs=INT, outputs=INT, width=INT, parts=INT,
    workers=INT,
)  # fmt: skip

# A product of rows of spikes with ternary weights (`fastsnn_kernel_numba.ternary_linear`): addresses, the type of the
# counts and its bytes, sizes; bytes of a weight row, in how many of them are codes, of a task, of a worker's memory.
TERNARY = record_type(
    counts=INT, kind=INT, size=INT, weight=INT, scale=INT, out=INT, rows=INT, inputs=INT, outputs=INT, stride=INT,
    real=INT, step=INT, memory=INT,
)  # fmt: skip


def packer(kind: np.dtype[Any]) -> Callable[..., None]:
    """``into(buffer, offset, **fields)``: a record of whole numbers, packed without NumPy (a microsecond)."""
    names = kind.names or ()
    pack_into = Struct(f"{len(names)}q").pack_into

    def into(buffer: Any, offset: int, **fields: int) -> None:
        if len(fields) != len(names):
            raise TypeError(f"wanted {', '.join(names)}; got {', '.join(fields)}")
        pack_into(buffer, offset, *[fields[name] for name in names])

    return into


def pack(kind: np.dtype[Any], rows: Iterable[Mapping[str, Any]]) -> np.ndarray[Any, Any]:
    """Records of dicts that have exactly the fields of `kind`, whole numbers where it has whole numbers."""
    rows = list(rows)
    out = np.zeros(len(rows), kind)
    for i, row in enumerate(rows):
        wanted, given = set(kind.names or ()), set(row)
        if wanted != given:
            raise TypeError(f"missing {sorted(wanted - given)}, unknown {sorted(given - wanted)}")
        for name, value in row.items():
            if kind[name].kind == "i" and int(value) != value:
                raise TypeError(f"{name} is {value!r}, no whole number")
            out[i][name] = value
    return out
