"""Fine-tunes the language model to plan: a low-rank adapter, trained on instructions and their plans."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from planners.language import WEIGHTS, is_whole, load, peft, seal
from planners.robot_language import SCENES
from planners.weights import LANGUAGE_MODEL, language_model_path
from saycan_qt import atomic
from saycan_qt.learning import checkpoint
from saycan_qt.learning.divergence import require_finite
from saycan_qt.learning.metrics import MetricsLog

STATE, ADAPTER, PROVENANCE = "state", "adapter", "provenance.json"  # folders in a run's folder, a file in the second
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LENGTHS = (64, 96, 128, 192, 256, 320, 448)  # tokens that a batch's rows are padded to; few, as each is compiled
VALIDATION = 400  # pairs with ways to say things that are kept from training
POOL = 1024  # pairs that are drawn, sorted by length and cut into batches at a time; a run resumes between pools
IGNORED = -100
# A pair as the model reads it, and where the plan's steps are in it, from the blank before a step to its line's end
Draw = Callable[[np.random.Generator], tuple[str, list[tuple[int, int]]]]


@dataclass(frozen=True)
class TuneConfig:
    """Fine-tune the language model to plan."""

    out: Path  # folder of the run
    steps: int = 4000  # optimiser steps
    minutes: float = 0.0  # train for as long instead; the schedule follows the clock, so the run cannot be repeated
    rank: int = 16  # of the adapter; its size grows with it, 10 MB at 16
    tokens: int = 2048  # in a batch
    learning_rate: float = 6e-4  # its peak
    warmup: int = 40  # steps; 0: none
    seed: int = 0  # of the pairs
    threads: int = 2
    init: Path | None = None  # an adapter to start from: a folder that such a run left; of the same rank
    compile: bool = True  # torch.compile: a few minutes at first, then twice as fast; needs a C++ compiler


@dataclass(frozen=True)
class Pairs:
    """Where instructions and the plans that answer them come from."""

    training: Draw
    held_out: Draw  # with the ways to say things that are kept from training
    states: bool = False  # do the scenes tell what is open?
    told: bool = False  # do they begin with what the robot can do?
    pool: int | None = None  # how many are drawn at a time, in place of POOL; few, where a step is long


@dataclass(frozen=True)
class Encoded:
    """One pair in tokens; those of the plan's steps are learnt, the rest is given."""

    ids: list[int]
    labels: list[int]


def encode(tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> Encoded:
    """spans: of letters, the steps of the plan, each from its blank to its line's end."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    learnt = np.zeros(len(text) + 1, bool)
    for start, end in spans:
        learnt[start:end] = True
    labels = [
        token if learnt[start] and end > start else IGNORED
        for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    ]
    return Encoded(encoded.input_ids, labels)


def padded(rows: list[Encoded], length: int) -> tuple[Tensor, Tensor]:
    """Ids and labels (rows, length) int64; what follows a row's end is never looked at, as attention is causal."""
    ids, labels = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), IGNORED)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        labels[number, : len(row.labels)] = torch.tensor(row.labels)
    return ids, labels


