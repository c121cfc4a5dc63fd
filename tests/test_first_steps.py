"""From default weights and thresholds a small model learns real text at once, and no spike site runs into its limit."""

from __future__ import annotations

import pydoc_data.topics

import pytest
import torch
from torch.nn import functional as F

from fastsnn_core import build, create
from fastsnn_core.site import sites
from fastsnn_train.loop.health import health_of, limit_of

UNIGRAM = 3.1  # nats per byte of this text


@pytest.mark.parametrize("neuron", ["adaptive_threshold", "lif_sint"])
def test_the_first_steps_of_a_default_model_teach_it_something(neuron: str) -> None:
    torch.manual_seed(0)
    model = build(create("model", "decoder", d_model=64, n_layers=2, n_heads=2, neuron=create("neuron", neuron)))
    text = "".join(pydoc_data.topics.topics.values()).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    found, losses = {}, []
    for name, site in sites(model).items():
        site.neuron.register_forward_hook(lambda m, _, out, n=name: found.update({n: (health_of(out[0], m), m)}))
    for _ in range(60):
        begin = torch.randint(0, len(data) - 65, (16,))
        rows = torch.stack([data[i : i + 65] for i in begin.tolist()])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < UNIGRAM - 0.25
    assert {n: h.state(limit_of(m)) for n, (h, m) in found.items()} == dict.fromkeys(found, "")
