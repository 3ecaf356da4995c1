"""Acting and judging: in fewer operations than training, and with the same results."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny_policies import AUTOREGRESSIVE, KINDS, PAPER_LIKE, TEXTS, make, observation
from torch import nn

from saycan_qt import serve
from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms.policy import smooth_probabilities
from saycan_qt.learning.algorithms.q_transformer import QTransformer, QTransformerConfig
from saycan_qt.networks import decoding
from saycan_qt.networks.backbone import PRESETS, PolicyNetwork
from saycan_qt.networks.efficientnet import FilmEfficientNet
from saycan_qt.services.replicas import RayOptions

SAME = 2e-6  # largest difference of values and of hidden states between the two ways, both in float32
ROUNDED = 0.02  # ... of values in bfloat16 and in float32
JUDGES = [kind for kind in KINDS if kind.startswith(("q-transformer", "iql", "aw", "qt"))]


@pytest.fixture(scope="module")
def affordance():
    return checkpoint.load("affordance")


def by_modules(network: PolicyNetwork, tokens: torch.Tensor, choose, dims: int) -> torch.Tensor:
    """Bins (B, dims), by the passes that training makes."""
    with torch.enable_grad():
        memory = network.remember(tokens)
        bins = torch.empty(len(tokens), 0, dtype=torch.long)
        for dim in range(dims):
            hidden, _ = network.read(memory, bins)
            bins = torch.cat([bins, choose(network, hidden[:, -1], dim)[:, None]], dim=1)
    return bins


@pytest.mark.parametrize("kind", AUTOREGRESSIVE)
@torch.no_grad()
def test_actions_are_chosen_as_the_training_pass_would(kind):
    policy = make(kind)
    network = policy.network.eval()
    tokens = torch.randn(5, len(network.places), network.config.width)
    memory = network.remember(tokens)
    with torch.enable_grad():
        trained, (hidden, _) = network.remember(tokens), network.read(memory, torch.zeros(5, 0, dtype=torch.long))
    for ours, theirs in zip(memory, trained, strict=True):
        assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < SAME
    assert (network.first(memory) - hidden[:, 0]).abs().max() < SAME
    bins = network.decode(memory, partial(policy.choose, network))
    assert torch.equal(bins, by_modules(network, tokens, policy.choose, network.dims))


@pytest.mark.parametrize("kind", JUDGES)
def test_a_skill_is_worth_the_same_alone_and_among_others(kind):
    policy = make(kind)
    histories = [[observation(policy, seed) for seed in range(start, start + 2)] for start in (0, 2)]
    for asked in ([TEXTS, TEXTS[::-1]], [TEXTS, TEXTS[:1]], [[], TEXTS]):
        values = policy.value_many(histories, [list(texts) for texts in asked])
        for history, texts, found in zip(histories, asked, values, strict=True):
            alone = [policy.value(history, [text])[0] for text in texts]
            assert found == pytest.approx(alone, abs=SAME)


def test_a_scene_is_looked_at_once_for_all_skills():
    policy, rows = make("q-transformer"), []
    policy.network.encoder.content.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    policy.value([observation(policy)], TEXTS)
    assert rows == [1]


@pytest.mark.parametrize("name", ["paper", "paper-shared"])
def test_image_maps_before_film_are_shared_among_the_skills(name):
    """Of the paper's network the stem and one block, of the other one nearly all blocks."""
    encoder = replace(PAPER_LIKE.encoder, film_from=PRESETS[name].encoder.film_from)
    config, passed = replace(PAPER_LIKE, encoder=encoder), {}
    policy = QTransformer(config, QTransformerConfig(), make("q-transformer").texts)
    blocks = [*policy.network.encoder.shared, *policy.network.encoder.blocks]
    for number, block in enumerate(blocks):
        block.register_forward_hook(partial(lambda n, _, __, out: passed.setdefault(n, []).append(len(out)), number))
    policy.network.at_once = lambda: 2
    policy.value([observation(policy, 0), observation(policy, 1)], TEXTS)
    once = [number for number in passed if passed[number] == [2]]
    assert once == list(range(len(policy.network.encoder.shared)))
    assert all(passed[number] == [4, 2] for number in list(passed)[len(once) + 1 :])
    assert (len(once) + 1 > 0.6 * len(blocks)) == (name == "paper-shared")


