"""Healing: a converted model learns to say what the dense teacher says, with its spikes on.

    loss = KL(teacher ‖ student) of the next token, mean over tokens  +  hidden · mean_l |h_l - h_l^T|² / var h_l^T

No labels are needed, so the text may be anything, also text that the teacher writes itself: by default a quarter of
every batch is, and in the rest words are exchanged, so that a short text is not learnt by heart. Gradients pass the
counts straight through, and the thresholds (`fastsnn_convert.language.threshold_gradients`). A model with other
attentions than its
teacher is healed in two stages, as SpikingBrain was trained: first the attentions with numbers at every site, then
everything with spikes.
Hinton et al. 2015 (arXiv 1503.02531).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.language.distillation_loss import base_decoder, head_input, head_of, mean_kl
from fastsnn_convert.language.distillation_settings import DistillationProgress, Healing
from fastsnn_convert.language.rebuild import bypass_neurons
from fastsnn_convert.language.relufication import ActivationChange, magnitudes
from fastsnn_convert.language.silent_shares import SilentShares
from fastsnn_convert.language.teacher_cache import TeacherCache
from fastsnn_convert.language.threshold_gradients import lsq_gradients
from fastsnn_core.errors import MissingError
from fastsnn_core.site import sites

STAGES = ("attention", "spikes")
WARMTH = 1.4  # temperature at which the teacher writes: stranger places than its own


def heal(
    model: Any,
    teacher: Any,
    data: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    stages: tuple[str, ...] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Heal `model` in place; returns the log, rows of stage, step, loss, kl, seconds.

    `teacher` is the dense decoder or its Hugging Face directory; `data` a text file, texts, or token ids, and None lets
    the teacher write it all. `settings` are those of `Healing`. With `out` the run is kept
    there in checkpoints, and `resume` goes on from the newest whole one.
    """
    from fastsnn_convert.language.distillation_data import SelfGeneratedData, tokens_of
    from fastsnn_convert.language.families import import_dense
    from fastsnn_convert.language.token_replacement import TokenReplacement

    config = Healing(**settings)
    check_student(model)
    dense: Any = teacher if isinstance(teacher, nn.Module) else import_dense(teacher)
    if dense.spec.vocab_size != model.spec.vocab_size:
        sizes = f"{dense.spec.vocab_size} and {model.spec.vocab_size}"
        raise ConversionError(f"teacher and model must have one vocabulary, theirs have {sizes} tokens")
    if stages is None:
        stages = STAGES if dense.spec.attention != model.spec.attention else STAGES[1:]
    if not stages or len(stages) > 2 or set(stages) - set(STAGES):
        raise ConversionError(f"stages are {' and '.join(STAGES)}, one or both, not {stages!r}")
    ids = None if data is None else tokens_of(data, dense, "healing")
    size = sum(p.numel() for p in model.parameters())
    config = config.fitted(model.spec.d_model, size, ids is not None, new=STAGES[0] in stages)
    assert config.length is not None
    assert config.altered is not None
    if ids is not None and len(ids) <= config.length:
        raise ConversionError(f"healing text has {len(ids)} tokens; more than length = {config.length} are needed")
    own = SelfGeneratedData(dense.eval(), config.length, ids, WARMTH)
    text = None
    if ids is not None:
        text = TokenReplacement(dense, ids, config.length, config.altered, WARMTH, config.seed)
    before, training = {p: p.requires_grad for p in model.parameters()}, model.training
    kept = model.checkpointing
    model.checkpointing = kept or config.checkpointing
    student = with_lora(model, config.lora) if config.lora else model
    try:
        cache = TeacherCache.of(dense, config)
        run = Healer(student, dense, text, own, config, Path(out) if out else None, quiet, cache).all(stages, resume)
    finally:
        model.checkpointing = kept
        if config.lora:
            student.merge_and_unload()
        for p, wanted in before.items():
            p.requires_grad_(wanted)
        model.train(training)
    return run.history


def check_student(model: Any) -> None:
    """Only decoders with float weights are healed."""
    spec = getattr(model, "spec", None)
    if not hasattr(spec, "vocab_size") or not hasattr(model, "layers"):
        raise ConversionError("healing is for language models (decoders); this is none")
    if getattr(spec, "quant", None) is not None:
        raise ConversionError(
            "this model has INT8 weights; heal the float one, then export it (fastsnn export --to w8a)"
        )


