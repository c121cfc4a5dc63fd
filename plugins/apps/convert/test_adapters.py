"""Networks with adapters of peft: merged into plain layers, in memory, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastsnn_convert import ConversionError, convert
from fastsnn_core import load

peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:The PEFT config", "ignore:.*PEFT")
FINE = {"kind": "adaptive_threshold", "k": 1e4}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def moved(model: nn.Module) -> nn.Module:
    """Adapters begin at zero; these do something."""
    for name, p in model.named_parameters():
        if "lora_" in name or "vera_" in name or "ia3_" in name:
            nn.init.normal_(p, std=0.5)
    return model.eval()


WAYS = {
    "wrapped": lambda: peft.get_peft_model(network(), peft.LoraConfig(target_modules=["0", "2"], lora_dropout=0.3)),
    "in place": lambda: peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"]), network()),
    "dora": lambda: peft.get_peft_model(network(), peft.LoraConfig(target_modules=["0"], use_dora=True)),
    "ia3": lambda: peft.get_peft_model(network(), peft.IA3Config(target_modules=["0"], feedforward_modules=[])),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_adapted_network_is_what_is_converted(way, tmp_path):
    torch.manual_seed(0)
    model, x = moved(WAYS[way]()), torch.randn(40, 6)
    with torch.no_grad():
        wanted = model(x)
        done = convert(model, calibration=x, neuron=FINE)
        y = done.model.eval()(x)
        assert float((y - wanted).norm() / wanted.norm()) < 0.01
        assert torch.equal(model(x), wanted)  # the user's adapters are where they were
        done.save(tmp_path / "a.snn")
        assert torch.equal(load(tmp_path / "a.snn").eval()(x), y)


def test_an_adapter_that_is_switched_off_is_noticed():
    torch.manual_seed(0)
    model = moved(WAYS["wrapped"]())
    model.base_model.disable_adapter_layers()
    with pytest.raises(ConversionError, match="gives another output than PeftModel"):
        convert(model, calibration=torch.randn(40, 6))


def test_adapters_of_a_language_model(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(0, 300, (2, 20))
    settings = peft.LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    plain = transformers.LlamaForCausalLM(config)
    with_adapter = transformers.LlamaForCausalLM(config)
    with_adapter.load_state_dict(plain.state_dict())
    with_adapter.add_adapter(settings)
    for model in (moved(peft.get_peft_model(plain, settings)), moved(with_adapter)):
        with torch.no_grad():
            wanted = model(ids).logits
            done = convert(model, calibration=ids, neuron=FINE, balance=False, spread=False, measure=False)
            y = done.model.eval()(ids)
        assert float((y - wanted).norm() / wanted.norm()) < 0.01


def test_prompts_are_no_change_of_weights():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = peft.get_peft_model(
        transformers.LlamaForCausalLM(config), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(ConversionError, match="cannot be merged into the weights"):
        convert(model, calibration=torch.randint(0, 300, (2, 20)))
