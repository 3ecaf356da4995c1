"""Families of language models, tokenizers among them: likelihoods are the model's own, or the model is refused."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from planners import language
from planners.language import LanguageScorer
from planners.proposal import generate
from planners.reading.passes import NEAR, Packed, Reader, Shared, Whole
from planners.weights import WeightsError, quietly

PROMPT = "Instruction: bring me the tea\n1. find the tea\n2."
LONG = "Instruction: put it down\n1. find the apple\n" * 3 + PROMPT
STEPS = [" find the apple\n", " find the sponge\n", " find the tea\n", " pick up the tea\n", " done\n"]
WINDOW = {"sliding_window": 64}  # tokens, of which LONG has more
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HEADS = {"n_embd": 32, "n_layer": 2, "n_head": 4}
PLACES = {"rope_theta": 1e4, "rope_type": "default"}
STATE = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
# What is particular about each tiny one, and how the model is read: the fastest way that agrees
FAMILIES = {
    "llama": ({}, "packed"),
    "mistral": (WINDOW, "packed"),
    "mixtral": (MOE, "packed"),
    "ministral": (WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}, "packed"),
    "qwen2": ({}, "packed"),
    "qwen2_moe": (MOE | {"shared_expert_intermediate_size": 32}, "packed"),
    "qwen3": ({}, "packed"),
    "qwen3_moe": (MOE, "packed"),
    "phi": ({}, "packed"),
    "phi3": (WINDOW, "packed"),
    "gemma": ({}, "packed"),
    "gemma2": (WINDOW | {"final_logit_softcapping": 5.0}, "packed"),
    "gemma3_text": (WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}, "packed"),
    "granite": ({"logits_scaling": 8.0}, "packed"),
    "granitemoe": (MOE | {"logits_scaling": 8.0}, "packed"),
    "cohere": ({"logit_scale": 0.0625}, "packed"),
    "cohere2": (WINDOW, "packed"),
    "gpt2": (HEADS, "packed"),
    "gpt_bigcode": (HEADS, "packed"),
    "gpt_neo": (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 64},
        "packed",
    ),
    "gpt_neox": ({}, "packed"),
    "gptj": (HEADS | {"rotary_dim": 4}, "packed"),
    "opt": ({"word_embed_proj_dim": 32, "ffn_dim": 48}, "packed"),
    "starcoder2": (WINDOW, "packed"),
    "stablelm": ({}, "packed"),
    "olmo": ({}, "packed"),
    "olmo2": ({}, "packed"),
    "smollm3": ({}, "packed"),
    "gpt_oss": (WINDOW | MOE, "packed"),
    "nemotron": ({}, "packed"),
    "deepseek_v3": (
        MOE
        | {
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "kv_lora_rank": 16,
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_key_value_heads": 4,
        },
        "packed",
    ),
    "bloom": (HEADS, "shared"),
    "falcon": ({"alibi": True}, "shared"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "shared"),
    "minimax": (MOE | {"layer_types": ["linear_attention", "full_attention"]}, "whole"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "shared"),
    "falcon_h1": (STATE, "shared"),
    "mamba": ({"state_size": 8}, "whole"),
    "mamba2": (
        {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 16},
        "whole",
    ),
    "rwkv": ({"attention_hidden_size": 32}, "whole"),
    "openai-gpt": (HEADS, "whole"),
    "jamba": (MOE | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}, "whole"),
    "recurrent_gemma": (
        {"block_types": ["recurrent", "attention"], "attention_window_size": 64, "lru_width": 32},
        "whole",
    ),
}


@cache
def tokenizer():
    """Of bytes, and of a few words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    said = [LONG + "".join(STEPS) + "".join(prompt + "".join(texts) for prompt, texts in language.PROBES)]
    made.train_from_iterator(
        said * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"], initial_alphabet=letters)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<s>")