class Data:
    """Batches of generated pairs, the same for the same seed."""

    def __init__(self, config: TuneConfig, pairs: Pairs, tokenizer: Any) -> None:
        self.config, self.pairs, self.tokenizer = config, pairs, tokenizer

    def batches(self, draw: Draw, seed: list[int], count: int) -> list[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng(seed)
        of_length: dict[int, list[Encoded]] = {length: [] for length in LENGTHS}
        for _ in range(count):
            row = encode(self.tokenizer, *draw(rng))
            if len(row.ids) <= LENGTHS[-1]:
                of_length[next(length for length in LENGTHS if len(row.ids) <= length)].append(row)
        found = []
        for length, rows in of_length.items():
            size = self.config.tokens // length
            found += [padded(rows[at : at + size], length) for at in range(0, len(rows) - size + 1, size)]
        return [found[i] for i in rng.permutation(len(found))]

    def pool(self, number: int) -> list[tuple[Tensor, Tensor]]:
        return self.batches(self.pairs.training, [self.config.seed, number], self.pairs.pool or POOL)


class Tuning(nn.Module):
    """The language model with an adapter whose master copy is float32: in bfloat16 small steps would be lost."""

    def __init__(self, config: TuneConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        model, self.tokenizer = load(language_model_path(), torch.bfloat16)
        model.set_attn_implementation("eager")  # faster than sdpa for rows this short, on a processor
        rank, modules = config.rank, list(MODULES)
        with peft() as package:
            lora = package.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
            self.peft = package.get_peft_model(model, lora, autocast_adapter_dtype=False)
            if config.init is not None:
                begin_from(config.init, self.peft, package)
        self.peft.peft_config["default"].base_model_name_or_path = LANGUAGE_MODEL.hub_name  # no folder of this machine
        self.head = model.lm_head
        self.working = [p for p in self.peft.parameters() if p.requires_grad]
        self.masters = nn.ParameterList([nn.Parameter(p.detach().float()) for p in self.working])
        self.body = model.model
        if config.compile:  # a layer alone, once for each length: the whole takes twenty times as long to compile
            torch._dynamo.config.recompile_limit = 4 * len(LENGTHS)
            for layer in self.body.layers:
                layer.compile(dynamic=False)

    def forward(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the learnt tokens, and for every row whether all of them come first (rows,) bool."""
        hidden = self.body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        rows, columns = (wanted != IGNORED).nonzero(as_tuple=True)
        logits = self.head(hidden[rows, columns])
        targets = wanted[rows, columns]
        wrong = torch.zeros(len(ids)).index_add_(0, rows, (logits.argmax(-1) != targets).float())
        return nn.functional.cross_entropy(logits, targets, reduction="none").float().mean(), wrong == 0

    def copy_masters(self) -> None:
        with torch.no_grad():
            for working, master in zip(self.working, self.masters, strict=True):
                working.copy_(master)

    def take_gradients(self) -> None:
        for working, master in zip(self.working, self.masters, strict=True):
            master.grad = None if working.grad is None else working.grad.float()
            working.grad = None


def begin_from(folder: Path, model: nn.Module, package: Any) -> None:
    """Give the model's adapter the weights of another. Raises ValueError where they do not fit."""
    file = folder / WEIGHTS
    if not (file.is_file() and is_whole(folder)):
        raise ValueError(f"--init {folder}: no whole adapter in it; give the folder `adapter` of a run")
    given, own = load_file(str(file)), package.get_peft_model_state_dict(model)
    if {name: tensor.shape for name, tensor in given.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ValueError(f"--init {folder}: an adapter of another rank or model than this run's")
    package.set_peft_model_state_dict(model, given)


class Run:
    """One tuning run and where it stands."""

    def __init__(self, config: TuneConfig, pairs: Pairs) -> None:
        config.out.mkdir(parents=True, exist_ok=True)
        self.config, self.tuning = config, Tuning(config)
        self.data = Data(config, pairs, self.tuning.tokenizer)
        self.optimizer = torch.optim.AdamW(self.tuning.masters.parameters(), config.learning_rate, weight_decay=0.01)
        self.step, self.pool, self.earlier = 0, 0, 0.0
        self.state, self.modules = config.out / STATE, {"masters": self.tuning.masters}
        if checkpoint.exists(self.state):
            position = checkpoint.load_training_state(self.state, self.modules, self.optimizer)
            self.step, self.pool, self.earlier = position["step"], position["pool"], position["seconds"]
            self.tuning.copy_masters()
        self.begun = time.monotonic()
        self.log = MetricsLog(config.out, self.step)
        self.held_out = self.data.batches(
            pairs.held_out, [config.seed, 1, 0], min(VALIDATION, pairs.pool or VALIDATION)
        )

    @property
    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.begun

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        config = self.config
        return self.seconds / (config.minutes * 60) if config.minutes > 0 else self.step / config.steps

    @property
    def learning_rate(self) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        return self.config.learning_rate * warm * (0.02 + 0.98 * cosine)

    def train(self) -> None:
        while self.progress < 1:
            losses, right = [], []
            for ids, labels in self.data.pool(self.pool):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate
                loss, exact = self.tuning(ids, labels)
                loss.backward()
                self.tuning.take_gradients()
                norm = nn.utils.clip_grad_norm_(self.tuning.masters.parameters(), 1.0)
                require_finite("the loss or its gradient", loss.detach() + norm, self.step, self.config.out)
                self.optimizer.step()
                self.tuning.copy_masters()
                self.step += 1
                losses.append(loss.item())
                right += exact.tolist()
                if self.progress >= 1:
                    break
            self.pool += 1
            row = {"loss": float(np.mean(losses)), "right": float(np.mean(right)), "seconds": self.seconds}
            if self.pool % 4 == 0 or self.progress >= 1:
                row |= self.validate()
            self.save(row)
            left = self.seconds * (1 / max(self.progress, 1e-6) - 1) / 60
            self.log.write(self.step, row | {"learning_rate": self.learning_rate})
            shown = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if key != "seconds")
            print(f"step {self.step}  {shown}  {left:.0f} min left", flush=True)
        self.log.close()

    def validate(self) -> dict[str, float]:
        losses, right = [], []
        with torch.no_grad():
            for ids, labels in self.held_out:
                loss, exact = self.tuning(ids, labels)
                losses.append(loss.item())
                right += exact.tolist()
        return {"held_out_loss": float(np.mean(losses)), "held_out_right": float(np.mean(right))}

    def save(self, row: dict[str, float]) -> None:
        position = {"step": self.step, "pool": self.pool, "seconds": self.seconds}
        checkpoint.save_training_state(self.state, self.modules, self.optimizer, position)
        provenance = {
            "command": "python -m saycan_qt.tune " + " ".join(sys.argv[1:]),
            "step": self.step,
            **row,
        }
        with atomic.replacing_folder(self.config.out / ADAPTER) as folder:
            self.tuning.peft.save_pretrained(str(folder), save_embedding_layers=False)  # "auto" asks a hub
            (folder / PROVENANCE).write_bytes(atomic.to_json(provenance))
            told = {"states": self.data.pairs.states, "skills": self.data.pairs.told}
            (folder / SCENES).write_bytes(atomic.to_json(told))
            seal(folder)
