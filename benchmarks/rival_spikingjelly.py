"""SpikingJelly's side of the conversion benchmarks: a server run by another interpreter, and the client that asks it.

SpikingJelly 2.0 needs packages that FastSNN's environment need not have, so the benchmarks take ``--rival-python``, an
interpreter with spikingjelly (and transformers, for language models). This file is run by it and answers one JSON line
per JSON line; it imports nothing of FastSNN. Recipes are used as published: nobody's code is patched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch


class Rival:
    """The client: a rival process, or None in its place where there is none (`start`)."""

    def __init__(self, python: str) -> None:
        self.noise = tempfile.TemporaryFile("w+")  # noqa: SIM115  (progress bars and warnings; it ends with us)
        self.process = subprocess.Popen(
            [python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.noise, text=True
        )

    @classmethod
    def start(cls, python: str | None, threads: int = 1) -> tuple[Rival | None, str]:
        """``(rival, versions)``, or ``(None, why not)``."""
        if python is None:
            return None, "no --rival-python given"
        try:
            rival = cls(python)
            return rival, rival.ask(verb="versions", threads=threads)
        except (OSError, RuntimeError) as error:
            return None, str(error).strip().splitlines()[-1]

    def ask(self, **job: Any) -> Any:
        """The answer to one job; what the rival raised comes back as RuntimeError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # it has died: what it said last tells why
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("{"):  # what the rival prints itself is passed over
                answer = json.loads(line)
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["answer"]
        self.process.wait()
        self.noise.seek(0)
        raise RuntimeError(self.noise.read() or "the rival ended without a word")


# -- the server ----------------------------------------------------------------------------------------------------


