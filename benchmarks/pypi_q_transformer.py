"""The PyPI package `q-transformer` under the same clock as ours; `benchmarks/learning.py --peer PYTHON` starts it.

    peer/bin/python benchmarks/pypi_q_transformer.py small < /dev/null      # weights, FLOPs; no timing is asked for

Needs torch and q-transformer alone, in an environment of their own. Prints one line of JSON that says what was built,
then reads lines such as {"figure": "train", "seconds": 3} and answers each with the seconds of every call it made.

The package is used as it documents: its QLearner with its own data loader, loss, optimiser and moving average, its
`get_optimal_actions`. Nothing is downloaded: its text conditioner loads a T5 model when it is built, only to ask for
the size of its embeddings, so a stand-in gives that size; embeddings are then passed as `text_embeds`, which the
package allows. The same goes for open_clip, which it imports and does not use here.

What stays different, whatever the sizes: its image encoder is a MaxViT with dropout (ours: keypoints, or
FiLM-EfficientNet-B3); it has no proprioception; frames attend causally, actions attend to them in a decoder of its own
(ours: one decoder-only Transformer); four residual streams; targets by Eq. 1, with two passes through the target
network; AdamAtan2, not fused; the moving average moves every fifth step. Half of its "optimal" actions are random,
which `QRoboticTransformer.get_optimal_actions` does not let a caller turn off; the time is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

TEXT_SIZE = 384  # numbers of a text embedding, as ours
BINS, ACTION_DIMS = 256, 8
SCORED = 100  # skills
# Images are square because every stage's map must divide into the windows. The sizes give about as many weights as
# ours; about half of the package's are in its text conditioner, which costs next to no time.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"frames": 1, "image": 80, "chunk": 100, "heads": 4, "depth": 2, "q_depth": 1}
    | {"vit": {"dim": 16, "depth": (1, 1, 1), "window_size": 5}},
    "paper": {"frames": 6, "image": 256, "chunk": 5, "heads": 8, "depth": 6, "q_depth": 2}
    | {"vit": {"dim": 32, "depth": (2, 2, 5, 2), "window_size": 8}},
}


def timed(call: Callable[[], Any], seconds: float, device: str) -> list[float]:
    """Seconds of each call, called until `seconds` have passed and at least once."""
    durations: list[float] = []
    while not durations or sum(durations) < seconds:
        began = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - began)
    return durations


def convolution_backward_flops(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Like the forward pass, once for each gradient that is asked for. torch's own formula forgets the groups, and so
    finds hundreds of times too many in depthwise convolutions."""
    transposed, wanted = rest[4], rest[7]
    positions = (x if transposed else grad)[2:]
    return 2 * x[0] * math.prod(positions) * math.prod(weight) * (int(wanted[0]) + int(wanted[1]))


def flops_of(call: Callable[[], Any]) -> int:
    """Floating point operations in matrix products, convolutions and attention; a multiply-add is two."""
    mapping = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return counter.get_total_flops()


class RandomTransitions(torch.utils.data.Dataset):
    """What the package's MockReplayDataset gives, drawn once."""

    def __init__(self, frames: int, image: int, count: int) -> None:
        self.videos = torch.rand(count + 1, 3, frames, image, image)

    def __len__(self) -> int:
        return len(self.videos) - 1

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        text = torch.randn(TEXT_SIZE)
        action = torch.randint(0, BINS, (ACTION_DIMS,))
        reward, done = torch.tensor(float(row % 2)), torch.tensor(row % 4 == 1)
        return text[None], self.videos[row], action, self.videos[row + 1], text, reward, done


def build(preset: dict[str, Any]) -> Any:
    sys.modules["open_clip"] = types.ModuleType("open_clip")
    from classifier_free_guidance_pytorch import classifier_free_guidance_pytorch as guidance

    class EmbeddingSize:
        dim_latent = TEXT_SIZE

        def __init__(self, *_: Any, **__: Any) -> None: ...

    guidance.CONDITION_CONFIG["t5"] = EmbeddingSize
    from q_transformer import QRoboticTransformer

    vit = {"num_classes": 1, "dim_conv_stem": preset["vit"]["dim"], "heads": preset["heads"], "dim_head": 32}
    model = QRoboticTransformer(
        vit=vit | preset["vit"],
        num_actions=ACTION_DIMS,
        action_bins=BINS,
        depth=preset["depth"],
        heads=preset["heads"],
        dim_head=32,
        q_head_attn_kwargs={"attn_heads": preset["heads"], "attn_dim_head": 32, "attn_depth": preset["q_depth"]},
    )
    del model.vit.mlp_head  # an image classifier that is never called
    return model


class Peer:
    """The calls that are timed."""

    def __init__(self, preset: dict[str, Any], batch_size: int, precision: str, device: str, folder: str) -> None:
        torch.manual_seed(0)
        self.preset, self.batch_size, self.device = preset, batch_size, device
        self.model = build(preset).to(device, memory_format=torch.channels_last)  # a tenth faster; ours has it too
        from q_transformer import QLearner

        self.learner = QLearner(
            self.model,
            dataset=RandomTransitions(preset["frames"], preset["image"], max(16, batch_size)),
            batch_size=batch_size,
            num_train_steps=0,
            learning_rate=3e-4,
            accelerator_kwargs={"mixed_precision": precision, "cpu": device == "cpu"},
            dataloader_kwargs={"shuffle": True, "drop_last": True},
            checkpoint_folder=folder,
            checkpoint_every=10**9,
        )
        self.video = torch.rand(1, 3, preset["frames"], preset["image"], preset["image"], device=device)
        self.texts = torch.randn(SCORED, TEXT_SIZE, device=device)
        self.actor = self.learner.ema_model.ema_model  # as ours, the moving average acts, in float32

    def train(self) -> None:
        """One step of its own training loop."""
        self.learner.num_train_steps += 1
        with contextlib.redirect_stdout(sys.stderr):
            self.learner()

    def warm_up(self) -> None:
        self.train()
        self.act()
        self.score(self.preset["chunk"])

    @torch.inference_mode()
    def act(self) -> list[int]:
        self.actor.eval()
        return self.actor.get_optimal_actions(self.video, text_embeds=self.texts[:1])[0].tolist()

    @torch.inference_mode()
    def score(self, count: int = SCORED) -> list[float]:
        """The nearest to ours: the highest Q of the first action dimension for each instruction."""
        self.actor.eval()
        values = []
        for texts in self.texts[:count].split(self.preset["chunk"]):
            video = self.video.expand(len(texts), -1, -1, -1, -1)
            values.append(self.actor(video, text_embeds=texts)[:, 0].amax(-1).sigmoid())
        return torch.cat(values).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bf16", help="of training: bf16 (autocast) or no")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(PRESETS[given.preset], given.batch_size, given.precision, given.device, folder)
        flops = flops_of(peer.train) / given.batch_size
        parameters = sum(p.numel() for p in peer.model.parameters())
        built = {"parameters": parameters, "flops_per_sample": flops, "batch_size": given.batch_size}
        conditioner = sum(p.numel() for p in peer.model.conditioner.parameters())
        print(json.dumps(built | {"conditioner_parameters": conditioner, "torch": torch.__version__}), flush=True)
        calls: dict[str, Callable[[], Any]]
        calls = {"warm-up": peer.warm_up, "train": peer.train, "act": peer.act, "score": peer.score}
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(timed(calls[asked["figure"]], asked["seconds"], given.device)), flush=True)


if __name__ == "__main__":
    main()
