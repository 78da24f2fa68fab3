"""`bam-bench step --backbone ssd_vgg16`: training steps of a detector on drawn boxes, and where their time goes."""

import argparse
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bam_exp.attention import BAM, attach
from bam_exp.bench.measure import Bench, Counter, Row, Times, overhead, relative, say
from bam_exp.config import Chosen, compose
from bam_exp.data.target import Target
from bam_exp.detectors import Detector

CLASSES = 20
SIZES = {"ssd_resnet20": 64, "faster_rcnn_resnet101": 600}
"""Sides of the images in pixels; 300 for the other detectors."""
PARTS = ("forward", "loss", "backward", "SGD")


class Step:
    """A training step of a detector in its four parts, on the same batch each time."""

    def __init__(self, network: Detector, images: Tensor, targets: list[Target], *, bfloat16: bool) -> None:
        self.network, self.images, self.targets, self.bfloat16 = network.train(), images, targets, bfloat16
        self.optimizer = torch.optim.SGD(network.parameters(), 1e-5, momentum=0.9, weight_decay=5e-4, fused=True)
        self.parts = dict(zip(PARTS, (self.forward, self.compare, self.backward, self.optimise), strict=True))

    def forward(self) -> None:
        """The dense part."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bfloat16):
            self.outputs = self.network(self.images)

    def compare(self) -> None:
        """Matching, mining and the terms of the loss; of Faster R-CNN, the classifier of regions too."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bfloat16):
            terms, _ = self.network.losses(self.outputs, self.images, self.targets)
        self.loss = torch.stack(list(terms.values())).sum()

    def backward(self) -> None:
        """The gradients."""
        self.loss.backward()  # type: ignore[no-untyped-call]

    def optimise(self) -> None:
        """One step of SGD."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        for part in self.parts.values():
            part()


def rows(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Training steps of a detector without attention and with BAM where the paper puts it."""
    if options.agree:
        raise ValueError(f"--agree {options.agree}: is for classifiers, and {options.backbone} is a detector")
    batch, size = options.batch or (32 if bench.cuda else 2), options.size or SIZES.get(options.backbone, 300)
    images, targets = _drawn(bench, batch, size)
    at = "bottleneck" if options.backbone.startswith("faster_rcnn") else "classifier"
    variants = {"no attention": None, f"+ BAM at {at}": at}
    of = f"{options.backbone}, batch {batch} at {size} px, three boxes an image, {'bfloat16' if bench.cuda else 'float32'}"
    found: dict[str, Row] = {}
    steps: dict[str, Step] = {}
    counted: dict[str, tuple[int, int]] = {}
    for name, place in variants.items():
        say(f"{options.backbone}, {name}: checking")
        network = _network(options.backbone, place).to(bench.device).to(memory_format=torch.channels_last)
        exact = _dense(_network(options.backbone, place).to(bench.device).double(), images[:2].double())
        error = relative(_dense(network, images[:2]), exact)
        row = found[name] = {"of": of, "variant": name, "logits error": error}
        row["check"] = "ok" if error < (0.02 if bench.cuda else 1e-4) else "FAILED"
        one = steps[name] = Step(network, images, targets, bfloat16=bench.cuda)
        with FlopCounterMode(display=False) as flops:
            one.forward()
            one.compare()
        with Counter() as counter:
            one()
        # The backward pass is taken as twice the forward one: PyTorch counts that of depthwise convolutions too high.
        counted[name] = counter.bytes, 3 * flops.get_total_flops()
        row |= {"kernels": counter.kernels, "MB an image": counter.bytes / batch / 1e6}
    say("timing")
    bench.measure_ceilings()
    times = _times(bench, steps)
    bench.measure_ceilings()
    for name, row in found.items():
        moved, flop = counted[name]
        row.update(bench.figures(times[name]["step"], batch, moved=moved, flops=flop))
        row.update({f"{part} %": 100 * _share(times[name], part) for part in PARTS})
        if name != "no attention":
            row.update(overhead(times[name]["step"], times["no attention"]["step"]))
    return list(found.values())


def _network(backbone: str, at: str | None) -> Detector:
    """A detector with the same weights each time, and with BAM if a seam is named."""
    choice = Chosen.of(compose([f"backbone={backbone}", "data=scenes", "recipe=demo_detection"])).backbone
    torch.manual_seed(0)
    network: Detector = choice.make(CLASSES)
    if at is not None:
        widths = [seam.channels for seam in network.seams[at]]
        attach(network, BAM, at=at, reduction=min(16, min(widths) // 8))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # With 1, the maps of a new ResNet-101 grow to 10^5, and the gates of BAM magnify the rounding of such maps.
            nn.init.constant_(module.weight, 0.5)
    return network


def _drawn(bench: Bench, batch: int, size: int) -> tuple[Tensor, list[Target]]:
    """Normalised noise, and three boxes with sides of an eighth to a half of each image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator)
    targets = []
    for number in range(batch):
        sides = size * (0.125 + 0.375 * torch.rand(3, 2, generator=generator))
        corners = (size - sides) * torch.rand(3, 2, generator=generator)
        labels = torch.randint(1, CLASSES + 1, (3,), generator=generator)
        boxes = torch.cat([corners, corners + sides], dim=1)
        targets.append(Target(number, (size, size), boxes.to(bench.device), labels.to(bench.device), number))
    return images.to(bench.device, memory_format=torch.channels_last), targets


def _dense(network: nn.Module, images: Tensor) -> Tensor:
    """The outputs of the dense part as one vector, in evaluation: statistics of a few images would magnify rounding."""
    with torch.no_grad():
        return torch.cat([leaf.flatten() for leaf in tree_leaves(network.eval()(images)) if isinstance(leaf, Tensor)])


def _times(bench: Bench, steps: dict[str, Step]) -> dict[str, dict[str, Times]]:
    """The times of each part and of the whole step, the variants in turns, there and back."""
    times: dict[str, dict[str, Times]] = {name: {part: Times() for part in (*PARTS, "step")} for name in steps}
    for one in steps.values():
        one()
    for number in range(bench.rounds):
        for name in list(steps)[:: 1 if number % 2 == 0 else -1]:
            sums = [0.0, 0.0, 0.0]
            for part, call in steps[name].parts.items():
                measured = bench.once(call)
                _append(times[name][part], measured)
                sums = [total + one for total, one in zip(sums, measured, strict=True)]
            _append(times[name]["step"], sums)
    return times


def _append(times: Times, measured: Any) -> None:
    for column, value in zip((times.seconds, times.wall, times.host), measured, strict=True):
        column.append(value)


def _share(times: dict[str, Times], part: str) -> float:
    return median(one / whole for one, whole in zip(times[part].seconds, times["step"].seconds, strict=True))
