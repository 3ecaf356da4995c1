"""Fine-tunes the language model to plan: a low-rank adapter, trained on instructions and their plans."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from planners.language import WEIGHTS, fast_dtype, is_whole, load, peft, seal
from planners.robot_language import SCENES, TAUGHT, adapter_folder
from planners.weights import LANGUAGE_MODEL, language_model_path
from saycan_qt import atomic
from saycan_qt.learning import checkpoint
from saycan_qt.learning.divergence import require_finite
from saycan_qt.learning.metrics import MetricsLog

STATE, ADAPTER, PROVENANCE = "state", "adapter", "provenance.json"  # folders in a run's folder, a file in the second
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EACH = 2  # rows that are filled from one beginning
VALIDATION = 32  # rows with ways to say things that are kept from training
POOL = 96  # rows that are drawn and shuffled at a time; a run resumes between pools
MOST_TOLD = 0.6  # share of a row that what a robot can do may take; the kitchen's takes 259 tokens
IN_VAIN = 20  # robots that are too large, or pairs that are too long, until it is given up
IGNORED = -100
# A pair as the model reads it, and where the plan's steps are in it, from the blank before a step to its line's end
Pair = tuple[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Drawn:
    """Pairs with one beginning, as those of a robot have: each follows from that alone, and not from the others."""

    beginning: str  # nothing of it is learnt
    pairs: Iterator[Pair]  # without an end


Draw = Callable[[np.random.Generator], Drawn]


@dataclass(frozen=True)
class TuneConfig:
    """Fine-tune the language model to plan."""

    out: Path  # folder of the run
    steps: int = 4000  # optimiser steps
    minutes: float = 0.0  # train for as long instead; the schedule follows the clock, so the run cannot be repeated
    rank: int = 16  # of the adapter; its size grows with it, 10 MB at 16, in bfloat16
    tokens: int = 2048  # in a batch, of whole rows
    row: int = 512  # tokens of a row, which is filled with pairs; what a robot can do takes at most 0.6 of one
    learning_rate: float = 6e-4  # its peak
    warmup: int = 40  # steps; 0: none
    seed: int = 0  # of the pairs
    threads: int = 2
    init: Path | None = None  # an adapter to start from, of the same rank: the folder `adapter` of a run, or "general"
    compile: bool = True  # torch.compile: a few minutes at first, then twice as fast; needs a C++ compiler


@dataclass(frozen=True)
class Pairs:
    """Where instructions and the plans that answer them come from."""

    training: Draw
    held_out: Draw  # with the ways to say things that are kept from training
    states: bool = False  # do the scenes tell what is open?
    told: bool = False  # do they begin with what the robot can do?
    any_robot: bool = False  # are they of robots that do not exist, for those that nothing is taught?
    source: str = ""  # what they are of: told apart from all others
    taught: tuple[str, ...] = ()  # texts of the skills of a robot that is known


@dataclass
class Row:
    """A beginning and the pairs that follow from it, in tokens; of the pairs the plans' steps are learnt."""

    ids: list[int]
    labels: list[int]
    pairs: list[int]  # which pair a token is of, from 1; 0: of the beginning

    @staticmethod
    def begin(ids: list[int]) -> Row:
        return Row(list(ids), [IGNORED] * len(ids), [0] * len(ids))

    def add(self, ids: list[int], labels: list[int]) -> None:
        number = self.pairs[-1] + 1 if self.pairs else 1
        self.ids += ids
        self.labels += labels
        self.pairs += [number] * len(ids)


def encode(tokenizer: Any, beginning: str, pair: Pair) -> tuple[list[int], list[int], list[int]]:
    """Ids of the beginning, of the pair behind it, and the pair's labels; cut into tokens as one text, as a planner
    reads them: an empty line that ends a text is another token than one that is followed by something."""
    text, spans = beginning + pair[0], pair[1]
    encoded = tokenizer(text, return_offsets_mapping=True)
    learnt = np.zeros(len(text) + 1, bool)
    for start, end in spans:
        learnt[len(beginning) + start : len(beginning) + end] = True
    labels = [
        token if learnt[start] and end > start else IGNORED
        for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    ]
    cut = sum(start < len(beginning) for start, _ in encoded.offset_mapping)
    return encoded.input_ids[:cut], encoded.input_ids[cut:], labels[cut:]


