"""``fastsnn convert SOURCE --to OUT.snn``: one verb for checkpoints, bundles and weights with a spec."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Convert a trained network (Hugging Face directory, .snn bundle, or safetensors with --spec) to a spiking one."""
    args = argparse.ArgumentParser(prog="fastsnn convert", description=main.__doc__)
    args.add_argument("source", help="a Hugging Face directory, a .snn bundle, or a .safetensors file with --spec")
    args.add_argument("--to", required=True, help="the bundle to write")
    args.add_argument("--neuron", default="adaptive_threshold", help="what makes the spikes")
    args.add_argument("--steps", type=int, help="spike steps that counts must fit into")
    args.add_argument("--code", choices=("bitwise", "unary"), help="what a step carries (bitwise unless given)")
    args.add_argument("--coverage", choices=("projections", "activations"), help="what spikes (networks of layers)")
    args.add_argument("--calibration", help="inputs to choose thresholds on: .npy, or .safetensors of one tensor")
    args.add_argument("--spec", help="the spec (TOML) of the network that the weights belong to")
    args.add_argument("--names", help="names of the weights in the spec: conv1=layers.0,fc=layers.3")
    args.add_argument("--json", action="store_true", help="the report as JSON")
    args.add_argument("--html", help="write the report as an HTML page, too")
    opts = args.parse_args(argv)
    from fastsnn_convert import convert

    options = {key: getattr(opts, key) for key in ("spec", "code", "coverage") if getattr(opts, key) is not None}
    if opts.names:
        options["names"] = dict(pair.split("=", 1) for pair in opts.names.split(","))
    if opts.calibration:
        from fastsnn_convert.weights import read_inputs

        options["calibration"] = read_inputs(opts.calibration)
    done = convert(opts.source, to=opts.to, neuron=opts.neuron, steps=opts.steps, **options)
    if opts.html:
        from fastsnn_core.files import write_text

        page = f'<!doctype html>\n<meta charset="utf-8">\n<title>Conversion of {opts.source}</title>\n'
        write_text(Path(opts.html), page + done.report.html())
    print(done.report.json() if opts.json else f"{done.report.summary()}\n\nwrote {opts.to}")
    return 0
