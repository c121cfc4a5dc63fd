"""``fastsnn show hf``: what a bundle does inside transformers, found by doing it with a small model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastsnn_console.tables import capability_rows, compared, markdown_table
from fastsnn_core.errors import FastSNNError

IDS = torch.tensor([[72, 101, 108, 108, 111, 33, 32, 72], [111, 119, 32, 97, 114, 101, 63, 10]])


def small(folder: Path) -> Path:
    """The bundle of a small model."""
    from fastsnn_core import build, bundle, create
    from fastsnn_text import ByteTokenizer, attach

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kinds = (create("attention", "gla"), create("attention", "sliding_window", window=8))
        model = build(create("model", "decoder", d_model=16, n_layers=2, n_heads=2, attention=kinds)).eval()
    attach(model, ByteTokenizer())
    return bundle.save(model, folder / "m.snn")


def refusal_of(call: Callable[[], Any]) -> tuple[str, str]:
    """What a call is refused with."""
    try:
        call()
    except (FastSNNError, ValueError) as error:
        return "refused", str(error).splitlines()[0].partition(";")[0]
    return "exact", "done"


class Cases:
    """The cases, each of a bundle and the model that transformers makes of it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        import fastsnn_hf  # noqa: F401 - registers the model type
        from fastsnn_core import load

        self.folder, self.bundle = folder, small(folder)
        self.own: Any = load(self.bundle)
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.bundle)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.bundle)

    def logits(self) -> tuple[str, str]:
        """Forward."""
        return compared(self.model(IDS).logits, self.own(IDS), 0.0, "logits")

    def tokenizer_ids(self) -> tuple[str, str]:
        """Ids of a text."""
        same = self.tokenizer("Hello, wörld").input_ids == list("Hello, wörld".encode())
        return ("exact", "ids equal") if same else ("approximate", "ids differ")

    def cache(self) -> tuple[str, str]:
        """A prompt in two pieces."""
        first = self.model(IDS[:, :5])
        rest = self.model(IDS[:, 5:], past_key_values=first.past_key_values)
        both = torch.cat([first.logits, rest.logits], 1)
        return compared(both, self.model(IDS).logits, 1e-5, "a prompt in pieces beside the whole")

    def padding(self) -> tuple[str, str]:
        """A row beside a longer one."""
        ids, mask = IDS.clone(), torch.ones_like(IDS)
        ids[0, :3], mask[0, :3] = 0, 0
        found = self.model(ids, attention_mask=mask).logits[0, 3:]
        return compared(found, self.model(ids[:1, 3:]).logits[0], 1e-5, "a padded row beside the row alone")

    def generate(self) -> tuple[str, str]:
        """Greedy text with and without the cache."""
        how = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
        a, b = (self.model.generate(IDS, use_cache=flag, **how) for flag in (True, False))
        return (
            ("exact", "greedy ids with a cache equal those without") if torch.equal(a, b) else ("approximate", "differ")
        )

    def directory(self) -> tuple[str, str]:
        """save_pretrained and back."""
        from transformers import AutoModelForCausalLM

        self.model.save_pretrained(self.folder / "d")
        again = AutoModelForCausalLM.from_pretrained(self.folder / "d")
        return compared(again(IDS).logits, self.model(IDS).logits, 0.0, "save_pretrained, from_pretrained: logits")

    def loss(self) -> tuple[str, str]:
        """Cross-entropy of labels."""
        wanted = torch.nn.functional.cross_entropy(self.own(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        return compared(self.model(IDS, labels=IDS).loss, wanted, 1e-5, "loss")

    def packed(self) -> tuple[str, str]:
        """Two texts in one row."""
        both, places = torch.cat([IDS, IDS], 1), torch.arange(IDS.shape[1]).repeat(2)[None]
        return compared(
            self.model(both, position_ids=places).logits[:, IDS.shape[1] :],
            self.own(IDS),
            1e-5,
            "the second text's logits",
        )

    def body(self) -> tuple[str, str]:
        """What TRL computes its losses of."""
        hidden = self.model.base_model(IDS).last_hidden_state
        return compared(self.model.get_output_embeddings()(hidden), self.own(IDS), 1e-5, "head(last hidden states)")

    def table(self) -> dict[str, Callable[[], tuple[str, str]]]:
        """By what they show."""
        from fastsnn_hf.modeling import FastSNNForCausalLM

        two = torch.ones_like(IDS)
        two[0, 3] = 0
        cache = partial(self.model, IDS)
        quant = {"quantization_config": {"load_in_8bit": True}}
        return {
            "AutoModelForCausalLM.from_pretrained(bundle)": self.logits,
            "AutoTokenizer.from_pretrained(bundle)": self.tokenizer_ids,
            "past_key_values": self.cache,
            "padding on the left": self.padding,
            "generate, with and without a cache": self.generate,
            "save_pretrained": self.directory,
            "labels (the loss that Trainer takes)": self.loss,
            "position_ids that start again (packing, SFTTrainer)": self.packed,
            "base_model, get_output_embeddings": self.body,
            "cache.crop (assisted generation)": lambda: refusal_of(lambda: cache().past_key_values.crop(1)),
            "holes in the attention mask": lambda: refusal_of(lambda: self.model(IDS, attention_mask=two)),
            "hidden states of every layer, attention maps": lambda: refusal_of(
                lambda: self.model(IDS, output_hidden_states=True)
            ),
            "inputs_embeds": lambda: refusal_of(lambda: self.model(inputs_embeds=torch.zeros(1, 2, 16))),
            "another vocabulary": lambda: refusal_of(lambda: self.model.resize_token_embeddings(300)),
            "quantisers of transformers": lambda: refusal_of(
                lambda: FastSNNForCausalLM.from_pretrained(self.bundle, **quant)
            ),
        }


@torch.no_grad()
def hf_table() -> list[dict[str, str]]:
    """A row for every door of transformers that was tried."""
    with tempfile.TemporaryDirectory() as folder:
        return capability_rows("trying", Cases(Path(folder)).table())


def show_hf(bundle: str | None = None) -> tuple[Any, str]:
    """What a bundle does inside transformers; of a bundle, whether it is a language model that goes in."""
    if bundle is not None:
        from fastsnn_core import bundle as bundles
        from fastsnn_hf.configuration import of_table

        try:
            of_table(*bundles.verify(bundle))
        except FastSNNError as error:
            return {"refused": [str(error)]}, str(error)
        return {"refused": []}, "import fastsnn_hf, then AutoModelForCausalLM.from_pretrained(BUNDLE)"
    rows = hf_table()
    return rows, markdown_table(rows)
