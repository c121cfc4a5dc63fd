"""C99 text of a `nir_graph` model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastsnn_model_nir_graph.units import STATEFUL

POINTWISE = ("Scale", "Threshold", "I", "IF", "LI", "LIF", "CubaLI", "CubaLIF")
NODES = ("Pass", "Linear", "Affine", "Conv2d", "AvgPool2d", "SumPool2d", "Flatten", *POINTWISE)


def array(name: str, t: Tensor) -> str:
    """``static const float name[n] = {…};`` with exact (hexadecimal) numbers."""
    values = ", ".join(float(v).hex() + "f" for v in t.detach().float().flatten())
    return f"static const float {name}[{t.numel()}] = {{{values}}};"


def header(model: Any, name: str) -> str:
    """The whole header."""
    shapes = model.spec.shapes()
    index = {"input": "x"} | {n.name: f"v{i}" for i, n in enumerate(model.spec.nodes)}
    constants, state, resets, body = [], [], [], []
    for node_name in model.order:
        if node_name == "input":
            continue
        i = model.where[node_name]
        unit, size = model.units[i], math.prod(shapes[node_name])
        before = next(shapes[s] for s in unit.spec.sources if (s, node_name) not in model.late)
        sources = [f"s->late_{index[s]}" if (s, node_name) in model.late else index[s] for s in unit.spec.sources]
        body.append(f"    float in{i}[{math.prod(before)}], v{i}[{size}]; /* {node_name}: {unit.kind} */")
        body.append(
            f"    for (int j = 0; j < {math.prod(before)}; j++) in{i}[j] = "
            + " + ".join(f"{s}[j]" for s in sources)
            + ";"
        )
        made, lines = node(unit, i, size, before, shapes[node_name])
        constants += made
        body += [f"    {line}" for line in lines]
        if unit.kind in STATEFUL:
            for part in ("i", "m") if unit.kind.startswith("Cuba") else ("m",):
                state.append(f"float {part}{i}[{size}];")
                resets.append(f"for (int j = 0; j < {size}; j++) s->{part}{i}[j] = 0.0f;")
    fresh = model.start(torch.zeros(1, *model.spec.input))
    for source in sorted({s for s, _ in model.late}):
        size = math.prod(shapes[source])
        state.append(f"float late_{index[source]}[{size}];")
        constants.append(array(f"silent_{index[source]}", fresh[f"{source} (last step)"]))
        resets.append(f"for (int j = 0; j < {size}; j++) s->late_{index[source]}[j] = silent_{index[source]}[j];")
        body.append(f"    for (int j = 0; j < {size}; j++) s->late_{index[source]}[j] = {index[source]}[j];")
    size_out = math.prod(shapes[model.spec.output])
    body.append(f"    for (int j = 0; j < {size_out}; j++) y[j] = {index[model.spec.output]}[j];")
    guard = f"{name.upper()}_H"
    lines = [
        f"/* {name}: {len(model.spec.nodes)} nodes, a step is {model.spec.dt:g} s. */",
        f"#ifndef {guard}", f"#define {guard}",
        f"enum {{ {name}_inputs = {math.prod(model.spec.input)}, {name}_outputs = {size_out} }};",
        *constants,
        "typedef struct {", *(f"    {line}" for line in state or ["char nothing;"]), f"}} {name}_state;",
        f"static void {name}_reset({name}_state *s) {{", *(f"    {line}" for line in resets or ["(void)s;"]), "}",
        f"static void {name}_step({name}_state *s, const float *x, float *y) {{",
        "    (void)s;", *body, "}", "#endif", "",
    ]  # fmt: skip
    return "\n".join(lines)


def node(unit: Any, i: int, size: int, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """``(constants, lines)`` that make ``v{i}`` of ``in{i}``."""
    kind, each = unit.kind, f"for (int j = 0; j < {size}; j++)"
    if kind in ("Pass", "Flatten"):
        return [], [f"{each} v{i}[j] = in{i}[j];"]
    if kind in ("Linear", "Affine"):
        columns = before[-1]
        made = [array(f"w{i}", unit.weight)] + ([] if unit.bias is None else [array(f"b{i}", unit.bias)])
        rows, begin = after[-1], "0.0f" if unit.bias is None else f"b{i}[o]"
        return made, [
            f"for (int p = 0; p < {size // rows}; p++) for (int o = 0; o < {rows}; o++) {{",
            f"    float a = 0.0f; for (int j = 0; j < {columns}; j++)",
            f"        a += w{i}[o * {columns} + j] * in{i}[p * {columns} + j];",
            f"    v{i}[p * {rows} + o] = a + {begin};", "}",
        ]  # fmt: skip
    if kind in ("Conv2d", "AvgPool2d", "SumPool2d"):
        return windowed(unit, i, before, after)
    return neuron(unit, i, each)


def neuron(unit: Any, i: int, each: str) -> tuple[list[str], list[str]]:
    """Pointwise nodes: constants of one number per channel."""
    kind = unit.kind
    if kind in ("Scale", "Threshold"):
        made = [array(f"c{i}", unit.get_buffer(kind.lower()))]
        return made, [
            f"{each} v{i}[j] = " + (f"in{i}[j] * c{i}[j];" if kind == "Scale" else f"in{i}[j] - c{i}[j] > 0.0f;")
        ]
    made, lines = [array(f"r{i}", unit.get_buffer("r"))], ["{"]
    x = f"in{i}[j]"
    if kind.startswith("Cuba"):
        made += [array(f"as{i}", unit.dt / unit.get_buffer("tau_syn")), array(f"wi{i}", unit.get_buffer("w_in"))]
        lines.append(f"s->i{i}[j] = s->i{i}[j] + as{i}[j] * (wi{i}[j] * {x} - s->i{i}[j]);")
        x = f"s->i{i}[j]"
    if kind in ("I", "IF"):
        lines.append(f"float u = s->m{i}[j] + r{i}[j] * {x};")
    else:
        tau = unit.get_buffer("tau_mem" if kind.startswith("Cuba") else "tau")
        made += [array(f"a{i}", unit.dt / tau), array(f"l{i}", unit.get_buffer("v_leak"))]
        lines.append(f"float u = s->m{i}[j] + a{i}[j] * (l{i}[j] - s->m{i}[j] + r{i}[j] * {x});")
    if kind in ("IF", "LIF", "CubaLIF"):
        made += [array(f"t{i}", unit.get_buffer("v_threshold")), array(f"z{i}", unit.get_buffer("v_reset"))]
        lines.append(f"v{i}[j] = u - t{i}[j] > 0.0f; s->m{i}[j] = v{i}[j] > 0.5f ? z{i}[j] : u;")
    else:
        lines.append(f"v{i}[j] = s->m{i}[j] = u;")
    return made, [each + " " + " ".join([*lines, "}"])]


def windowed(unit: Any, i: int, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Convolutions and pools over ``[C, H, W]``."""
    s, conv = unit.spec, unit.kind == "Conv2d"
    (_, h, w), (co, ho, wo) = before, after
    kh, kw = s.shape[2:] if conv else s.kernel
    dh, dw = s.dilation if conv else (1, 1)
    per = s.shape[1] if conv else 1
    made = [array(f"w{i}", unit.weight)] if conv else []
    if conv and unit.bias is not None:
        made.append(array(f"b{i}", unit.bias))
    factor = f"w{i}[((o * {per} + q) * {kh} + a) * {kw} + b] * " if conv else ""
    first = f"o / {co // s.groups} * {per} + q" if conv else "o"
    end = (
        (f" + b{i}[o]" if unit.bias is not None else "")
        if conv
        else (f" / {kh * kw}.0f" if unit.kind == "AvgPool2d" else "")
    )
    return made, [
        f"for (int o = 0; o < {co}; o++) for (int r = 0; r < {ho}; r++) for (int k = 0; k < {wo}; k++) {{",
        f"    float t = 0.0f; for (int q = 0; q < {per}; q++)",
        f"    for (int a = 0; a < {kh}; a++) for (int b = 0; b < {kw}; b++) {{",
        f"        int yy = r * {s.stride[0]} - {s.padding[0]} + a * {dh};",
        f"        int xx = k * {s.stride[1]} - {s.padding[1]} + b * {dw};",
        f"        if (yy >= 0 && yy < {h} && xx >= 0 && xx < {w})",
        f"            t += {factor}in{i}[(({first}) * {h} + yy) * {w} + xx];",
        "    }", f"    v{i}[(o * {ho} + r) * {wo} + k] = t{end};", "}",
    ]  # fmt: skip
