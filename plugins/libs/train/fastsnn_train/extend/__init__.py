"""Context extension: continues training on longer documents in stages, with an evaluation before and after.

A fixed sliding window contains no untrained distance and the linear state has no positions; what fails on long inputs
is that states leave the distribution seen in training (Buitrago & Gu 2025, arXiv 2507.02782). Training on documents of
the new length in chunks of the old one, with the state carried over and detached, corrects that with the memory of
short-sequence training. The other modes are in `fastsnn_train.extend.step` and `fastsnn_train.extend.decay`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from torch import nn

from fastsnn_console.typed import typed
from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import renamed
from fastsnn_core.parameters import checked
from fastsnn_text import tokenizer_of
from fastsnn_train.data.packing import Data, Packed
from fastsnn_train.evaluation.evaluate import buckets, evaluate, position_nats
from fastsnn_train.evaluation.recall import Question, Recall, recall, task_name
from fastsnn_train.extend.decay import calibrate_decay
from fastsnn_train.extend.report import Extension
from fastsnn_train.extend.reshape import adopt, shaped
from fastsnn_train.extend.step import StageRunner, deep_share
from fastsnn_train.extend.storage import (
    ExtensionCheckpoints,
    copy_tensors,
    packed_proof,
    restore_tensors,
    unpacked_proof,
)
from fastsnn_train.loop.optim import learning_rate
from fastsnn_train.loop.progress import TrainingProgress
from fastsnn_train.loop.trainer import Trainer

log = logging.getLogger("fastsnn")
MODES = ("carry", "long", "pass", "decay")
ROPES = ("none", "yarn", "ntk")
Task = str | Callable[..., Question]
CHECKS = 8
"""Evaluations of the short-context loss per stage."""


@attrs.frozen
class ExtensionSettings:
    """Settings of `extend_context`."""

    mode: str = attrs.field(default="carry", validator=checked(attrs.validators.in_(MODES)))
    lr: float = 3e-4
    short_share: float = attrs.field(default=0.25, validator=checked(attrs.validators.ge(0), attrs.validators.lt(1)))
    gate: float | None = attrs.field(default=0.02, validator=checked(attrs.validators.optional(attrs.validators.ge(0))))
    on_gate: str = attrs.field(default="rollback", validator=checked(attrs.validators.in_(("rollback", "stop"))))
    rope: str = attrs.field(default="none", validator=checked(attrs.validators.in_(ROPES)))
    window: int = attrs.field(default=0, validator=checked(attrs.validators.ge(0)))


@typed
def extend_context(
    model: nn.Module,
    trainer: Trainer,
    *,
    new_seq_len: int | Sequence[int],
    max_steps: int | Sequence[int] = 100,
    mode: str = "carry",
    data: Data | None = None,
    lr: float | None = None,
    short_share: float = 0.25,
    gate: float | None = 0.02,
    on_gate: str = "rollback",
    rope: str = "none",
    window: int = 0,
    recall: Sequence[Task] = ("passkey", "mqar"),
    recall_samples: int = 4,
    filler: str | None = None,
    eval_sequences: int = 4,
    resume: bool = False,
    quiet: bool | None = None,
) -> Extension:
    """Extend the context of `model` to `new_seq_len` tokens, or through a list of lengths; returns the evaluation.

    `mode`: "carry" trains on long documents in chunks with the state carried over and gradients cut (truncated BPTT);
    "long" backpropagates through whole documents; "pass" starts short sequences from the final states of others, for
    corpora without long documents; "decay" trains nothing and calibrates the decay of linear layers. `max_steps` is per
    stage. Optimizer and its state are the trainer's; the peak learning rate defaults to a tenth of the trainer's. A
    fraction `short_share` of the steps uses short sequences.

    The held-out loss at the old length may increase by at most the fraction `gate` (0.02: 2 %; None: no limit). A stage
    that ends above it restores its last good weights; ``on_gate="stop"`` also ends the stage early. The result says so.
    `rope` ("yarn", "ntk") and `window` (tokens) are for softmax layers and windows that grow.

    If the trainer has a folder, a checkpoint is written to ``out/extending`` whenever that loss is within the limit; it
    is checked eight times per stage. With `resume` an interrupted extension continues from the newest one.

    The result is plain data: loss by position and recall by depth and length, before and after. `recall` takes task
    names or functions that create a task, `filler` the text around the fact (`fastsnn_train.evaluation.recall`).
    `history` has the steps; ``.report(folder)`` writes JSON and heat maps. Milestones are stored in the model's meta.

    Errors (FastSNNError): no language model, no packed corpus, several processes, lengths that do not increase beyond
    the current one, a list of `max_steps` of another length, documents too short for `mode`.
    """
    if not isinstance(data or trainer.data, Data | None):
        raise FastSNNError("extend_context is for language models; this trainer learnt labelled samples")
    data = data or trainer.data  # type: ignore[assignment]
    if data is None:
        raise FastSNNError(
            "extend_context needs the trainer's corpus; train with FastSNN.fit on a dataset, or give data="
        )
    if trainer.world.size > 1:
        raise FastSNNError("extend_context runs in one process, where the checkpoints of a run by several resume too")
    if not hasattr(data.train, "with_length"):
        raise FastSNNError("extend_context needs a packed corpus; a streamed one is cut into sequences as it comes")
    plan = ExtensionSettings(mode, lr or trainer.config.lr / 10, short_share, gate, on_gate, rope, window)
    old = data.train.seq_len
    lengths = [new_seq_len] if isinstance(new_seq_len, int) else list(new_seq_len)
    budget = [max_steps] * len(lengths) if isinstance(max_steps, int) else list(max_steps)
    if not lengths or any(b <= a for a, b in zip([old, *lengths], lengths)):
        raise FastSNNError(
            f"the model was trained at {old} tokens; new_seq_len must be longer (and rise), got {new_seq_len}"
        )
    if len(budget) != len(lengths):
        raise FastSNNError(f"{len(lengths)} lengths need as many max_steps, got {len(budget)}")
    if mode in ("carry", "long") and (share := deep_share(data.train, old)) < 0.05:
        log.warning(
            "only %.1f %% of the tokens lie deeper than %d tokens in their document: there is little to learn at a "
            "distance; give longer documents, or use mode='pass'", 100 * share, old,
        )  # fmt: skip
    quiet = trainer.quiet if quiet is None else quiet
    judge = ExtensionProbe(model, trainer, data, [old, *lengths], recall, recall_samples, eval_sequences, filler)
    asked = attrs.asdict(plan) | {"from": old, "lengths": lengths, "budget": budget}
    began, record = time.perf_counter(), ExtensionCheckpoints(model, trainer, asked, resume)
    if not record.facts:
        record.facts = {"before": packed_proof(judge.proof()), "first": judge.short()}
    before, first = unpacked_proof(record.facts["before"]), record.facts["first"]
    base: Any = getattr(model, "spec", None)
    for i, (length, steps) in enumerate(zip(lengths, budget)):
        before_stage = getattr(model, "spec", None)
        if rope != "none" or window:
            adopt(model, shaped(base, original=old, length=length, rope=rope, window=window))
        if i >= len(record.stages):
            record.close(run_stage(model, trainer, data, length, steps, plan, judge, record, quiet))
        stage = record.stages[i]
        if stage["gate_broken"] and not stage["kept_step"]:
            if before_stage is not None:
                adopt(model, before_stage)
            break
    stages = record.stages
    after, last = judge.proof(), judge.short()
    proof = Extension.of(
        {
            "what": "extend_context",
            "mode": mode,
            "from": old,
            "to": max([old, *(s["to"] for s in stages if s["kept_step"] or mode == "decay")]),
            "steps": sum(s["kept_step"] for s in stages),
            "seconds": round(time.perf_counter() - began, 1),
            "plan": attrs.asdict(plan),
            "stages": stages,
            "short": {"before": first, "after": last, "worse": last / first - 1, "gate": gate},
            "before": before["positions"],
            "after": after["positions"],
        },
        before["recall"],
        after["recall"],
    )
    meta = dict(getattr(model, "meta", {}))
    model.meta = meta | {"milestones": [*meta.get("milestones", []), dict(proof)]}  # type: ignore[assignment]
    proof["history"] = record.history
    model.eval()
    return proof


class ExtensionProbe:
    """Runs the same evaluation before, during and after an extension."""

    def __init__(
        self,
        model: nn.Module,
        trainer: Trainer,
        data: Data,
        lengths: list[int],
        tasks: Sequence[Task],
        n: int,
        rows: int,
        filler: str | None = None,
    ) -> None:
        self.filler = filler
        self.model, self.trainer, self.lengths, self.tasks, self.n, self.rows = model, trainer, lengths, tasks, n, rows
        old, new = lengths[0], lengths[-1]
        self.held = held_out(data, old)
        self.long = held_out(data, new)
        self.edges = sorted({0, old // 2, *(old << i for i in range(30) if old << i < new), new})

    def short(self) -> float:
        """Held-out loss at the old length, in nats per token."""
        with self.trainer.autocast():
            n = self.trainer.config.eval_sequences
            return float(evaluate(self.model, self.held, max_sequences=n, spikes=False)["nats_per_token"])

    def proof(self) -> dict[str, Any]:
        """Loss by position, and recall by depth and length."""
        with self.trainer.autocast():
            table = position_nats(self.model, self.long, self.rows, self.lengths[0])
            found = {task_name(t): self.recall(t) for t in self.tasks}
            return {"positions": buckets(table, self.edges), "recall": found}

    def recall(self, task: Task) -> Recall | str:
        """Recall at every length that is long enough for the task, or the reason why it cannot be measured."""
        try:
            tokenizer_of(self.model)
        except ValueError as error:
            return str(error)
        found = None
        for n in range(len(self.lengths)):
            try:
                recall(self.model, task, lengths=self.lengths[n : n + 1], depths=(0.0,), samples=1)
            except ValueError as error:
                if "too few" not in str(error):
                    raise
                continue
            found = recall(self.model, task, lengths=self.lengths[n:], samples=self.n, filler=self.filler)
            break
        return found or f"{self.lengths[-1]} tokens are too few for the task"


def run_stage(
    model: nn.Module,
    trainer: Trainer,
    data: Data,
    length: int,
    steps: int,
    plan: ExtensionSettings,
    judge: ExtensionProbe,
    record: ExtensionCheckpoints,
    quiet: bool,
) -> dict[str, Any]:
    """Run or resume one stage; returns its result and adds its log rows to `record`."""
    old, first, history = data.train.seq_len, record.facts["first"], record.history
    stage: dict[str, Any] = record.under_way or {"to": length, "kept_step": 0, "gate_broken": False, "checks": []}
    if plan.mode == "decay":
        found = calibrate_decay(model, held_out(data, length), original=old, gate=plan.gate)
        return stage | {"calibration": attrs.asdict(found)}
    config = attrs.evolve(trainer.config, max_steps=steps, lr=plan.lr)
    runner = StageRunner(model, trainer, data.train, data.train.with_length(length), plan.mode, plan.short_share)
    limit = float("inf") if plan.gate is None else first * (1 + plan.gate)
    good, checks, begin = copy_tensors(model, trainer), stage["checks"], stage["kept_step"]
    every = max(1, -(-steps // CHECKS))
    with TrainingProgress(steps, begin, label=f"extending {old} → {length}", quiet=quiet) as progress:
        for step in range(begin, steps):
            loss, brief = runner.take(step, learning_rate(step, config))
            row = {"step": step + 1, "length": old if brief else length, "loss": loss}
            history.append(row)
            last = step + 1 == steps
            if last or (step + 1) % every == 0:
                if plan.gate is not None:
                    row["short"] = judge.short()
                    checks.append({"step": step + 1, "short": row["short"]})
                stage["gate_broken"] = row.get("short", 0.0) > limit
                if not stage["gate_broken"]:
                    good, stage["kept_step"] = copy_tensors(model, trainer), step + 1
                    record.save(stage)
            progress.update(step + 1, row)
            if last or (step + 1) % trainer.config.log_every == 0:
                progress.log(row)
            if stage["gate_broken"] and plan.on_gate == "stop":
                break
    if stage["gate_broken"]:
        restore_tensors(model, trainer, good, "the weights before the gate broke")
        log.warning(
            "%d → %d tokens: the loss at %d tokens rose from %.4f to %.4f, more than %.0f %%; back to step %d. "
            "Lower lr or raise short_share", old, length, old, first, checks[-1]["short"], 100 * (plan.gate or 0),
            stage["kept_step"],
        )  # fmt: skip
    return stage


def held_out(data: Data, length: int) -> Packed:
    """Held-out tokens in blocks of `length`; the training tokens if fewer than one block is held out."""
    held = data.held_out
    source = held if held is not None and len(held.tokens) > length else data.train
    return source.with_length(length)


__getattr__ = renamed(__name__, {"Plan": "ExtensionSettings"})