def with_lora(model: nn.Module, rank: int) -> Any:
    """`model` with low-rank additions on all projections, and its norms and centres trained whole."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingError("healing with lora needs peft: pip install peft") from None
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".mixer." not in n and n != "head"]
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))
    for name, p in model.named_parameters():
        if ".mixer." in name or name.endswith((".centre", "norm.weight", ".bias")):
            p.requires_grad_(True)
    return peft


@attrs.define(eq=False)
class Healer:
    """One healing run."""

    model: Any
    teacher: nn.Module
    text: Any
    own: Any
    config: Healing
    out: Path | None
    quiet: bool
    cache: TeacherCache | None = None
    neurons: list[Any] = attrs.field(factory=list)
    change: ActivationChange | None = None
    silence: SilentShares = attrs.field(factory=lambda: SilentShares({}))

    def all(self, stages: tuple[str, ...], resume: bool) -> DistillationProgress:
        """Every stage, from where the run stands."""
        run = DistillationProgress()
        self.neurons = [(site, site.neuron) for site in sites(self.model).values()]
        if self.config.activation:
            self.change = ActivationChange.of(base_decoder(self.model), self.config.activation, self.config.l1)
        if self.config.hold and not self.config.activation:  # a change of activation is to make more of them silent
            self.silence = SilentShares.of(self.model)
        shares = [1.0] if len(stages) == 1 else [self.config.share, 1 - self.config.share]
        gradients = lsq_gradients(self.model) if self.config.thresholds else contextlib.nullcontext()
        with gradients, self.silence.watched():
            held = self.load(run) if resume else {}
            self.model.train()
            try:
                self.stages(run, stages, shares, held)
            except BaseException:
                if self.change is not None:
                    self.change.abandon()
                raise
        if self.change is not None:
            self.change.finish()
        return run

    def stages(
        self, run: DistillationProgress, stages: tuple[str, ...], shares: list[float], held: dict[str, Tensor]
    ) -> None:
        """The stages that are left."""
        from fastsnn_train.loop.progress import TrainingProgress

        for number in range(run.stage, len(stages)):
            if run.stage != number:
                run.stage, run.step, run.seconds = number, 0, 0.0
            dense = bypass_neurons(self.model) if stages[number] == "attention" else contextlib.nullcontext()
            start, total, unit = self.config.counted(run.step, run.seconds, shares[number])
            label = f"healing ({stages[number]})"
            with dense, TrainingProgress(total, start, label, self.quiet, unit=unit) as progress:
                self.stage(run, stages[number], shares[number], held, progress)
            held = {}

    def stage(self, run: DistillationProgress, name: str, share: float, held: dict[str, Tensor], progress: Any) -> None:
        """One stage: AdamW under a rate that follows the budget."""
        c = self.config
        constants, weights = self.groups()
        if not (trained := [*constants, *weights]):
            raise ConversionError(
                "healing: no parameter of this model is trained (requires_grad is False for all); "
                "model.requires_grad_(True) lets all of them"
            )
        groups = [{"params": constants, "peak": c.lr_constants}, {"params": weights, "peak": c.lr}]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        if held:
            self.put(optimizer, held)
        begin = time.perf_counter() - run.seconds
        while (done := c.progress(run.step, run.seconds, share)) < 1.0:
            for group in optimizer.param_groups:
                group["lr"] = c.rate(run.step, done, group["peak"])
            for p in weights:
                p.requires_grad_(done >= (c.constants_first or 0.0) or not constants)
            if self.change is not None and name == STAGES[-1]:
                self.change.at(done)
            tokens = self.batch(run)
            optimizer.zero_grad(set_to_none=True)
            with sized(base_decoder(self.model), self.change is not None and self.change.t > 0) as sizes:
                loss, parts = self.loss(tokens, (c.hidden or 0.0) * c.falling(done), sizes)
                if not math.isfinite(loss.item()):
                    raise ConversionError(
                        f"healing diverged at step {run.step} of stage {name}; take a lower lr than {c.lr}"
                    )
                loss.backward()
            nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], 1.0)
            optimizer.step()
            self.silence.follow()
            run.step, run.seconds = run.step + 1, time.perf_counter() - begin
            if run.step % c.log == 0 or run.step == 1 or c.progress(run.step, run.seconds, share) >= 1.0:
                row = {"stage": name, "step": run.step, **parts(), "seconds": round(run.seconds, 1)}
                run.history.append(row)
                rate = run.step * tokens.numel() / run.seconds
                now, _, unit = c.counted(run.step, run.seconds, share)
                shown = {"step": now, "loss": row["loss"], "tokens_per_second": rate}
                shown |= {"steps": run.step} if unit == "s" else {}
                progress.update(now, shown)
                progress.log(shown)
            if self.out is not None and run.step % c.every == 0:
                self.save(run, optimizer)
        if self.out is not None:
            self.save(run, optimizer)

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Constants (vectors: biases, centres, gains of norms) and weights that are trained."""
        if not self.config.embedding:
            for name, p in self.model.named_parameters():
                if name.endswith(("embed.weight", "head.weight")):
                    p.requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return [p for p in trained if p.ndim < 2], [p for p in trained if p.ndim >= 2]

    def batch(self, run: DistillationProgress) -> Tensor:
        """Random pieces ``[batch, length]``, the same for the same step of the same stage and seed."""
        c, seed = self.config, self.config.seed * 2 + run.stage
        assert c.batch is not None
        assert c.length is not None
        assert c.written is not None
        own = c.batch if self.text is None else round(c.batch * c.written)
        found = []
        if self.text is not None and own < c.batch:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + run.step)
            places = torch.randint(0, len(self.text.ids) - c.length + 1, (c.batch - own,), generator=generator)
            found.append(self.text.pieces(places, generator))
        if own:
            found.append(self.own.pieces(run.step, own, seed))
        return torch.cat(found).to(next(self.model.parameters()).device)

    def loss(self, tokens: Tensor, weight: float, sizes: list[Tensor]) -> tuple[Tensor, Callable[[], dict[str, float]]]:
        """The loss; and its parts, where asked for. `sizes` is filled on the way (`sized`)."""
        if self.cache is not None:
            loss = self.cache.divergence(head_input(self.model, tokens), head_of(self.model), tokens)
            return loss, lambda: {"loss": loss.item(), "kl": loss.item()}
        loud = self.change is not None and self.change.t > 0
        with block_outputs(self.teacher) as theirs, sized(self.teacher, loud) as their_sizes, torch.no_grad():
            wanted = head_input(self.teacher, tokens)
        with block_outputs(self.model) as mine:
            said = head_input(self.model, tokens)
        loss = first = mean_kl(said, head_of(self.model), wanted, head_of(self.teacher))
        if weight:
            apart = [(a - b).pow(2).mean() / b.var().clamp_min(1e-12) for a, b in zip(mine, theirs)]
            loss = first + weight * torch.stack(apart).mean()
        if loud and self.change is not None:
            loss = loss + self.change.penalty(sizes, their_sizes)

        def parts() -> dict[str, float]:
            return {"loss": loss.item(), "kl": first.item()}

        return loss, parts

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self, run: DistillationProgress, optimizer: torch.optim.Optimizer) -> None:
        """A checkpoint, whole or not at all."""
        from fastsnn_train.loop import checkpoint, snapshot
        from fastsnn_train.loop.parallel import World

        assert self.out is not None
        state = {"step": 10**6 * run.stage + run.step, "healing": attrs.asdict(self.config), "stage": run.stage}
        state |= {"stage_step": run.step, "seconds": run.seconds, "silence": self.silence.data()}
        off = [(site, neuron) for site, neuron in self.neurons if site.neuron is None]
        for site, neuron in off:  # a stage without spikes has taken them off: the checkpoint is of the whole model
            site.neuron = neuron
        rows = snapshot.take(self.model, optimizer, None)
        for site, _ in off:
            site.neuron = None
        checkpoint.save(self.out, rows, state, run.history, World(), set(), 2)

    def load(self, run: DistillationProgress) -> dict[str, Tensor]:
        """Take up the newest whole checkpoint, if there is one; gives its tensors, for the optimiser."""
        from fastsnn_train.loop import checkpoint, snapshot

        if self.out is None:
            raise ConversionError("resume needs out=, the folder that the run was kept in")
        checkpoint.tidy(self.out)
        picked = checkpoint.pick(self.out)
        if picked is None:
            return {}
        path, state = picked
        mine = attrs.asdict(self.config)
        free = ("steps", "minutes", "every", "log")
        if odd := [k for k, v in state["healing"].items() if k not in free and mine.get(k) != v]:
            raise ConversionError(f"{path} was healed with other settings: {', '.join(odd)}")
        held = checkpoint.read_tensors(path, snapshot.sharded_like(self.model))
        snapshot.put_model(self.model, held, path)
        if "silence" in state:
            self.silence.put(state["silence"])
        run.stage, run.step, run.seconds = state["stage"], state["stage_step"], state["seconds"]
        run.history = checkpoint.history(path)
        return held

    def put(self, optimizer: torch.optim.Optimizer, held: dict[str, Tensor]) -> None:
        """Moments of a checkpoint."""
        for name, p in self.model.named_parameters():
            row = {what: held.get(f"optimizer/{what}/{name}") for what in ("step", "exp_avg", "exp_avg_sq")}
            if row["step"] is not None:
                optimizer.state[p] = {what: t for what, t in row.items() if t is not None}


def sized(model: Any, wanted: bool) -> Any:
    """`magnitudes` of a model, where they are wanted."""
    return magnitudes(model) if wanted else contextlib.nullcontext([])


@contextlib.contextmanager
def block_outputs(model: Any) -> Iterator[list[Tensor]]:
    """Outputs ``[B,T,D]`` of the blocks while the block of code runs."""
    found: list[Tensor] = []
    layers = model.get_base_model().layers if hasattr(model, "get_base_model") else model.layers
    handles = [m.register_forward_hook(lambda _m, _a, out: found.append(out[0])) for m in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
