"""Less memory over time: the gradients that are promised, and memory that does not grow with T."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastsnn_core import create
from fastsnn_core.errors import FastSNNError
from fastsnn_model_sequential import Layer, Sequential
from fastsnn_train import TrainConfig, Trainer, sample_data
from fastsnn_train.loop.optimizer_step import OptimizerStep
from fastsnn_train.loop.parallel import World
from fastsnn_train.samples import online, segments
from fastsnn_train.samples.task import SampleTask

LIF = create("neuron", "lif", fixed=True)
OBJECTIVE = create("objective", "cross_entropy")
STEPWISE = create("objective", "cross_entropy", readout="step")


def network(*more, width=5, hidden=12, classes=3, neuron=LIF):
    torch.manual_seed(0)
    layers = (Layer(op="linear", size=hidden), *more, Layer(op="spikes", neuron=neuron))
    layers += (Layer(op="linear", size=hidden), Layer(op="spikes", neuron=neuron), Layer(op="linear", size=classes))
    return Sequential(input=(width,), layers=layers).build().double().train()


def gradients(model, x, y, objective=OBJECTIVE, kind="classification", weights=None, **settings):
    """Of one training step's loss; and that loss."""
    step = OptimizerStep(model, TrainConfig(precision="fp32", **settings), World())
    step.task = SampleTask(kind, objective, weights=weights)
    step.targets = step.task.weight((x, y))
    from fastsnn_train.loop.activation_sparsity import record_activations
    from fastsnn_train.loop.firing_rate import watch

    model.zero_grad()
    with (
        watch(model, health=False, rates=False) as seen,
        record_activations(model, (), magnitudes=False, reads=False) as sparse,
    ):
        loss, _ = step.backward(x, y, (seen, sparse), 0, eager=True)
    return [p.grad.clone() for p in model.parameters()], loss


def samples(steps=20, batch=4):
    torch.manual_seed(1)
    return torch.randn(batch, steps, 5).double() * 2, torch.arange(batch) % 3


@pytest.mark.parametrize("length", [1, 6, 20, 64])
@pytest.mark.parametrize("kind", ["classification", "labelling"])
def test_checkpoints_over_time_keep_the_gradients(length, kind):
    model, (x, y) = network(), samples()
    y = y if kind == "classification" else torch.randint(0, 3, x.shape[:2])
    whole, wanted = gradients(model, x, y, kind=kind)
    found, loss = gradients(model, x, y, kind=kind, checkpoint_time=length)
    assert loss == pytest.approx(wanted, abs=1e-12)
    for a, b in zip(found, whole):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_truncated_gradients_stop_between_segments_and_states_go_on():
    model, (x, y) = network(), samples()
    found, loss = gradients(model, x, y, tbptt=8)
    model.zero_grad()
    state, total = None, 0.0
    for piece in x.split(8, 1):
        out, state = model(piece, state, return_state=True)
        part = F.cross_entropy(out.mean(1), y) * piece.shape[1] / 20
        part.backward()
        total += part.item()
        state = {k: v.detach() for k, v in state.items()}
    for a, p in zip(found, model.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(total, abs=1e-12)
    whole, _ = gradients(model, x, y)
    assert any(not torch.allclose(a, b) for a, b in zip(found, whole))
    same, _ = gradients(model, x, y, tbptt=64)
    for a, b in zip(same, whole):
        torch.testing.assert_close(a, b)


def test_labels_of_every_step_go_with_their_segment():
    model, (x, _) = network(), samples()
    y = torch.randint(0, 3, x.shape[:2])
    y[0, 3:9] = -100
    whole, wanted = gradients(model, x, y, kind="labelling")
    found, loss = gradients(model, x, y, kind="labelling", tbptt=64)
    _, cut = gradients(model, x, y, kind="labelling", tbptt=7)
    assert loss == pytest.approx(wanted, abs=1e-12)
    assert cut == pytest.approx(wanted, abs=1e-12)  # the same steps count the same
    for a, b in zip(found, whole):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rule", ["sltt", "ottt"])
def test_an_online_rule_is_its_formula(rule):
    """δ_t sᵀ or δ_t âᵀ of two leaky layers, written out."""
    model, (x, y) = network(), samples(steps=9)
    found, _ = gradients(model, x, y, STEPWISE, online=rule)
    w1, b1, w2, b2, w3, b3 = (p.detach() for p in model.parameters())
    wanted = [torch.zeros_like(p) for p in model.parameters()]
    v1 = v2 = torch.zeros(4, 12).double()
    traces = [torch.zeros(4, 5).double(), torch.zeros(4, 12).double(), torch.zeros(4, 12).double()]
    ones = [0.0, 0.0, 0.0]

    def slope(u):  # of the arctangent with alpha 2
        return 1 / (1 + (torch.pi * (u - 1)) ** 2)

    for t in range(9):
        u1 = 0.5 * v1 + x[:, t] @ w1.T + b1
        s1 = (u1 >= 1).double()
        u2 = 0.5 * v2 + s1 @ w2.T + b2
        s2 = (u2 >= 1).double()
        v1, v2 = u1 - s1, u2 - s2
        d3 = (torch.softmax(s2 @ w3.T + b3, 1) - F.one_hot(y, 3)) / 4 / 9
        d2 = d3 @ w3 * slope(u2)
        d1 = d2 @ w2 * slope(u1)
        leaks = (0.5, 0.5, 0.0) if rule == "ottt" else (0.0, 0.0, 0.0)
        for i, (s, d, leak) in enumerate(zip((x[:, t], s1, s2), (d1, d2, d3), leaks)):
            traces[i], ones[i] = s + leak * traces[i], 1 + leak * ones[i]
            wanted[2 * i] += d.T @ traces[i]
            wanted[2 * i + 1] += ones[i] * d.sum(0)  # a bias is the weight of an input that is 1
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert "forward" not in vars(model.layers[0])  # as it was


def test_traces_of_one_leaky_layer_are_the_gradient_through_time():
    torch.manual_seed(0)
    layers = (Layer(op="linear", size=12), Layer(op="spikes", neuron=LIF), Layer(op="linear", size=3))
    model, (x, y) = Sequential(input=(5,), layers=layers).build().double().train(), samples(steps=21)
    for found, whole in zip(
        gradients(model, x, y, STEPWISE, online="ottt")[0], gradients(model, x, y, STEPWISE)[0], strict=True
    ):
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12)


