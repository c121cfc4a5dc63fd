"""A bundle through transformers' own doors: the same logits, the same greedy text, padding, cache, training, peft."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline  # noqa: E402

from fastsnn_core import build, bundle, create  # noqa: E402
from fastsnn_core.errors import FastSNNError  # noqa: E402
from fastsnn_core.state import leaves  # noqa: E402
from fastsnn_hf import FastSNNCache, FastSNNForCausalLM, capabilities  # noqa: E402
from fastsnn_hf.configuration import FastSNNConfig, of_table  # noqa: E402
from fastsnn_integer.quantization import Quant, quantise  # noqa: E402
from fastsnn_text import ByteTokenizer, Sampling, attach, generate_ids, generate_text, train_bpe  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and peft warn about themselves
KINDS = {
    "hybrid": (create("attention", "gla"), create("attention", "sliding_window", window=8)),
    "softmax": (create("attention", "softmax"),),
}


def made(kind="hybrid", quant=False, tokenizer=None, seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "attention": KINDS[kind]}
    model = build(create("model", "decoder", **sizes, **fields)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(8)  # next tokens that differ from each other
    if quant:
        model = quantise(model, Quant()).eval()
    attach(model, tokenizer or ByteTokenizer())
    return model


@pytest.fixture(params=["hybrid", "softmax", "int8"], scope="module")
def saved(request, tmp_path_factory):
    model = made("hybrid" if request.param == "int8" else request.param, quant=request.param == "int8")
    return bundle.save(model, tmp_path_factory.mktemp("b") / "m.snn"), model


def test_logits_generation_and_pipeline_are_the_models_own(saved):
    path, model = saved
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(str(path)), AutoTokenizer.from_pretrained(path)
    assert type(hf) is FastSNNForCausalLM
    assert not hf.training
    ids = torch.tensor([list(b"once upon")])
    assert tokenizer("once upon", return_tensors="pt").input_ids.tolist() == ids.tolist()
    with torch.no_grad():
        assert torch.equal(hf(ids).logits, model(ids))
        assert torch.equal(hf(ids, logits_to_keep=1).logits, model(ids, last=True))
    wanted = list(generate_ids(model, ids[0].tolist(), 12, Sampling(temperature=0.0), stop=None))
    found = hf.generate(ids, max_new_tokens=12, do_sample=False)[0, 9:].tolist()
    assert found == (wanted[: wanted.index(256) + 1] if 256 in wanted else wanted)
    text = pipeline("text-generation", model=str(path))("once upon", max_new_tokens=12, do_sample=False)
    assert text[0]["generated_text"] == "once upon" + "".join(
        generate_text(model, "once upon", 12, Sampling(temperature=0.0))
    )
    loaded = pipeline("text-generation", model=hf, tokenizer=tokenizer)("once upon", max_new_tokens=12, do_sample=False)
    assert loaded == text


def test_the_state_goes_in_and_out(saved):
    path, _ = saved
    hf, ids = AutoModelForCausalLM.from_pretrained(path), torch.randint(0, 256, (2, 17))
    with torch.no_grad():
        whole = hf(ids)
        first = hf(ids[:, :5])
        cache = first.past_key_values
        assert isinstance(cache, FastSNNCache)
        assert cache.get_seq_length() == 5
        fork = copy.deepcopy(cache)
        pieces = [first.logits]
        for a, b in ((5, 6), (6, 17)):
            out = hf(ids[:, a:b], past_key_values=cache)
            assert out.past_key_values is cache
            pieces.append(out.logits)
        torch.testing.assert_close(torch.cat(pieces, 1), whole.logits)
        torch.testing.assert_close(hf(ids[:, 5:], past_key_values=fork).logits, whole.logits[:, 5:])
        cache.reorder_cache(torch.tensor([1, 0]))
        more = hf(ids[:, :3], past_key_values=cache).logits
        torch.testing.assert_close(more, hf(torch.cat([ids.flip(0), ids[:, :3]], 1)).logits[:, 17:])
        assert hf(ids, use_cache=False).past_key_values is None
    assert dict(leaves(cache.state))
    with pytest.raises(FastSNNError, match="take tokens back"):
        cache.crop(1)
    with pytest.raises(FastSNNError, match="FastSNNCache"):
        hf(ids, past_key_values=transformers.DynamicCache())


def test_padded_rows_say_what_they_say_alone(saved):
    path, _ = saved
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    texts = ["a long text here", "short", "mid length"]
    alone = [
        hf.generate(**tokenizer(t, return_tensors="pt"), max_new_tokens=8, do_sample=False)[0, len(t) :] for t in texts
    ]
    together = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():  # a greedy text may hide a difference
        logits = hf(**together).logits
        for row, text in zip(logits, texts):
            torch.testing.assert_close(row[-len(text) :], hf(**tokenizer(text, return_tensors="pt")).logits[0])
    batch = hf.generate(**together, max_new_tokens=8, do_sample=False)
    for row, wanted in zip(batch, alone):
        assert row[16:][: len(wanted)].tolist() == wanted.tolist()
    beams = hf.generate(
        **tokenizer("short", return_tensors="pt"),
        max_new_tokens=6,
        num_beams=3,
        do_sample=False,
        num_return_sequences=2,
    )
    plain = hf.generate(
        **tokenizer("short", return_tensors="pt"),
        max_new_tokens=6,
        num_beams=3,
        do_sample=False,
        use_cache=False,
        num_return_sequences=2,
    )
    assert beams.tolist() == plain.tolist()
    right = torch.tensor([[104, 105, 106], [104, 105, 256]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        out = hf(right, attention_mask=mask)
        torch.testing.assert_close(out.logits[1, :2], hf(right[1:, :2]).logits[0])
        for more in (None, torch.cat([mask, mask.new_ones(2, 1)], 1)):
            with pytest.raises(FastSNNError, match="pad"):
                hf(right[:, :1], attention_mask=more, past_key_values=out.past_key_values)
        with pytest.raises(FastSNNError, match="between ones"):
            hf(right, attention_mask=torch.tensor([[1, 0, 1], [1, 1, 1]]))
        with pytest.raises(FastSNNError, match="columns"):
            hf(right, attention_mask=torch.ones(2, 7))
        with pytest.raises(FastSNNError, match="position_ids"):
            hf(right, position_ids=torch.tensor([[0, 2, 3], [0, 1, 2]]))


def test_loss_training_checkpointing_and_accelerate(tmp_path):
    hf = FastSNNForCausalLM(*config_and(made()))
    ids, labels = torch.randint(0, 256, (2, 9)), torch.randint(0, 256, (2, 9))
    labels[:, :4] = -100
    hf.train()
    out = hf(input_ids=ids, labels=labels)
    wanted = torch.nn.functional.cross_entropy(out.logits[:, 3:-1].flatten(0, 1), labels[:, 4:].flatten())
    torch.testing.assert_close(out.loss, wanted)
    assert out.past_key_values is None
    out.loss.backward()
    plain = {n: p.grad.clone() for n, p in hf.named_parameters() if p.grad is not None}
    assert plain
    hf.zero_grad()
    hf.gradient_checkpointing_enable()
    assert hf.model.checkpointing
    hf(input_ids=ids, labels=labels).loss.backward()
    for name, grad in plain.items():
        torch.testing.assert_close(hf.get_parameter(name).grad, grad)
    hf.gradient_checkpointing_disable()
    assert not hf.model.checkpointing
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=6, learning_rate=3e-3, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        save_steps=6, logging_steps=6, disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": ids[i % 2], "labels": ids[i % 2]} for i in range(8)]
    with torch.no_grad():
        before = float(hf.eval()(input_ids=ids, labels=ids).loss)
    trainer = transformers.Trainer(hf, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")(ids).logits
        assert torch.equal(again, hf.eval()(ids).logits)
    accelerate = pytest.importorskip("accelerate")
    optimizer = torch.optim.SGD(hf.parameters(), 0.1)
    device = accelerate.Accelerator(cpu=True)
    wrapped, optimizer = device.prepare(hf.train(), optimizer)
    loss = wrapped(input_ids=ids, labels=ids).loss
    device.backward(loss)
    optimizer.step()
    assert float(wrapped(input_ids=ids, labels=ids).loss) < float(loss)


def test_packed_texts_compute_what_each_computes_alone():
    hf = FastSNNForCausalLM(*config_and(made())).eval()
    a, b = torch.randint(0, 256, (1, 5)), torch.randint(0, 256, (1, 4))
    ids, places = torch.cat([a, b], 1), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    ends, which = torch.tensor([0, 5, 9]), torch.tensor([[0] * 5 + [1] * 4])
    with torch.no_grad():
        packed = hf(ids, position_ids=places, cu_seq_lens_q=ends, max_length_q=5, seq_idx=which).logits
        torch.testing.assert_close(packed, torch.cat([hf(a).logits, hf(b).logits], 1))
        assert not torch.allclose(packed, hf(ids).logits), "without positions the second text goes on from the first"
        with pytest.raises(FastSNNError, match="cu_seq_lens_q"):
            hf(ids, position_ids=places, cu_seq_lens_q=torch.tensor([0, 4, 9]))
        with pytest.raises(FastSNNError, match="seq_idx"):
            hf(ids, position_ids=places, seq_idx=torch.zeros(1, 9, dtype=torch.int64))
        with pytest.raises(FastSNNError, match="need position_ids"):
            hf(ids, seq_idx=which)
        with pytest.raises(FastSNNError, match="encoder_outputs"):
            hf(ids, encoder_outputs=ids)


@pytest.mark.parametrize("tied", [False, True])
def test_last_hidden_states_and_the_output_embeddings_make_the_logits(tied):
    hf = FastSNNForCausalLM(*config_and(made(tied=tied))).eval()
    ids = torch.randint(0, 256, (2, 9))
    with torch.no_grad():
        body, head = hf.base_model, hf.get_output_embeddings()
        hidden = body(ids, use_cache=False).last_hidden_state
        assert hidden.shape == (2, 9, hf.config.hidden_size)
        assert body.layers is hf.model.layers
        wanted = hf(ids).logits
        torch.testing.assert_close(torch.nn.functional.linear(hidden, head.weight, head.bias), wanted)
        torch.testing.assert_close(head(hidden), wanted)
    assert not {n for n, _ in hf.named_parameters() if not n.startswith("model.")}, "the body is no second network"


@pytest.mark.parametrize("how", ["text", "completion", "packed", "messages", "lora"])
def test_trl_fine_tunes(tmp_path, how):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    path = bundle.save(made(), tmp_path / "m.snn")
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}"
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "good day"}]
    row = {"completion": {"prompt": "Say hi.", "completion": " hi there"}, "messages": {"messages": said}}
    rows = datasets.Dataset.from_list([row.get(how, {"text": "the cat sat on the mat."})] * 32)
    more = {"packing": True, "max_length": 64} if how == "packed" else {}
    arguments = trl.SFTConfig(
        str(tmp_path / "out"), max_steps=6, learning_rate=3e-3, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, bf16=False, logging_steps=1, save_steps=6, disable_tqdm=True, **more,
    )  # fmt: skip
    if how == "lora":
        peft = pytest.importorskip("peft")
        more = {"peft_config": peft.LoraConfig(r=4, target_modules=["q", "v", "up"], task_type="CAUSAL_LM")}
    trainer = trl.SFTTrainer(
        model=hf, args=arguments, train_dataset=rows, processing_class=tokenizer,
        **(more if how == "lora" else {}),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "checkpoint-6").is_dir()


def config_and(model):
    table = of_table(bundle.config(model), model.meta)
    table.pop("architectures")
    table.pop("model_type")
    return FastSNNConfig(**table), model


def test_low_rank_adapters_are_saved_loaded_and_merged(tmp_path):
    peft = pytest.importorskip("peft")
    path = bundle.save(made(), tmp_path / "m.snn")
    hf, ids = AutoModelForCausalLM.from_pretrained(path), torch.randint(0, 256, (2, 9))
    with torch.no_grad():
        base = hf(ids).logits
    settings = peft.LoraConfig(r=2, target_modules=["q", "v", "up"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(hf, settings).eval()
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
    assert not torch.allclose(wanted, base)
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / "adapter").eval()
    straight = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")  # transformers finds the base by itself
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, wanted)
        assert torch.equal(straight(input_ids=ids).logits, wanted)
        found = again.generate(input_ids=ids[:1], max_new_tokens=4, do_sample=False)
        assert found.shape[1] > 9
        merged = again.merge_and_unload()
        assert type(merged) is FastSNNForCausalLM
        torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-3, atol=1e-3)
        bundle.save(merged.model, tmp_path / "merged.snn")
        assert torch.equal(bundle.load(tmp_path / "merged.snn")(ids), merged(ids).logits)


def test_a_directory_is_ordinary_and_comes_back(saved, tmp_path):
    path, model = saved
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    hf.save_pretrained(tmp_path / "d", max_shard_size="10KB")
    tokenizer.save_pretrained(tmp_path / "d")
    assert (tmp_path / "d" / "model.safetensors.index.json").is_file()
    hf.save_pretrained(tmp_path / "d")
    names = {p.name for p in (tmp_path / "d").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "README.md", "tokenizer.json"} <= names
    assert not any("of" in n and n.startswith("model-") for n in names), "shards of before are gone"
    assert "spik" in (tmp_path / "d" / "README.md").read_text()
    assert json.loads((tmp_path / "d" / "config.json").read_text())["model_type"] == "fastsnn"
    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "d"), torch.randint(0, 256, (1, 9))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids))
    assert AutoTokenizer.from_pretrained(tmp_path / "d")("héé", return_tensors="pt").input_ids.tolist() == [
        list("héé".encode())
    ]
    assert AutoConfig.from_pretrained(tmp_path / "d").vocab_size == AutoConfig.from_pretrained(path).vocab_size == 257
    assert again.config.eos_token_id == 256
    assert bundle.save(again.model, tmp_path / "again.snn")
    with torch.no_grad():
        assert torch.equal(bundle.load(tmp_path / "again.snn")(ids), model(ids))


def test_tokenizers_say_the_same(tmp_path):
    texts = ["Hello, wörld!\n  two", "", "日本 🙂", "<|endoftext|>x"]
    byte = AutoTokenizer.from_pretrained(bundle.save(made(), tmp_path / "b.snn"))
    for text in texts[:3]:
        assert byte(text).input_ids == list(text.encode())
    assert byte.decode([72, 255, 105, 226, 130, 33]) == ByteTokenizer().decode([72, 255, 105, 226, 130, 33])
    bpe = train_bpe(["the cat sat on the mat " * 20], 270)
    path = bundle.save(made(tokenizer=bpe, vocab_size=270), tmp_path / "t.snn")
    theirs = AutoTokenizer.from_pretrained(path)
    for text in ["the cat", "mat the", "zebra"]:
        assert theirs(text).input_ids == bpe.encode(text)
    assert theirs.eos_token_id == bpe.end


def test_mistakes_are_said(tmp_path):
    path = bundle.save(made(), tmp_path / "m.snn")
    hf = AutoModelForCausalLM.from_pretrained(path)
    hf.save_pretrained(tmp_path / "d")
    (tmp_path / "d" / "model.safetensors").unlink()
    with pytest.raises(FastSNNError, match="has no weights"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "d")
    (tmp_path / "d" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FastSNNError, match="is damaged"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "d")
    (path / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(FastSNNError, match=r"weights\.safetensors"):
        AutoModelForCausalLM.from_pretrained(path)
    for said, call in {
        "inputs_embeds": lambda: hf(inputs_embeds=torch.zeros(1, 2, 16)),
        "attention maps": lambda: hf(torch.tensor([[1]]), output_hidden_states=True),
        "cannot be resized": lambda: hf.resize_token_embeddings(300),
        "w8a": lambda: FastSNNForCausalLM.from_pretrained(path, quantization_config={"load_in_8bit": True}),
        "neither a .snn bundle": lambda: FastSNNForCausalLM.from_pretrained("./nothing"),
        "one device": lambda: FastSNNForCausalLM.from_pretrained(
            bundle.save(made(), tmp_path / "n.snn"), device_map={"a": "cpu", "b": "meta"}
        ),
    }.items():
        with pytest.raises(FastSNNError, match=said):
            call()
    with pytest.raises(FastSNNError, match="holds a 'sequential/sequential'"):
        of_table({"model": {"kind": "sequential/sequential"}}, {})


@pytest.mark.slow  # the import of the harness alone takes several seconds
def test_lm_evals_hf_type_measures_the_model_itself(saved):
    """Log-likelihoods of ``HFLM`` beside the network's own log-probabilities."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    path, model = saved
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    harness = huggingface.HFLM(pretrained=hf, tokenizer=tokenizer, batch_size=2, max_length=64, device="cpu")
    pairs = [("once upon", " a time"), ("a", "bc"), ("the cat sat", " on the mat")]
    rows = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (before, after), (found, greedy) in zip(pairs, harness.loglikelihood(rows, disable_tqdm=True)):
        ids = torch.tensor([list((before + after).encode())])
        with torch.no_grad():
            said = model(ids).log_softmax(-1)[0, len(before) - 1 : -1]
        wanted = said.gather(1, ids[0, len(before) :, None]).sum()
        assert found == pytest.approx(float(wanted), abs=1e-3)
        assert greedy == bool((said.argmax(-1) == ids[0, len(before) :]).all())


def test_the_table_of_show_is_found_by_trying_and_in_the_page(tmp_path):
    rows, text = capabilities.show_hf()
    assert [r["verdict"] for r in rows] == ["exact"] * 9 + ["refused"] * 6
    page = Path(__file__).resolve().parents[3] / "docs" / "interop.md"
    assert text in page.read_text(encoding="utf-8"), "docs/interop.md has another table:\n" + text
    assert capabilities.show_hf(str(bundle.save(made(), tmp_path / "m.snn")))[0] == {"refused": []}


def test_other_models_are_read_as_before(tmp_path):
    transformers.LlamaConfig(vocab_size=7).save_pretrained(tmp_path)
    found = AutoConfig.from_pretrained(tmp_path)
    assert (type(found), found.vocab_size) == (transformers.LlamaConfig, 7)
    with pytest.raises(OSError, match="nothing"):
        AutoConfig.from_pretrained(str(tmp_path / "nothing"), local_files_only=True)
