"""``fastsnn convert SOURCE --to OUT.snn``: one verb for checkpoints, bundles and weights with a spec."""

from __future__ import annotations

from pathlib import Path

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, number

WORDS = (
    "k", "burst", "attention", "place", "attention_window", "heal", "heal_minutes", "heal_steps", "out", "resume",
    "window", "windows", "thorough", "quiet",
)  # fmt: skip
KEYS = ("spec", "code", "coverage", "dt", "writer")


def main(argv: list[str]) -> int:
    """Convert a trained network (Hugging Face directory, .snn bundle, or safetensors with --spec) to a spiking one."""
    args = Parser("convert", main.__doc__)
    args.add_argument(
        "source",
        help="a Hugging Face directory, a .gguf file, a .nir graph, a .snn bundle, or a .safetensors file with --spec",
    )
    args.add_argument("--to", required=True, help="the bundle to write")
    args.add_argument("--neuron", help="what makes the spikes (adaptive_threshold; with --steps adaptive_max)")
    args.add_argument("--steps", type=number(int, ge=1), help="spike steps that counts must fit into")
    args.add_argument("--code", choices=("bitwise", "unary"), help="what a step carries (bitwise unless given)")
    args.add_argument(
        "--coverage",
        choices=("projections", "activations", "boundaries"),
        help="what spikes: inputs of projections; behind activations (networks of layers); SpikingJelly's boundaries "
        "(language models)",
    )
    args.add_argument(
        "--calibration",
        help="inputs to choose thresholds on: .npy, or .safetensors of one tensor; for language models text",
    )
    args.add_argument("--spec", help="the spec (TOML) of the network that the weights belong to")
    args.add_argument("--dt", type=number(float, gt=0), help="seconds of a step of a .nir graph (default 1e-4)")
    args.add_argument("--writer", help="the toolkit that wrote a .nir graph, where it runs it otherwise: norse, sinabs")
    args.add_argument("--names", help="names of the weights in the spec: conv1=layers.0,fc=layers.3")
    words = args.add_argument_group("language models (a Hugging Face directory or a GGUF file)")
    words.add_argument(
        "--k", type=number(float, gt=0), help="mean count per channel (adaptive_threshold; 3 unless given)"
    )
    words.add_argument(
        "--windows", type=number(int, ge=1), help="windows of text to calibrate on (default: what a minute pays for)"
    )
    words.add_argument("--window", type=number(int, ge=2), help="tokens of such a window (default 512)")
    words.add_argument("--thorough", action="store_true", help="measure every site's cost, not only the ten worst")
    words.add_argument(
        "--burst", type=number(int, ge=0), help="channels per token that may need more than --steps (adaptive_max)"
    )
    words.add_argument("--attention", help="replace attentions: hybrid_alt, gla, … or a list over layers: gla,softmax")
    words.add_argument("--place", choices=("cycle", "sensitivity"), help="which layers get which attention")
    words.add_argument("--attention-window", type=number(int, ge=1), help="tokens that sliding windows see")
    words.add_argument(
        "--heal",
        metavar="DATA",
        help="a text file (or inputs, .npy) to heal on; without it the dense model writes text",
    )
    words.add_argument("--heal-minutes", type=number(float, gt=0), help="learn from the dense model for so long")
    words.add_argument("--heal-steps", type=number(int, ge=1), help="or for so many steps")
    words.add_argument(
        "--lora", type=number(int, ge=1), help="heal with low-rank additions of this rank only (needs peft)"
    )
    words.add_argument("--out", help="a folder for checkpoints of the healing run")
    words.add_argument("--resume", action="store_true", help="go on from the newest of them")
    args.add_argument("--quiet", action="store_true", help="no progress bars")
    args.add_argument("--json", action="store_true", help="the report as JSON")
    args.add_argument("--html", help="write the report as an HTML page, too")
    opts = args.parse_args(argv)
    targets.existing(opts.source)
    given = [s for s in (opts.source, opts.spec, opts.calibration, opts.heal) if s]
    targets.bundle(opts.to, given, "--to")
    if opts.html:
        targets.file(opts.html, [*given, opts.to], "--html", (".html", ".htm"))
    for option in ("spec", "heal"):
        if getattr(opts, option):
            targets.existing_file(getattr(opts, option), f"--{option}")
    if opts.heal and Path(opts.heal).suffix in ("", ".txt", ".md"):
        targets.read_text(opts.heal, "--heal")
    if opts.out:
        targets.folder(opts.out, [opts.source], "--out")
    from fastsnn_convert import convert

    options = {key: getattr(opts, key) for key in KEYS if getattr(opts, key) is not None}
    words_given = {key: value for key in WORDS if (value := getattr(opts, key)) is not None and value is not False}
    if opts.attention and "," in opts.attention:
        words_given["attention"] = opts.attention.split(",")
    if opts.lora is not None:
        words_given["healing"] = {"lora": opts.lora}
    options |= words_given
    if opts.names:
        pairs = [pair.partition("=") for pair in opts.names.split(",")]
        if not all(a.strip() and b.strip() for a, _, b in pairs):
            args.error(f"--names takes pairs such as conv1=layers.0,fc=layers.3, got {opts.names!r}")
        options["names"] = {a.strip(): b.strip() for a, _, b in pairs}
    if opts.calibration and Path(opts.calibration).suffix not in (".npy", ".safetensors"):
        options["calibration"] = opts.calibration
    elif opts.calibration:
        from fastsnn_convert.modules.weights import read_inputs

        options["calibration"] = read_inputs(opts.calibration)
    if opts.heal and Path(opts.heal).suffix in (".npy", ".safetensors"):
        from fastsnn_convert.modules.weights import read_inputs

        options["heal"] = read_inputs(opts.heal)
    if opts.steps is not None:
        options["steps"] = opts.steps
    done = convert(opts.source, to=opts.to, neuron=opts.neuron, **options)
    if opts.html:
        from fastsnn_core.files import write_text

        write_text(Path(opts.html), done.report.page())
    print(done.report.json() if opts.json else f"{done.report.summary()}\n\nwrote {opts.to}")
    return 0
