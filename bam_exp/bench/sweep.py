"""`bam-bench sweep`: several runs on the device at once."""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from bam_exp.bench.epoch import bam_train, words_of
from bam_exp.bench.measure import Bench, Row, say


def rows(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Several runs on the device at once: the time of each, and the rate of all together."""
    sizes, epochs = ((50_000, 10_000), 5) if bench.cuda else ((1_280, 320), 4)
    backbones = ["preresnet110", "resnet50", "wrn28_10"] if bench.cuda else ["resnet20"]
    packs = options.packed or ([1, 2, 4, 8] if bench.cuda else sorted({1, bench.cores}))
    found = []
    for backbone in [options.backbone] if options.backbone else backbones:
        alone = 0.0
        for packed in packs:
            say(f"{backbone}: {packed} at once")
            threads = max(1, bench.cores // packed)
            words = words_of(bench, sizes, backbone, batch=options.batch or 128, epochs=epochs, threads=threads)
            words.append(f"trainer.runs_per_gpu={packed}")
            with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(packed) as pool:
                each = [[*words, f"seed={seed}", f"output_dir={folder}/{seed}"] for seed in range(packed)]
                results = list(pool.map(bam_train, each))
            # Epochs in the middle, when all runs are training: the first epoch compiles, and the runs do not end together.
            rate = sum(sizes[0] / result["seconds_per_epoch"] for result in results)
            alone = alone or rate
            found.append(
                {
                    "of": f"{backbone} and BAM, epochs of {sizes[0]} + {sizes[1]} images, wall",
                    "variant": f"{packed} at once",
                    "threads each": threads,
                    "s/epoch": median(result["seconds_per_epoch"] for result in results),
                    "images/s of all": rate,
                    "x the first": rate / alone,
                    "runs of 300 epochs an hour": 12 * rate / sizes[0],
                    "peak MB each": max(result["peak_memory_mib"] for result in results) * 2**20 / 1e6,
                }
            )
    return found