def rows(tokenizer: Any, drawn: Drawn, length: int, most: int = EACH) -> tuple[list[Row], Pair | None]:
    """Rows filled with pairs, each in the first that has room for it, and the pair for which none had any more.

    No rows where the beginning takes more than MOST_TOLD of one. A pair longer than a row is passed over; where no
    other comes, that is the end.
    """
    found, passed = list[Row](), 0
    for pair in drawn.pairs:
        beginning, ids, labels = encode(tokenizer, drawn.beginning, pair)
        if len(beginning) > MOST_TOLD * length:
            break
        passed = passed + 1 if len(beginning) + len(ids) > length else 0
        if passed == IN_VAIN:
            break
        if passed:
            continue
        row = next((row for row in found if len(row.ids) + len(ids) <= length), None)
        if row is None:
            if len(found) == most:
                return found, pair
            row = Row.begin(beginning)
            found.append(row)
        row.add(ids, labels)
    return found, None


def padded(rows: list[Row], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and pairs (rows, length) int64; what follows a row's end is a pair of its own, of which nothing is
    learnt."""
    ids, labels = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), IGNORED)
    pairs = torch.full((len(rows), length), -1)
    for number, row in enumerate(rows):
        for of_all, of_row in ((ids, row.ids), (labels, row.labels), (pairs, row.pairs)):
            of_all[number, : len(row.ids)] = torch.tensor(of_row, dtype=torch.int64)
    return ids, labels, pairs


def sight(pairs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What is added to attention (rows, 1, length, length) `dtype`, and positions (rows, length) int64: a token sees
    the beginning and what is before it in its own pair, and stands where it would stand without the other pairs."""
    seen = ((pairs[:, None, :] == pairs[:, :, None]) | (pairs[:, None, :] == 0)).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[:, None], seen.sum(-1) - 1


def endless(one: Callable[[np.random.Generator], Pair], beginning: str = "") -> Draw:
    return lambda rng: Drawn(beginning, (one(rng) for _ in count()))


class Data:
    """Batches of generated pairs, the same for the same seed."""

    def __init__(self, config: TuneConfig, pairs: Pairs, tokenizer: Any) -> None:
        self.config, self.pairs, self.tokenizer = config, pairs, tokenizer

    def batches(self, draw: Draw, seed: list[int], least: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """least: rows. Raises ValueError where most of what is drawn is too long for a row."""
        rng, length, found = np.random.default_rng(seed), self.config.row, list[Row]()
        left = dict[str, Pair]()  # pairs that had no room, by their beginnings: lost, they would be the long ones
        size, tried, in_vain = self.config.tokens // length, 0, 0
        while len(found) < max(least, size):
            drawn = draw(rng)
            before = [left.pop(drawn.beginning)] if drawn.beginning in left else []
            more, over = rows(self.tokenizer, Drawn(drawn.beginning, chain(before, drawn.pairs)), length)
            if over is not None:
                left[drawn.beginning] = over
            found, tried, in_vain = found + more, tried + 1, in_vain + (not more)
            if in_vain >= IN_VAIN and in_vain > tried / 2:
                raise ValueError(
                    f"what a robot can do takes more than {MOST_TOLD} of --row {length}, or a pair a whole one: "
                    f"give twice that to --row, and at least as many --tokens"
                )
        shuffled = [found[i] for i in rng.permutation(len(found))]
        return [padded(shuffled[at : at + size], length) for at in range(0, len(found) - size + 1, size)]

    def pool(self, number: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        return self.batches(self.pairs.training, [self.config.seed, number], POOL)


class Tuning(nn.Module):
    """The language model with an adapter whose master copy is float32: in bfloat16 small steps would be lost."""

    def __init__(self, config: TuneConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        model, self.tokenizer = load(language_model_path(), fast_dtype())
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
        if config.compile:  # a layer alone: the whole takes twenty times as long to compile
            for layer in self.body.layers:
                layer.compile(dynamic=False)

    def forward(self, ids: Tensor, labels: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the learnt tokens, and for every pair whether all of its come first (pairs,) bool."""
        mask, positions = sight(pairs, self.head.weight.dtype)
        seen = self.body(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        hidden, wanted = seen.last_hidden_state[:, :-1], labels[:, 1:]
        rows, columns = (wanted != IGNORED).nonzero(as_tuple=True)
        logits = self.head(hidden[rows, columns])
        targets = wanted[rows, columns]
        of = rows * (int(pairs.max()) + 1) + pairs[rows, columns + 1]
        _, of = of.unique(return_inverse=True)
        wrong = torch.zeros(int(of.max()) + 1).index_add_(0, of, (logits.argmax(-1) != targets).float())
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
    folder = adapter_folder(folder)
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
            self.require_the_same(position)
            self.step, self.pool, self.earlier = position["step"], position["pool"], position["seconds"]
            self.tuning.copy_masters()
        self.begun = time.monotonic()
        self.log = MetricsLog(config.out, self.step)
        self.held_out = self.data.batches(pairs.held_out, [config.seed, 1, 0], VALIDATION)

    @property
    def drawn(self) -> dict[str, Any]:
        """What the pairs and their batches depend on."""
        config, pairs = self.config, self.data.pairs
        sizes = {"seed": config.seed, "row": config.row, "tokens": config.tokens}
        return sizes | {"told": pairs.told, "states": pairs.states, "pairs": pairs.source}

    def require_the_same(self, position: Mapping[str, Any]) -> None:
        """Raises ValueError where the run was begun with other pairs."""
        for name, value in self.drawn.items():
            if position.get(name) != value:
                raise ValueError(
                    f"{self.config.out} holds a run that was begun with {name} {position.get(name, 'unknown')}, not "
                    f"{value}: give the same, or another --out"
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
        if self.progress >= 1 and not self.is_written():  # killed after its last step
            self.save(self.validate())
        while self.progress < 1:
            losses, right = [], []
            for batch in self.data.pool(self.pool):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate
                loss, exact = self.tuning(*batch)
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
            for batch in self.held_out:
                loss, exact = self.tuning(*batch)
                losses.append(loss.item())
                right += exact.tolist()
        return {"held_out_loss": float(np.mean(losses)), "held_out_right": float(np.mean(right))}

    def is_written(self) -> bool:
        """Is the adapter that of the last step?"""
        folder = self.config.out / ADAPTER
        return is_whole(folder) and json.loads((folder / PROVENANCE).read_text())["step"] == self.step

    def save(self, row: dict[str, float]) -> None:
        position = {"step": self.step, "pool": self.pool, "seconds": self.seconds} | self.drawn
        checkpoint.save_training_state(self.state, self.modules, self.optimizer, position)
        provenance = {
            "command": "python -m saycan_qt.tune " + " ".join(sys.argv[1:]),
            "step": self.step,
            "machine": checkpoint.machine(),
            **row,
        }
        with atomic.replacing_folder(self.config.out / ADAPTER) as folder:
            given = self.tuning.peft.state_dict().items()
            weights = {name: weight.bfloat16() for name, weight in given if "lora_" in name}
            # "auto", in the place of False, asks a hub
            self.tuning.peft.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
            (folder / PROVENANCE).write_bytes(atomic.to_json(provenance))
            pairs = self.data.pairs
            told = {"states": pairs.states, "skills": pairs.told, "any_robot": pairs.any_robot}
            (folder / SCENES).write_bytes(atomic.to_json(told))
            if pairs.taught:
                (folder / TAUGHT).write_bytes(atomic.to_json({"skills": list(pairs.taught)}))
            seal(folder)