class Server:
    """Answers jobs; keeps what it has loaded."""

    def versions(self, threads: int) -> str:
        """Set the threads; what is installed."""
        from importlib.metadata import version

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        from spikingjelly.activation_based import ann2snn  # noqa: F401  (fails here where something is missing)

        return f"SpikingJelly {version('spikingjelly')}, torch {torch.__version__}"

    # -- language models: Qwen2SNNRecipe ----------------------------------------------------------------------------

    def load(self, model: str, tokens: str, calibration: int, development: int) -> dict[str, Any]:
        """A Llama directory as a Qwen2 model with zero biases (the recipe takes Qwen2 only), and windows of tokens.

        `tokens` is a file of tensors: ``fit [N,T]``, whose first windows are calibrated on and whose next ones settings
        are chosen on, and ``test [M,T]``. Answers how far the Qwen2 model is from the Llama.
        """
        from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

        llama = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        c = llama.config
        keys = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
            "rope_parameters", "head_dim",
        )  # fmt: skip
        qwen = Qwen2ForCausalLM(Qwen2Config(**{k: getattr(c, k) for k in keys}, use_sliding_window=False)).eval()
        for p in qwen.parameters():
            p.zero_()
        found = qwen.load_state_dict(llama.state_dict(), strict=False)
        if found.unexpected_keys or not all(k.endswith("_proj.bias") for k in found.missing_keys):
            raise RuntimeError(f"weights do not fit: {found}")
        qwen.tie_weights()
        self.qwen, held = qwen, torch.load(tokens, weights_only=True)
        self.calibration = held["fit"][:calibration]
        self.development = held["fit"][calibration : calibration + development]
        self.test = held["test"]
        self.models: dict[str, Any] = {}
        self.bounds: dict[float, Any] = {}
        x = self.test[:1]
        return {"logits": float((llama(input_ids=x).logits - qwen(input_ids=x).logits).abs().max())}

    def converted(self, steps: int, levels: int, quantile: float) -> Any:
        """The recipe at T steps; a scale is its channel's bound over `levels`, so one calibration serves all levels."""
        from spikingjelly.activation_based import ann2snn

        def config(t: int, n: int) -> Any:
            return ann2snn.Qwen2SNNConfig(
                time_steps=t, calibration_levels=n, calibration_quantile=quantile, calibration_reservoir_size=65536
            )

        if quantile not in self.bounds:
            data = [{"input_ids": x[None], "attention_mask": torch.ones_like(x[None])} for x in self.calibration]
            self.bounds[quantile] = ann2snn.calibrate_qwen2_snn(self.qwen, data, config(1, 1))
        one = self.bounds[quantile]
        scaled = dataclasses.replace(
            one, input_scale=one.input_scale / levels, time_steps=steps, calibration_levels=levels,
            layer_scales=tuple({k: v / levels for k, v in g.items()} for g in one.layer_scales),
        )  # fmt: skip
        recipe = ann2snn.Qwen2SNNRecipe(scaled, config(steps, levels))
        model = ann2snn.ModuleConverter(recipe).convert(self.qwen)
        model.set_collect_statistics(False)
        return model

    def choose(self, steps: int, levels: list[int], quantiles: list[float]) -> dict[str, Any]:
        """The best setting on the development windows, by the recipe's own count reconstruction (no time loop)."""
        tried = {}
        for n in levels:
            for q in quantiles:
                model = self.converted(steps, n, q)
                model.time_steps = 1
                for layer in model.layers:
                    layer.time_steps = 1
                nats = [self.spiking(model, x, "qcfs_sg")["nats"] for x in self.development]
                tried[n, q] = math.exp(sum(nats) / (len(nats) * (self.development.shape[1] - 1)))
        best = min(tried, key=tried.__getitem__)
        self.models[str(steps)] = self.converted(steps, *best)
        return {"levels": best[0], "quantile": best[1], "tried": [[*k, v] for k, v in tried.items()]}

    def spiking(self, model: Any, x: torch.Tensor, mode: str = "signed_if") -> dict[str, float]:
        """Nats of one window and the seconds of its forward pass."""
        from spikingjelly.activation_based import functional

        functional.reset_net(model)
        began = time.perf_counter()
        logits = model(input_ids=x[None], encoding_mode=mode).logits
        return {"seconds": time.perf_counter() - began, "nats": nats(logits[0], x)}

    def window(self, which: str, number: int) -> dict[str, float]:
        """One test window under ``dense`` (transformers) or the steps of a chosen setting."""
        x = self.test[number]
        if which != "dense":
            return self.spiking(self.models[which], x)
        began = time.perf_counter()
        logits = self.qwen(input_ids=x[None], use_cache=False).logits
        return {"seconds": time.perf_counter() - began, "nats": nats(logits[0], x)}

    # -- images: RateCodingRecipe -----------------------------------------------------------------------------------

    def images(self, data: str, mode: str, times: list[int]) -> dict[str, float]:
        """Accuracy of `RateCodingRecipe` after each of `times` steps (mean output over them).

        `data` holds ``network`` (an ``nn.Sequential`` of torch's own layers), ``calibration``, ``images``, ``labels``.
        """
        from spikingjelly.activation_based import ann2snn, functional

        held = torch.load(data, weights_only=False)
        recipe = ann2snn.RateCodingRecipe(list(held["calibration"].split(64)), mode=mode)
        snn = ann2snn.FXConverter(recipe).convert(held["network"].eval()).eval()
        right = dict.fromkeys(times, 0)
        for x, y in zip(held["images"].split(500), held["labels"].split(500)):
            functional.reset_net(snn)
            total: Any = 0
            for t in range(1, max(times) + 1):
                total = total + snn(x)
                if t in right:
                    right[t] += int((total.argmax(-1) == y).sum())
        return {str(t): n / len(held["images"]) for t, n in right.items()}


def nats(logits: torch.Tensor, x: torch.Tensor) -> float:
    """Cross-entropy of a window after its first token, summed."""
    return float(torch.nn.functional.cross_entropy(logits[:-1].double(), x[1:], reduction="sum"))


def main() -> None:
    server = Server()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"answer": getattr(server, job.pop("verb"))(**job)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # the benchmarks' own files are none of its modules
    main()