def test_batches_suit_the_device():
    cpu, each = torch.device("cpu"), []
    for preset in ("paper", "paper-shared"):
        with torch.device("meta"):
            each.append(FilmEfficientNet(PRESETS[preset].encoder, tokens=8, width=512, text=384).at_once(cpu, 6))
    assert each == [1, 3]  # skills; six frames of 128 x 160 are more than a cache holds
    policy = make("q-transformer")
    policy.network.places = nn.Parameter(torch.zeros(10, 1))
    assert policy.network.at_once() == 51


def test_attention_and_averages_by_hand_are_pytorch_s():
    scores, x = torch.randn(300, 4, 11) * 30, torch.randn(6, 64)
    assert torch.allclose(decoding.softmax(scores), scores.softmax(-1), atol=1e-6)
    assert torch.allclose(decoding.gelu(x), nn.functional.gelu(x), atol=1e-6)
    spike = torch.eye(64)[[0, 30]]
    smooth = smooth_probabilities(spike, 4.0)
    assert smooth[1].argmax() == 30 and smooth[1, 30] == pytest.approx(1 / (4 * (2 * np.pi) ** 0.5), rel=0.01)
    assert smooth_probabilities(torch.ones(1, 64), 4.0) == pytest.approx(np.ones((1, 64)), abs=1e-5)


def most_apart(one, other) -> float:
    """Largest difference of the values that two of the shipped critic give."""
    texts = list(one.texts.table)[:60]
    seen = [[observation(one, seed)] for seed in range(2)]
    return max(float(np.abs(one.value(history, texts) - other.value(history, texts)).max()) for history in seen)


def test_bfloat16_changes_values_by_little(affordance):
    rounded = checkpoint.load("affordance").hasten(bfloat16=True)
    assert 0 < most_apart(affordance, rounded) < ROUNDED
    action = rounded.act([observation(rounded)], next(iter(rounded.texts.table)))
    assert (action >= rounded.embodiment.low).all() and (action <= rounded.embodiment.high).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("bfloat16", "largest"), [(False, 2e-3), (None, ROUNDED)])
def test_a_gpu_judges_as_a_cpu_does(affordance, bfloat16, largest):
    moved = checkpoint.load("affordance", "cuda").hasten(bfloat16)
    assert moved.network.places.device.type == "cuda" and moved.bfloat16 == (bfloat16 is None)
    assert most_apart(affordance, moved) < largest


def test_a_server_moves_its_checkpoints_to_a_device(tmp_path):
    policy = make("q-transformer")
    checkpoint.save(tmp_path / "both", *policy.describe(TEXTS), provenance={})
    both = str(tmp_path / "both")
    config = serve.ServeConfig(device="cpu:0", precision="bfloat16", affordance=both, execution=both)
    judge, actor = serve.checkpoints(config).load()
    assert judge is actor and judge.device == torch.device("cpu:0") and judge.bfloat16
    judge, _ = serve.checkpoints(replace(config, precision="auto")).load()
    assert not judge.bfloat16  # a CPU gains nothing


def test_a_device_that_is_not_there_is_said_in_a_line(capfd):
    for device in ("abacus", *([] if torch.cuda.is_available() else ["cuda"])):
        assert serve.serve(serve.ServeConfig(device=device), serve.checkpoints) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and f"--device {device} cannot be used here" in said
    both = serve.ServeConfig(device="cuda", cluster=RayOptions(ray="local"))
    assert "--replica-gpus" in serve.mistake(both)