def test_recurrent_weights_have_the_trace_of_the_spikes_that_come_back():
    """∂R = Σ_t ψ_t δ_t ŝ_{t-1}ᵀ with ŝ_t = β ŝ_{t-1} + s_t, written out."""
    torch.manual_seed(0)
    cell = create("neuron", "recurrent_lif", tau=4.0, fixed=True, scale=3.0)
    layers = (Layer(op="linear", size=8), Layer(op="spikes", neuron=cell), Layer(op="linear", size=3))
    model, (x, y) = Sequential(input=(5,), layers=layers).build().double().train(), samples(steps=19)
    found, _ = gradients(model, x, y, STEPWISE, online="ottt")
    named = dict(zip([name for name, _ in model.named_parameters()], found))
    w, b, r, out, c = (p.detach() for p in model.parameters())
    assert r.shape == (8, 8)
    v = s = trace = torch.zeros(4, 8).double()
    seen = torch.zeros(4, 5).double()
    wanted_r, wanted_w = torch.zeros_like(r), torch.zeros_like(w)
    for t in range(19):
        u = 0.75 * v + x[:, t] @ w.T + b + s @ r.T
        trace, seen = 0.75 * trace + s, 0.75 * seen + x[:, t]
        s = (u >= 1).double()
        v = u - s
        delta = (torch.softmax(s @ out.T + c, 1) - F.one_hot(y, 3)) / 4 / 19
        drive = delta @ out / (1 + (torch.pi * (u - 1)) ** 2)
        wanted_r, wanted_w = wanted_r + drive.T @ trace, wanted_w + drive.T @ seen
    torch.testing.assert_close(named["layers.1.neuron.recurrent.weight"], wanted_r, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(named["layers.0.weight"], wanted_w, rtol=1e-6, atol=1e-9)


def normed(*more, momentum=0.01, hidden=4):
    torch.manual_seed(0)
    norm = Layer(op="batch_norm", momentum=momentum)
    layers = (Layer(op="linear", size=hidden), norm, *more, Layer(op="spikes", neuron=LIF), Layer(op="linear", size=3))
    return Sequential(input=(5,), layers=layers).build().double().train()


@pytest.mark.parametrize("how", [{"online": "sltt"}, {"online": "ottt"}, {"tbptt": 4}, {"checkpoint_time": 4}])
def test_batch_norms_keep_the_statistics_of_a_segment_by_its_share(how):
    """Of one training step they keep what the whole sequence is, however it is cut: once, and no step for more."""
    model, (x, y) = normed(), samples(steps=21, batch=8)
    x[:, 0] += 100
    norm = model.layers[1]
    norm.num_batches_tracked.fill_(1)  # it has seen something before
    gradients(model, x, y, STEPWISE, **how)
    mean = model.layers[0](x).mean((0, 1)).detach()
    torch.testing.assert_close(norm.running_mean, 0.01 * mean, rtol=0.02, atol=1e-4)
    assert norm.momentum == 0.01
    assert "forward" not in vars(norm)


def test_traces_behind_a_batch_norm_are_the_gradient_through_time():
    """With the statistics that it keeps; weights, γ and β have traces."""
    model, (x, y) = normed(hidden=12), samples(steps=21)
    norm = model.layers[1]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    norm.num_batches_tracked.fill_(1)
    norm.eval()
    whole, _ = gradients(model, x, y, STEPWISE)
    norm.train()
    found, _ = gradients(model, x, y, STEPWISE, online="ottt")
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_fresh_batch_norm_sees_the_sequence_before_an_online_rule_begins():
    model, (x, y) = normed(), samples(steps=32, batch=8)
    x = 7 + 3 * x
    wanted = model.layers[0](x).detach()
    gradients(model, x, y, STEPWISE, online="sltt")
    torch.testing.assert_close(model.layers[1].running_mean, wanted.mean((0, 1)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.layers[1].running_var, wanted.var((0, 1)), rtol=0.1, atol=0)
    keeps_nothing = network(Layer(op="batch_norm", tracked=False))
    with pytest.raises(FastSNNError, match="keeps none"):
        gradients(keeps_nothing, x, y, STEPWISE, online="sltt")


def test_checkpoints_over_time_are_segments_of_a_batch_norm(caplog):
    """Gradients and statistics of a network whose batch norms see one segment after the other; said once."""
    x, y = samples(steps=22, batch=8)
    model = normed(momentum=0.5)
    for _ in range(2):
        found, _ = gradients(model, x, y, checkpoint_time=8)
    assert len([row for row in caplog.records if "statistics of each segment of 8 steps" in row.message]) == 1
    twin = normed(momentum=0.5)
    for _ in range(2):
        outs, state = [], None
        twin.zero_grad()
        for piece in x.split(8, 1):
            twin.layers[1].momentum = 0.5 * piece.shape[1] / 22
            out, state = twin(piece, state, return_state=True)
            outs.append(out)
        F.cross_entropy(torch.cat(outs, 1).mean(1), y).backward()
    for a, p in zip(found, twin.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.layers[1].running_var, twin.layers[1].running_var)


def readout(neuron=LIF, **more):
    """A network with a convolution, neurons, and a leaky readout that learns its leak."""
    torch.manual_seed(0)
    layers = (
        Layer(op="conv1d", size=4, kernel=(3,), padding=(1,)), Layer(op="spikes", neuron=neuron),
        Layer(op="dropout", p=0.3, fixed=True), Layer(op="flatten"), Layer(op="linear", size=6),
        Layer(op="spikes", neuron=neuron), Layer(op="linear", size=3), Layer(op="integrate", tau=3.0, learn=True),
    )  # fmt: skip
    return Sequential(input=(2, 5), layers=layers).build().double().train()


NEURONS = [("lif", {}), ("lif", {"hard_reset": True}), ("lif", {"learn_threshold": True}), ("ilif", {}),
           ("lif", {"convention": "snntorch"}), ("alif", {}), ("plif", {}), ("synaptic", {})]  # fmt: skip


@pytest.mark.parametrize("rule", ["sltt", "ottt"])
@pytest.mark.parametrize(("name", "how"), NEURONS)
@pytest.mark.parametrize("kind", ["classification", "weighted", "labelling"])
def test_steps_of_an_online_rule_in_one_pass_are_steps_by_themselves(rule, name, how, kind, monkeypatch):
    if rule == "ottt" and name in ("alif", "plif", "synaptic"):
        pytest.skip("no single leak")
    x, y = torch.randn(4, 40, 2, 5).double(), torch.arange(4) % 3
    y = torch.randint(0, 3, (4, 40)) if kind == "labelling" else y
    task = "labelling" if kind == "labelling" else "classification"
    found = []
    for joined in (False, True):
        way = online.can_be_joined if joined else lambda model, state: False  # the modules' own forward, step by step
        monkeypatch.setattr(segments, "can_be_joined", way)
        model = readout(create("neuron", name, **({"fixed": True} if name != "ilif" else {}), **how))
        weights = torch.tensor([1.0, 2.0, 5.0]) if kind == "weighted" else None
        found.append(gradients(model, x, y, STEPWISE, task, weights, online=rule))
        assert not any("forward" in vars(m) for m in model.modules())
    (alone, loss), (at_once, same) = found
    assert same == pytest.approx(loss, rel=1e-9)
    for a, b in zip(at_once, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_a_state_that_nobody_knows_is_never_joined():
    model, (x, _) = network(), samples(steps=9)
    assert online.can_be_joined(model, model(x, return_state=True)[1])
    assert not online.can_be_joined(model, {"of_another": torch.zeros(4, 3)})
    assert not online.can_be_joined(model, (torch.zeros(4, 3),))


class Held:
    """A tensor that autograd keeps; counts bytes while it lives."""

    now = peak = 0

    def __init__(self, tensor):
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.now += self.size
        Held.peak = max(Held.peak, Held.now)

    def __del__(self):
        Held.now -= self.size


def kept(steps, **settings):
    """Most bytes that autograd holds at once in a training step on T steps."""
    model, (x, y) = network(), samples(steps)
    Held.now = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        gradients(model, x, y, STEPWISE, **settings)
    return Held.peak


def test_memory_does_not_grow_with_time():
    for how in ({"tbptt": 16}, {"online": "sltt"}, {"online": "ottt"}):
        assert kept(1024, **how) == kept(64, **how), how
    whole, few = kept(1024), kept(1024, checkpoint_time=32)
    assert whole > 15 * kept(64)
    assert few < 0.3 * whole


def fit(model, x, y, **settings):
    data = sample_data(model.float(), (x.numpy(), y.numpy()), quiet=True)
    config = TrainConfig(max_steps=40, batch_size=32, lr=0.03, log_every=1, precision="fp32", **settings)
    return Trainer(model, config, quiet=True).fit(data).history


@pytest.mark.parametrize("how", [{"checkpoint_time": 4}, {"tbptt": 4}, {"online": "sltt"}, {"online": "ottt"}])
@pytest.mark.parametrize("begin", [(), (Layer(op="batch_norm"), Layer(op="repeat", steps=6))])
def test_it_learns(how, begin):
    torch.manual_seed(0)
    y = torch.arange(96) % 3
    x = torch.randn(96, 5) * 0.3 + 2 * torch.eye(3, 5)[y]
    history = fit(network(*begin), x if begin else x[:, None].expand(-1, 6, -1), y, **how)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["accuracy"] > 0.9


def test_what_cannot_be_cut_says_so():
    x, y = torch.randn(96, 10, 5), torch.arange(96) % 3
    alif = create("neuron", "plif")
    for model, data, how, says in (
        (network(), x[:, 0], {"tbptt": 4}, "these samples have no time"),
        (network(neuron=alif), x, {"online": "ottt"}, "needs neurons with one leak"),
        (network(Layer(op="mean")), x, {"tbptt": 5}, "a layer that ends time"),
    ):
        with pytest.raises(FastSNNError, match=says):
            fit(model, data, y, **how)
    with pytest.raises(FastSNNError, match="take one"):
        TrainConfig(tbptt=4, online="sltt")
    with pytest.raises(FastSNNError, match="rate_weight"):
        TrainConfig(checkpoint_time=4, rate_weight=0.1)
    with pytest.raises(FastSNNError, match="one process"):
        TrainConfig(tbptt=4, parallel="ddp")