@cache
def tiny(kind):
    """A random model, less shy than a new one, and never at an end."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer()), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} | ({} if kind == "falcon" else {"head_dim": 8})
    with quietly():
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes | FAMILIES.get(kind, ({},))[0]))
    with torch.no_grad():
        for weight in model.float().parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.25)
    return model.eval()


@pytest.fixture
def loaded(monkeypatch):
    """Scorers of tiny models, as they would be loaded from a folder."""

    def load(model, tokens=None, **options):
        monkeypatch.setattr(language, "load", lambda path, dtype: (model.to(dtype), tokens or tokenizer()))
        return LanguageScorer("tiny", **{"dtype": torch.float32, "negligible": 0} | options)

    return load


def own(model, tokens, prompt, step):
    """Log-likelihood by a plain pass of the model over the whole text."""
    before, ids = tokens(prompt).input_ids, tokens(prompt + step).input_ids
    with torch.inference_mode():
        log = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(log[i - 1, ids[i]].item() for i in range(len(before), len(ids)))


DIFFERENT = {
    "llama",
    "mistral",
    "qwen3",
    "phi3",
    "gemma2",
    "gemma3_text",
    "granite",
    "cohere",
    "gpt2",
    "gpt_neox",
    "opt",
}
DIFFERENT |= {"gpt_oss", "bloom", "mpt", "falcon", "mamba", "falcon_h1", "lfm2"}  # from each other
SCORED = [kind if kind in DIFFERENT else pytest.param(kind, marks=pytest.mark.slow) for kind in FAMILIES]


@pytest.mark.parametrize("kind", SCORED)
def test_every_family_scores_as_its_own_forward_does(loaded, kind):
    scorer = loaded(tiny(kind))
    for prompt in (PROMPT, f"{PROMPT} find the apple\n3.", LONG):
        expected = [own(scorer.model, tokenizer(), prompt, step) for step in STEPS]
        np.testing.assert_allclose(scorer.score(prompt, STEPS), expected, atol=1e-3, rtol=0)
    assert np.ptp(expected) > 1 and scorer.reader.ways[0] == FAMILIES[kind][1]


GO_ON = ("llama", "mistral", "gpt_oss", "mpt", "lfm2", "mamba", "recurrent_gemma", "rwkv", "openai-gpt")
ALL = [kind if kind in GO_ON else pytest.param(kind, marks=pytest.mark.slow) for kind in FAMILIES]


@pytest.mark.parametrize("kind", ALL)
def test_every_family_goes_on_from_a_prompt_as_its_own_forward_does(kind):
    class Local:
        model, tokenizer = tiny(kind), tokenizer()

    *_, texts = generate(Local, PROMPT, 6, count=2)
    ids = tokenizer()(PROMPT).input_ids
    said = []
    for _ in range(6):
        with torch.inference_mode():
            said.append(int(tiny(kind)(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
        if said[-1] == tokenizer().eos_token_id:
            said.pop()
            break
    assert texts == [tokenizer().decode(said)] * 2


def test_a_prompt_goes_on_to_the_end_of_what_the_model_can_read_and_a_longer_one_is_refused():
    class Local:
        model, tokenizer = tiny("llama"), tokenizer()

    word = "a"
    assert len(tokenizer()(word).input_ids) == 1 and len(tokenizer()(word * 254).input_ids) == 254
    assert len(list(generate(Local, word * 254, 9))) == 3  # 256 are read, the last one that is said is not
    with pytest.raises(ValueError, match="257 tokens, of which the model reads at most 256"):
        next(generate(Local, word * 257, 9))


@pytest.mark.parametrize(
    "kind",
    [
        "granite",
        "mpt",
        *(pytest.param(k, marks=pytest.mark.slow) for k in (["llama", "cohere", "gpt2", "bloom", "falcon", "mamba"])),
    ],
)
def test_what_does_not_agree_is_seen_in_bfloat16_too(kind):
    model = copy.deepcopy(tiny(kind)).to(torch.bfloat16)
    assert Reader(model, probes(tokenizer())).ways[0] == FAMILIES[kind][1]


def probes(tokens):
    return [
        (
            tokens(prompt).input_ids,
            [tokens(prompt + text).input_ids[len(tokens(prompt).input_ids) :] for text in texts],
        )
        for prompt, texts in language.PROBES
    ]


def test_probes_of_one_line_trust_no_packing():
    """Who takes rows for places (alibi) would agree with them."""
    first, (prompt, candidates), last = probes(tokenizer())
    assert Reader(tiny("mpt"), [first, (prompt, candidates), last]).ways == ["shared"]
    assert Reader(tiny("llama"), [first, (prompt, candidates[-1:]), last]).ways == ["shared"]


@pytest.mark.parametrize(
    ("window", "ways"), [(64, ["packed", "shared"]), (NEAR + 1, ["packed", "whole"]), (8, ["shared"])]
)
def test_beyond_a_window_the_models_own_masks_are_used(window, ways):
    model = copy.copy(tiny("mistral"))
    model.config = copy.deepcopy(model.config)
    model.config.sliding_window = window
    assert Reader(model, probes(tokenizer())).ways == ways


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_causal_model_is_refused_in_one_line(loaded, dtype):
    with pytest.raises(
        WeightsError, match=r"tiny: a BertLMHeadModel .* no causal model's are .* Llama, .* vLLM"
    ) as refusal:
        loaded(copy.deepcopy(tiny("bert")), dtype=dtype)
    assert "\n" not in str(refusal.value)


def test_a_model_that_says_no_numbers_is_refused(loaded):
    model = copy.deepcopy(tiny("llama"))
    model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(WeightsError, match="no numbers"):
        loaded(model)


def test_more_than_a_model_can_read_is_told(loaded):
    with pytest.raises(ValueError, match=r"have \d+ tokens, and the model reads at most 256"):
        loaded(tiny("gpt2")).score("1. find the apple\n" * 60, [" done\n"])


def test_threads_that_ask_take_turns(loaded, monkeypatch):
    scorer, inside, most = loaded(tiny("llama")), [], []

    def score(prompt, candidates):
        inside.append(prompt)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(prompt)

    monkeypatch.setattr(scorer, "_score", score)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: scorer.score(f"{number}.", [" done\n"]), range(8)))
    assert most == [1] * 8


def test_candidates_are_given_up_alike_however_they_are_read(loaded):
    scores = [loaded(tiny("llama"), negligible=1e-2)]
    scores.append(loaded(tiny("llama"), negligible=1e-2))
    scores[1].reader._ways = [(float("inf"), Whole(scores[1].model))]
    many = [
        f" {verb} the {thing}\n"
        for verb in ("find", "pick up", "drop")
        for thing in ("apple", "tea", "cup", "can", "sponge", "bag")
    ]
    packed, whole = (scorer.score(PROMPT, many) for scorer in scores)
    assert 0 < np.isfinite(packed).sum() < len(many)
    np.testing.assert_allclose(packed, whole, atol=1e-4, rtol=0)


def test_batches_are_bounded_and_change_nothing(monkeypatch):
    prompt, candidates = tokenizer()(PROMPT).input_ids, [tokenizer()(step).input_ids for step in STEPS]
    expected = Reader(tiny("gpt2"), probes(tokenizer())).log_likelihoods(prompt, candidates)
    most = 3000  # not ten tokens of this vocabulary
    monkeypatch.setattr("planners.reading.passes.MOST_LOGITS", most)
    for way in (Whole, Shared, lambda model: Packed(model, False)):
        model, made = tiny("gpt2"), []
        hook = model.register_forward_hook(lambda *given, made=made: made.append(given[-1].logits.numel()))
        with torch.inference_mode():
            np.testing.assert_allclose(way(model)(prompt, candidates), expected, atol=1e-4, rtol=0)
        hook.remove()
        assert len(made) > 1 and max(made) <= most


# -- tokenizers --------------------------------------------------------------------------------------------------------


def blank_first():
    """As Llama-2's: a blank is put before what it is given, and <s> before all."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split(Regex("\n|[0-9]|\\.|▁?[^▁\n0-9.]+|▁"), "isolated")
    made.train_from_iterator(
        [LONG + "".join(STEPS)] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"])
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")


def crossing_lines():
    """One whose tokens cross the starts of lines, as no pre-tokenizer keeps them apart."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.train_from_iterator([LONG + "".join(STEPS)] * 9, trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def ending():
    """One that ends every text by itself."""
    made = copy.deepcopy(tokenizer())
    made._tokenizer.post_processor = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])
    return made


@pytest.mark.parametrize("make", [blank_first, crossing_lines, ending])
def test_the_tokens_are_those_of_the_whole_text(loaded, make):
    tokens = make()
    scorer = loaded(tiny("llama"), tokens)
    prompt, candidates = scorer._tokenize(PROMPT, STEPS)
    whole = [tokens(PROMPT + step).input_ids for step in STEPS]
    assert [prompt + tail for tail in candidates] == [ids[:-1] if make is ending else ids for ids in whole]
    assert all(candidates) and np.isfinite(scorer.score(PROMPT, STEPS)).all()


def test_a_tokenizer_that_drops_the_ends_of_lines_is_refused(loaded):
    made = copy.deepcopy(tokenizer())
    made._tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(WeightsError, match="drops the ends of lines"):
        loaded(tiny("llama"), made)
