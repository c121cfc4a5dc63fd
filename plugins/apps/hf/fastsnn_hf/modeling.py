"""A FastSNN language model as one of transformers: loss, cache, generation, loading and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from fastsnn_core import bundle as bundles
from fastsnn_core.errors import ArgumentError, FastSNNError
from fastsnn_hf import directory
from fastsnn_hf.body import Body, TiedHead
from fastsnn_hf.cache import FastSNNCache
from fastsnn_hf.configuration import FastSNNConfig, bundle_at
from fastsnn_hf.padding import PACKED, check_packing, read_mask, read_positions

IGNORED = {
    "low_cpu_mem_usage", "trust_remote_code", "attn_implementation", "use_safetensors", "weights_only", "_from_auto",
    "_from_pipeline", "_commit_hash", "code_revision", "adapter_name", "output_loading_info", "max_memory",
    "offload_folder", "tp_plan", "gguf_file", "name_or_path", "_fast_init", "use_cache",
}  # fmt: skip
PASSED_OVER = {"cache_position", "token_type_ids", "return_dict"}
"""What transformers passes to every model, and says nothing that ids and positions do not say."""
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class FastSNNForCausalLM(PreTrainedModel, GenerationMixin):
    """``model`` is the FastSNN network itself; everything else is what transformers expects around it.

    ``model(input_ids [B,T], attention_mask, labels, past_key_values=FastSNNCache) -> loss, logits [B,T,V],
    past_key_values``. Rows may be padded on either side; labels of -100 do not count. Hidden states, attention maps and
    embeddings as input are refused.
    """

    config_class = FastSNNConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _is_stateful = True  # a state cannot take tokens back: transformers then refuses assisted generation
    _no_split_modules = ["Block"]

    def __init__(self, config: FastSNNConfig, network: nn.Module | None = None) -> None:
        super().__init__(config)
        if network is None:
            if not config.table:
                raise FastSNNError(
                    "a FastSNNConfig needs the spec of a model (table); AutoConfig.from_pretrained('model.snn') has it"
                )
            network = bundles.uninitialized(Path("config.json"), config.table)
        self.model: Any = network
        self.post_init()

    def init_weights(self) -> None:
        """The network has initialised itself."""

    def _init_weights(self, module: nn.Module) -> None:
        """The network has initialised itself."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Generation is not to make keys and values: `forward` makes a `FastSNNCache`."""
        return False

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """Blocks are computed again on the way back."""
        self.model.checkpointing = enable

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.embed

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, or the embedding it is tied to; None where that is quantised."""
        if self.model.head is not None:
            return self.model.head
        return None if self.model.spec.quant else TiedHead(self.model)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Refused unless nothing changes."""
        size = args[0] if args else kwargs.get("new_num_tokens")
        if size in (None, self.config.vocab_size):
            return self.model.embed
        raise FastSNNError(f"the vocabulary of {self.config.vocab_size} cannot be resized to {size}: its spec is fixed")

    @property
    def base_model(self) -> nn.Module:
        """The network without its head (`fastsnn_hf.body.Body`)."""
        return Body(self)

    def read(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: FastSNNCache | None = None,
        *,
        use_cache: bool | None = None,
        last: bool = False,
        head: bool = True,
        **more: Any,
    ) -> tuple[Any, FastSNNCache | None]:
        """``(logits [B,T,V], cache)``; without `head` the last hidden states ``[B,T,D]``; with `last` T is 1."""
        if input_ids is None or more.pop("inputs_embeds", None) is not None:
            raise ArgumentError("a FastSNN model takes input_ids; inputs_embeds are not supported")
        if any(more.pop(name, None) for name in ("output_attentions", "output_hidden_states")):
            raise ArgumentError(
                "a FastSNN model gives no attention maps or hidden states here; fastsnn_core.probe.probe(model.model) "
                "does"
            )
        if unknown := sorted(k for k, v in more.items() if v is not None and k not in PASSED_OVER | PACKED):
            raise ArgumentError(f"a FastSNN model takes no {', '.join(unknown)}")
        shape = (input_ids.shape[0], input_ids.shape[1])
        if packed := {k: v for k, v in more.items() if k in PACKED and v is not None}:
            check_packing(position_ids, shape, packed)
        cache = self.cache_of(past_key_values)
        seen, ended = (0, None) if cache is None else (cache.seen, cache.ended)
        reset, ended = read_mask(attention_mask, shape, seen, ended)
        starts = read_positions(position_ids, attention_mask, shape[1])
        if starts is not None:
            reset = starts.expand(shape) if reset is None else reset | starts
        wants = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        state = None if cache is None else cache.state
        found = self.model(input_ids, state, reset=reset, return_state=bool(wants), last=last, head=head)
        if not wants:
            return found, None
        out, after = found
        return out, (FastSNNCache() if cache is None else cache).put(after, shape[1], ended)

    def forward(  # the arguments are those of transformers' causal models
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: FastSNNCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **more: Any,
    ) -> Any:
        """Logits, and the loss of `labels` where they are given; see the class."""
        items = {k: more.pop(k) for k in ("num_items_in_batch", "shift_labels", "ignore_index") if k in more}
        last = labels is None and isinstance(logits_to_keep, int) and logits_to_keep == 1
        if use_cache is None and labels is not None:
            use_cache = False
        logits, cache = self.read(
            input_ids, attention_mask, position_ids, past_key_values, use_cache=use_cache, last=last,
            inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, **more,
        )  # fmt: skip
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **items)
        if not last and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            logits = logits[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return out.to_tuple() if return_dict is False else out

    def cache_of(self, given: Any) -> FastSNNCache | None:
        """A cache of this library; an empty one of another is none, a filled one is refused."""
        if given is None or isinstance(given, FastSNNCache):
            return given
        raise ArgumentError(
            f"past_key_values must be a fastsnn_hf.FastSNNCache (or left out), got {type(given).__name__}: "
            "a spiking model's state is not keys and values alone"
        )

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """The model of a ``.snn`` bundle, of a directory that `save_pretrained` wrote, or of a repository like that.

        `dtype`, `device_map` (one device, "auto" for a GPU where there is one) and `state_dict` work as in
        transformers; quantisation is FastSNN's own (``fastsnn export --to w8a``).
        """
        dtype = options.pop("dtype", options.pop("torch_dtype", None))
        place = options.pop("device_map", None)
        weights = options.pop("state_dict", None)
        generation = options.pop("generation_config", None)
        adapter = (options.pop("adapter_kwargs", None) or {}).get("_adapter_model_path")
        if options.pop("quantization_config", None) is not None:
            raise FastSNNError(
                "bitsandbytes and the like cannot quantise spikes; use fastsnn export BUNDLE --to w8a OUT.snn"
            )
        hub = {key: options.pop(key) for key in HUB if key in options}
        info = options.get("output_loading_info", False)
        if path := bundle_at(name):
            network = bundles.load(path)
        else:
            path = directory.local(name, hub)
            network = directory.load_network(path)
        if config is None:
            config, options = FastSNNConfig.from_pretrained(str(path), return_unused_kwargs=True, **options)
        if unknown := sorted(set(options) - IGNORED):
            raise ArgumentError(f"from_pretrained: unknown option {', '.join(unknown)}")
        config.name_or_path = str(name)
        if weights is not None:
            bundles.copy_weights(network, {k.removeprefix("model."): t for k, t in weights.items()}, Path("state_dict"))
        model: Any = cls(config, network)
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        if dtype is not None:
            model.to(dtype)
        if place is not None:
            model.to(device_of_map(place))
        if generation is not None:
            model.generation_config = generation
        else:
            directory.read_generation(model, path)
        if adapter is not None:
            model.load_adapter(adapter)
        model.eval()
        return (model, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}) if info else model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, **options: Any
    ) -> None:
        """An ordinary directory: config.json, safetensors, generation_config.json and a model card with figures.

        Every file is written beside and renamed. Adapters that were added with peft are saved as adapters.
        """
        if options.get("push_to_hub"):
            raise FastSNNError("push_to_hub: save to a folder, then huggingface_hub.upload_folder(folder_path=…)")
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, is_main_process, state_dict, **options)
        elif is_main_process:
            directory.write_directory(self, Path(save_directory), state_dict, options.get("max_shard_size", "5GB"))


def device_of_map(place: Any) -> torch.device:
    """One device of a ``device_map``."""
    if isinstance(place, dict):
        if len(set(map(str, place.values()))) != 1:
            raise FastSNNError(f"device_map {place}: a FastSNN model lies on one device")
        place = next(iter(place.values()))
    if place in ("auto", "balanced", "sequential"):
        place = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(place)
