"""What `test_parallel` runs under torchrun: two gloo processes train in every way, and leave what they did on disk.

python -m torch.distributed.run --nproc-per-node 2 two_processes.py FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from attrs import frozen
from safetensors.torch import save_file

from fastsnn_core import Session, Tracker, build, create
from fastsnn_train import Packed, TrainConfig, Trainer, TrainingError
from fastsnn_train.data.token_batches import batches, scored
from fastsnn_train.loop.parallel import full, join_group, leave_group, whole_model

CONFIG = {
    "max_steps": 6,
    "batch_size": 4,
    "log_every": 1,
    "checkpoint_every": 3,
    "eval_every": 3,
    "keep": 9,
    "ema": 0.9,
}


def make() -> torch.nn.Module:
    """A small decoder in float64, where rounding never reaches a spike's edge; k is learnt."""
    torch.manual_seed(0)
    neuron = create("neuron", "adaptive_threshold", learn_k=True)
    kinds = (create("attention", "gla"), create("attention", "sliding_window", window=8))
    spec = create("model", "decoder", neuron=neuron, attention=kinds, d_model=18, n_layers=2, n_heads=3, vocab_size=41)
    return build(spec).double()


def corpus() -> Packed:
    """Tokens with documents in them."""
    tokens = (np.arange(900) * 7 % 19 + np.arange(900) // 50 % 5).astype(np.uint16)
    tokens[np.arange(5, 900, 11)] = 40
    return Packed(tokens, 12, end=40)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All of a model's tensors, whole."""
    return {name: t.detach().clone() for name, t in whole_model(model).state_dict().items()}


def shares(model: torch.nn.Module) -> Trainer:
    """A trainer of one process that reads half of every sequence, then the other, as a sequence world's two would."""
    from torch.nn import functional as F

    from fastsnn_train.loop.sequence import sequence_shares

    trainer = Trainer(model, TrainConfig(**CONFIG), quiet=True)

    def loss(tokens, reset, eager=True, targets_in_all=None):
        found = zip(sequence_shares(model, tokens[:, :-1], 2, reset=reset), tokens[:, 1:].chunk(2, 1))
        return sum(F.cross_entropy(y.flatten(0, 1), t.flatten()).double() for y, t in found) / 2

    trainer.stepper.loss = loss
    return trainer


def masked() -> dict[str, torch.Tensor]:
    """A collator's batch: labels of -100 in very different numbers per row, padding in front and behind."""
    ids = (torch.arange(4 * 13).reshape(4, 13) * 7 + 3) % 40
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, :12] = labels[1, 4:7] = labels[3, ::2] = -100
    mask[2, 9:] = mask[3, :2] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def gradients(kind: str, accumulate: int = 1, mask: bool = False) -> dict[str, torch.Tensor]:
    """Gradients of the first batch as the optimiser would see them; blocks are recomputed where it is cut in pieces."""
    more = {"parallel": kind, "accumulate": accumulate, "checkpointing": accumulate > 1}
    trainer = Trainer(make(), TrainConfig(**CONFIG, **more), quiet=True)
    data, step = corpus(), trainer.stepper
    tokens = data.batch(0, 4, 0)
    reset = data.resets(tokens[:, :-1])
    if mask:
        ((tokens, reset),) = batches([masked()])
        step.targets = (scored(tokens) or 0) / trainer.world.size
    rows, marks = trainer.world.rows(tokens), None if reset is None else trainer.world.rows(reset)
    from fastsnn_train.loop.activation_sparsity import ActivationSparsity
    from fastsnn_train.loop.firing_rate import SpikeObservations

    step.backward(rows, marks, (SpikeObservations(), ActivationSparsity()), 0, eager=True)
    step.network.meet()
    return {name: full(p.grad).clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@frozen
class StopOne(Tracker):
    """SIGTERM to this process, at step 2."""

    name = "stop_one"

    def start(self, run):
        """A session that sends it."""

        class Stopping(Session):
            def log(self, row):
                if row["step"] == 2:
                    signal.raise_signal(signal.SIGTERM)

        return Stopping()


def main(folder: Path) -> None:
    """Every case, one after the other."""
    world, data, said = join_group("ddp"), corpus(), {}
    for kind in ("ddp", "fsdp", "sequence"):
        for accumulate in (1, 2):
            found = gradients(kind, accumulate)
            if world.leader:
                save_file(found, folder / f"{kind}-gradients-{accumulate}.safetensors")
            found = gradients(kind, accumulate, mask=True)
            if world.leader:
                save_file(found, folder / f"{kind}-masked-{accumulate}.safetensors")
        out = folder / kind
        trainer = Trainer(make(), TrainConfig(**CONFIG, parallel=kind), out=out, quiet=True).fit(
            data, data.part(0, 300)
        )
        if world.leader:
            save_file(weights(trainer.model), folder / f"{kind}.safetensors")
            started = folder / f"from-one-{kind}" / "checkpoints"
            shutil.copytree(folder / "one" / "checkpoints" / "step-000003", started / "step-000003")
        world.wait()
        config = TrainConfig(**CONFIG, parallel=kind)
        again = Trainer(make(), config, out=folder / f"from-one-{kind}", quiet=True)
        again.fit(data, data.part(0, 300), resume=True)
        if world.leader:
            save_file(weights(again.model), folder / f"from-one-{kind}.safetensors")
        model = make()
        if world.rank == 1:
            model.layers[0].feedforward.down.register_forward_hook(lambda module, args, y: y * float("nan"))
        try:
            Trainer(model, config, quiet=True).fit(data)
        except TrainingError as error:
            said[f"{kind} rank {world.rank}"] = str(error)
        stopping = TrainConfig(**CONFIG, parallel=kind, trackers=(StopOne(),))
        stopped = Trainer(make(), stopping, out=folder / f"stopped-{kind}", quiet=True)
        try:
            stopped.fit(data)
        except KeyboardInterrupt:
            said[f"{kind} stopped {world.rank}"] = stopped.step
    for kind in ("ddp", "fsdp", "sequence"):
        learnt = Trainer(make(), TrainConfig(**CONFIG, parallel=kind), quiet=True).fit([masked()] * 6)
        said[f"{kind} masked"] = [row["loss"] for row in learnt.history]
        if world.leader:
            save_file(weights(learnt.model), folder / f"{kind}-masked.safetensors")
        fast = Trainer(make().float(), TrainConfig(**CONFIG, parallel=kind), quiet=True).fit(data)
        said[f"{kind} float32"] = [row["loss"] for row in fast.history]
        if world.leader:
            save_file(weights(fast.model), folder / f"{kind}-float32.safetensors")
    del trainer, again, stopped, fast, learnt
    leave_group(world)
    said["threads"] = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    (folder / f"said-{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    main(Path(sys.argv[1]))
