"""The map's figures against a recount that shares no code with it; exports; two bundles; the live view."""

from __future__ import annotations

import csv
import json
import threading
import urllib.error
import urllib.request

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_core import SpikeSite, build, create, load, ops, save
from fastsnn_scope import report, scope
from fastsnn_scope.cells import without_spikes
from fastsnn_scope.command import main
from fastsnn_scope.live import RunLog, server
from fastsnn_scope.payload import payload
from fastsnn_scope.weights import matrices

decoder = pytest.importorskip("fastsnn_model_decoder").Decoder
TEXT = "Once upon a time a neuron was silent, and nobody read its row."


def model_of(seed=0, **more):
    torch.manual_seed(seed)
    return build(decoder(d_model=32, n_layers=2, n_heads=2, **more)).eval()


def recount(model, tokens):
    """Counts of every site by a hook on the site itself, and what stands behind each by the decoder's own structure."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, SpikeSite) and module.neuron is not None:
            handles.append(module.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out[0]})))
    with torch.no_grad():
        logits = model(tokens)
    for handle in handles:
        handle.remove()
    behind = {}
    for i, layer in enumerate(model.layers):
        linear = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
        size = {n: m.weight.numel() * 4 for n, m in linear.items()}
        # by the field's names: up and gate read the block's input, down the hidden channels
        inner = sum(s for n, s in size.items() if n in ("feedforward.up", "feedforward.gate"))
        behind[f"layers.{i}.feedforward.inner"] = inner
        behind[f"layers.{i}.feedforward.hidden"] = size["feedforward.down"]
    return seen, behind, logits


def test_the_figures_equal_a_recount():
    model = model_of()
    look = scope(model, text=TEXT, scopes=[])
    found, tokens = look.data(), look.inputs
    seen, behind, logits = recount(model, tokens)
    rows = {r["site"]: r for r in found["cells"]["sites"]}
    assert set(rows) == set(seen)
    for name, spikes in seen.items():
        counts = spikes.counts[0].long()
        assert rows[name]["active"] == [int((row != 0).sum()) for row in counts]
        bits = [sum(bin(abs(c)).count("1") for c in row) for row in counts.tolist()]
        assert rows[name]["spikes"] == bits
        assert rows[name]["silent_fraction"] == pytest.approx(float((counts == 0).double().mean()))
        if name in behind:
            assert rows[name]["weight_bytes"] == behind[name]
    # all matrices that a token reads whole: every linear layer, and the table that is the head
    whole = (
        sum(m.weight.numel() * 4 for m in model.modules() if isinstance(m, nn.Linear)) + model.embed.weight.numel() * 4
    )
    assert found["cells"]["weight_bytes"] == whole
    saved = {r["key"]: r["number"] for r in found["saved"]}
    silent = sum(rows[n]["weight_bytes"] * float((s.counts[0] == 0).double().mean()) for n, s in seen.items())
    assert saved["silent_bytes"] == pytest.approx(silent / whole)
    assert saved["bytes_read"] == pytest.approx(whole - silent)
    held = {m: m.neuron for m in model.modules() if isinstance(m, SpikeSite)}
    for m in held:
        m.neuron = None
    with torch.no_grad():
        dense = model(tokens)
    for m, neuron in held.items():
        m.neuron = neuron
    p, q = dense[0].double().softmax(-1), logits[0].double().softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1)
    assert found["divergence"]["kl"] == pytest.approx(kl.tolist(), abs=2e-5)
    nats = float(F.cross_entropy(logits[0, :-1], tokens[0, 1:]))
    assert found["divergence"]["nats"] == pytest.approx(nats, rel=1e-4)
    assert found["faults"] == []


def test_matrices_of_eight_bits_are_weighed_and_looked_up_tables_are_not(tmp_path):
    pytest.importorskip("fastsnn_exporter_w8a")
    small = load(create("exporter", "w8a").export(model_of(), tmp_path / "small.snn"))
    with ops.use("naive"):  # no kernel is compiled for this
        read = matrices(small, torch.arange(2)[None])
    sites = [m for n, m in small.named_modules() if isinstance(m, SpikeSite) and m.neuron is not None]
    assert len({m.site for m in read} - {""}) == len(sites)
    layers = dict(small.named_modules())
    assert len({m.layer for m in read}) == len(read)
    for m in read:
        assert m.nbytes == layers[m.layer].weight.numel() + layers[m.layer].scale.numel() * 4
        assert m.inputs == layers[m.layer].in_features
    assert [m.layer for m in read][-1] == "embed"  # as the head, once; looking tokens up reads no matrix


def test_dead_saturated_constant_and_outlier_channels_are_told_apart():
    from fastsnn_scope.channels import problems

    class Limited(nn.Module):
        hi = 4

    counts = (
        torch.randint(1, 3, (1, 50, 16)).float()
        * torch.randint(0, 2, (1, 50, 16))
        * (1 - 2 * torch.randint(0, 2, (1, 50, 16)))
    )
    counts[..., 0] = 0
    counts[..., 1] = 4
    counts[..., 2] = 100
    counts[:, ::2, 3], counts[:, 1::2, 3] = 100, -100
    record = type("R", (), {"spikes": type("S", (), {"counts": counts})(), "module": Limited()})()
    found = {p["kind"]: p["channels"] for p in problems(record)}
    assert found["dead"] == [0]
    assert 1 in found["saturated"]
    assert found["constant"] == [2]
    assert found["outlier"] == [3]


def test_the_payload_keeps_its_room_and_ends_no_script():
    look = scope(model_of(), text="</script><b>" * 8, scopes=[])
    found = look.data()
    found["model"]["name"] = "</script><script>alert(1)</script>"
    roomy = payload(found, look.arrays, 2_000_000)
    assert "</script" not in roomy.lower()
    told = json.loads(roomy)
    assert told["a"]["name"] == found["model"]["name"]
    assert len(told["places"]) == len(found["cells"]["sites"])
    bare = len(payload(found, None, 0))
    tight = payload(found, look.arrays, bare + 6000)
    assert len(tight) <= bare + 6100
    assert "blob" not in json.loads(payload(found, look.arrays, bare + 10))


def test_neurons_come_back_after_the_pass_without_spikes():
    model = model_of()
    before = [m.neuron for m in model.modules() if isinstance(m, SpikeSite)]
    with pytest.raises(RuntimeError), without_spikes(model):
        raise RuntimeError
    after = [m.neuron for m in model.modules() if isinstance(m, SpikeSite)]
    assert all(a is b for a, b in zip(before, after))


def test_csv_svg_and_trace(tmp_path, capsys):
    bundle = save(model_of(), tmp_path / "m.snn")
    files = {n: tmp_path / f"x.{n}" for n in ("csv", "svg", "perfetto")}
    words = [w for n, p in files.items() for w in (f"--{n}", str(p))]
    assert main([str(bundle), "--text", TEXT, "--scope", "raster", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(files["csv"].open()))
    assert [r["site"] for r in rows] == [r["site"] for r in found["cells"]["sites"]]
    unread = sum(float(r["unread_bytes_per_column"]) for r in rows)
    saved = {r["key"]: r["number"] for r in found["saved"]}
    assert unread == pytest.approx(found["cells"]["weight_bytes"] - saved["bytes_read"], rel=1e-3)
    import xml.etree.ElementTree as ElementTree

    drawn = ElementTree.parse(files["svg"]).getroot()
    assert drawn.tag.endswith("svg")
    events = json.loads(files["perfetto"].read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert {"call 0", "layers.0.feedforward.down"} <= {e["name"] for e in slices}
    assert all(e["dur"] >= 0 for e in slices)
    calls = [e for e in slices if e["name"].startswith("call ")]
    layers = [e for e in slices if not e["name"].startswith("call ")]
    assert all(
        any(c["ts"] - 1 <= e["ts"] and e["ts"] + e["dur"] <= c["ts"] + c["dur"] + 1 for c in calls) for e in layers
    )


def test_tensorboard_has_every_site_at_the_trained_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = model_of()
    model.meta = {"milestones": [{"what": "fit", "steps": 30}, {"what": "tune"}, {"what": "fit", "steps": 12}]}
    look = scope(model, text=TEXT, scopes=["sparsity"])
    events = EventAccumulator(str(look.tensorboard(tmp_path / "tb")))
    events.Reload()
    for r in look.data()["cells"]["sites"]:
        (one,) = events.Scalars(f"silent_fraction/{r['site']}")
        assert (one.step, one.value) == (42, pytest.approx(r["silent_fraction"]))
        (one,) = events.Scalars(f"unread_bytes/{r['site']}")
        assert one.value == pytest.approx(r["row_bytes"] * r["channels"] * r["silent_fraction"], rel=1e-3)
    said = {r["key"]: r["number"] for r in look.data()["saved"] if r["number"] is not None}
    assert {tag.removeprefix("saved/") for tag in events.Tags()["scalars"] if tag.startswith("saved/")} == set(said)


def test_the_curve_of_tuning_stands_in_the_report(tmp_path):
    model = model_of()
    assert "<h3>Tuned" not in (report(model, tmp_path / "plain", text=TEXT, scopes=[]) / "index.html").read_text()
    points = [[0.1, 10.0], [0.3, 10.5], [0.6, 12.0]]
    curve = {"x": "silent bytes", "y": "perplexity <b>", "points": points, "chosen": [0.3, 10.5]}
    model.meta = {"milestones": [{"what": "tune", "curve": curve}]}
    folder = report(model, tmp_path / "tuned", text=TEXT, scopes=[])
    page = (folder / "index.html").read_text()
    drawn = page[page.index("<h3>Tuned") :].split("</svg>")[0]
    assert drawn.count('r="2.5"') == 3
    assert drawn.count('r="6"') == 1
    assert "perplexity <b>" not in page
    assert json.loads((folder / "report.json").read_text())["tuned"]["points"] == points


def test_two_bundles_stand_beside_each_other(tmp_path, capsys):
    a = save(model_of(), tmp_path / "a.snn")
    b = save(model_of(neuron=create("neuron", "adaptive_threshold", k=1.0)), tmp_path / "b.snn")
    out = tmp_path / "ab"
    assert main([str(a), "--beside", str(b), "--text", TEXT, "--scope", "raster", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    html = (out / "index.html").read_text("utf-8")
    told = json.loads(html.split('id="data">', 1)[1].split("</script>", 1)[0])
    one, two = ({r["key"]: r["number"] for r in told[k]["saved"]} for k in "ab")
    assert two["silent_bytes"] > one["silent_bytes"]
    assert "b.snn: better by" in html
    assert [r["site"] for r in told["a"]["cells"]["sites"]] == [r["site"] for r in told["b"]["cells"]["sites"]]


def test_the_live_view_serves_new_rows_to_this_machine_alone(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 3.5, "silent_sites": {"a</script>": 0.25}}\n{"step": 2, "loss": 3.0}\n{"st')
    run = RunLog(tmp_path)
    assert [r["step"] for r in run.rows()] == [1, 2]  # the third is still being written
    with server(run, 0) as handle:
        thread = threading.Thread(target=handle.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{handle.server_port}"
        try:
            page = urllib.request.urlopen(url + "/").read().decode()
            assert "connect-src 'self'" in page
            assert page.lower().count("</script>") == 2
            log.write_text('{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 3.0}\n{"step": 3, "loss": 2.5, "x": NaN}\n')
            rows = json.loads(urllib.request.urlopen(url + "/rows?after=2").read())
            assert rows == [{"step": 3, "loss": 2.5}]
            elsewhere = urllib.request.Request(url + "/rows", headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(elsewhere)
        finally:
            handle.shutdown()
            thread.join()
    assert main(["--live", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out.strip().endswith("page/index.html")
    assert "connect-src" not in (tmp_path / "page" / "index.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give a bundle"),
        (["--live", "."], "holds no log.jsonl"),
        (["m.snn", "--live", "."], "takes a run's folder and no bundle"),
        (["m.snn", "--port", "1"], "--port goes with --live"),
    ],
)
def test_what_the_command_refuses(words, says, tmp_path, monkeypatch, capsys):
    from fastsnn_core.cli import main as fastsnn

    monkeypatch.chdir(tmp_path)
    try:
        assert fastsnn(["scope", *words]) == 2
    except SystemExit as stopped:
        assert stopped.code == 2
    assert says in capsys.readouterr().err
