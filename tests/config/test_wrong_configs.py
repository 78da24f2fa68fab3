# ruff: noqa: E501 (a line a kind of mistake)
"""Wrong configs, drawn from a seed: every one is refused with one line, exit code 2; right ones never are."""

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ready
from hydra.core.global_hydra import GlobalHydra

from bam_exp import config, tables
from bam_exp.config import choices, composition
from bam_exp.errors import ConfigError
from bam_exp.exits import one_line_errors

CHOICES = {
    "data": ["shapes", "cifar100"],
    "backbone": ["resnet20", "resnet18", "wrn28_8", "preresnet110", "densenet100"],
    "attention": ["bam", "bam_equations", "bam_released", "se", "cbam", "eca", "none", "conv_block"],
    "recipe": ["demo", "cifar100", "cifar100_short"],
    "trainer": ["default"],
}
WHOLE = ("attention.reduction", "attention.dilation", "recipe.epochs", "recipe.batch_size", "trainer.runs_per_gpu")
REAL = ("recipe.lr", "recipe.momentum", "recipe.weight_decay", "recipe.gamma", "trainer.checkpoint_minutes")
WORDS = {"attention.combine": "sum", "attention.branches": "both", "attention.norm": "paper", "trainer.device": "cpu"}
KEYS = (
    *WHOLE,
    *REAL,
    *WORDS,
    "attention.at",
    "recipe.nesterov",
    "data.pad",
    "data.flip",
    "seed",
    "data_root",
    "output_dir",
)


def misspelt(chance: random.Random, word: str) -> str:
    """The word with two neighbours swapped, a letter lost or a letter doubled."""
    while True:
        at = chance.randrange(len(word) - 1)
        how = chance.randrange(3)
        made = [
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        ][how]
        known = {*KEYS, *config.GROUPS, *(choice for offered in CHOICES.values() for choice in offered), "conv_block"}
        if made not in known and made[0].isalpha() and not made.endswith(".") and ".." not in made:
            return made


def in_key(chance: random.Random, key: str) -> str:
    head, dot, last = key.rpartition(".")
    return head + dot + misspelt(chance, last)


KINDS: dict[str, Callable[[random.Random], list[str]]] = {
    "unknown choice": lambda c: [f"{(g := c.choice(list(CHOICES)))}={misspelt(c, c.choice(CHOICES[g]))}"],
    "misspelt key": lambda c: [f"{in_key(c, c.choice(KEYS))}=1"],
    "misspelt key with +": lambda c: [f"+{in_key(c, c.choice(KEYS))}=1"],
    "misspelt key with ++": lambda c: [f"++{in_key(c, c.choice(KEYS))}=1"],
    "misspelt key with ~": lambda c: [f"~{in_key(c, c.choice(KEYS))}"],
    "text for a number": lambda c: [f"{c.choice((*WHOLE, *REAL))}={c.choice(('eight', 'yes', 'abc', '1x'))}"],
    "fraction for a whole number": lambda c: [f"{c.choice(WHOLE)}={c.choice((1.5, 8.25, 0.1))}"],
    "list or mapping for a value": lambda c: [f"{c.choice((*WHOLE, *REAL, *WORDS))}={c.choice(('[1,2]', '{a:1}'))}"],
    "nothing for a value": lambda c: [f"{c.choice((*WHOLE, *REAL, *WORDS))}=null"],
    "truth for a number": lambda c: [f"{c.choice((*WHOLE, *REAL))}={c.choice(('true', 'false'))}"],
    "below the range": lambda c: [f"{c.choice((*WHOLE, *REAL))}={c.choice((-1, -16, -300))}"],
    "above the range": lambda c: [c.choice(("recipe.momentum=1", "recipe.gamma=2", "recipe.milestones=[1.5]", "data.pad=9"))],
    "unknown word": lambda c: [f"{(k := c.choice(list(WORDS)))}={misspelt(c, WORDS[k])}x"],
    "foreign target": lambda c: [
        f"{c.choice(config.GROUPS)}._target_="
        + c.choice(("os.system", "torch.load", "builtins.eval", "pathlib.Path.touch", "numpy.load", "bam_exp.runs.result.subprocess.run",
                    "bam_exp.config.compose", "bam_exp.sweeps.child.os.system", "bam_exp.nothing", "bam_exp", "3", "null.null"))
    ],
    "target of another group": lambda c: [c.choice(
        ("attention._target_=bam_exp.backbones.ResNet", "backbone._target_=bam_exp.attention.BAM",
         "data._target_=bam_exp.tasks.Classification", "recipe._target_=bam_exp.data.Shapes", "trainer._target_=bam_exp.data.CIFAR100")
    )],
    "deleted group": lambda c: [f"~{c.choice(config.GROUPS)}"],
    "group given a value": lambda c: [f"{c.choice(config.GROUPS)}={c.choice(('{a:1}', '[1]', '3', 'null', 'true'))}"],
    "bad setting": lambda c: [
        c.choice(("seed=-1", "seed=abc", "seed=1.5", "seed=null", "seed=99999999999", "data_root=null", "output_dir=null", "seed=true",
                  "output_dir=[a]", "data_root={a:1}", "seed=[1]"))
    ],
    "unknown setting": lambda c: [f"+{c.choice(('gpus', 'lr', 'epochs', 'name', 'logger', 'callbacks', 'model', 'num_classes'))}={c.randrange(9)}"],
    "reduction that does not divide": lambda c: [f"attention.reduction={c.choice((3, 5, 6, 7, 9, 11, 13, 32, 64, 1000))}"],
    "a batch of one": lambda c: [f"recipe.batch_size={c.choice((1, 3, 9, 11, 33, 99, 101, 303, 909, 1111, 3333, 9999))}"],
    "seam that is not there": lambda c: [f"attention.at={c.choice(('stage', 'everywhere', 'blocks', 'bottlenecks', 'head'))}"],
    "key of another attention": lambda c: [f"attention={c.choice(('none', 'se', 'eca', 'conv_block'))}", "+attention.dilation=2"],
    "conv block where none can be": lambda c: ["backbone=densenet100", "attention=conv_block"],
    "classes of its own": lambda c: [f"+backbone.num_classes={c.randrange(2, 1000)}"],
    "looks like a secret": lambda c: [f"+{c.choice(('api_key', 'wandb.token', 'password', 'recipe.secret'))}=x{c.randrange(999)}"],
    "malformed": lambda c: [c.choice(("attention.reduction=[", "=3", "recipe.lr", "seed=1,2", "attention.reduction=(", "a=b=c={", "recipe={"))],
    "unknown row": lambda c: [f"+row/{c.choice(('table1a=r7', 'table1a=nothing', 'table9=r8', 'table4a=resnet101x'))}"],
}  # fmt: skip


def ending(words: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and standard error of a single run with these words, up to where it would start to train."""
    capfd.readouterr()
    try:
        with one_line_errors("bam-train"):
            ready(f"output_dir={folder}", *words)
    except SystemExit as ended:
        return int(str(ended.code)), capfd.readouterr().err
    return 0, ""


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.faults)])
def test_wrong_configs_are_refused_with_one_line(count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tables.register()
    chance = random.Random(count)
    kinds = list(KINDS)
    accepted, long = [], []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        words = KINDS[kind](chance)
        code, err = ending(words, tmp_path, capfd)
        if code != 2:
            accepted.append((kind, words))
        elif len(err.strip().splitlines()) != 1 or len(err) > 1500:
            long.append((kind, words, err))
    assert accepted == []
    assert long == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("~attention", "attention should be one of bam, "),
        ("recipe=null", "recipe=null: recipe should be one of "),
        ("recipe.lr=inf", "recipe.lr=inf: input should be a finite number"),
        ("trainer.checkpoint_minutes=inf", "trainer.checkpoint_minutes=inf"),
        ("trainer.threads=100000", "trainer.threads=100000"),
        ("attention.dilation=2000", "attention.dilation=2000: input should be less than or equal to 1024"),
        (
            "recipe.epochs=99999999999999999999",
            "recipe.epochs=99999999999999999999: input should be less than or equal to",
        ),
        ("seed=${seed}", "seed: Recursive interpolation"),
        ("output_dir=${nothing}", "output_dir: Interpolation key 'nothing' not found"),
        ("recipe.lr=${nothing}", "recipe.lr: Interpolation key 'nothing' not found"),
        ("", "'': not of the form key=value"),
        ("recipe={a:1", "recipe={a:1: "),
        ("backbone.widen=1e9", "backbone: this resnet20 is too large"),
        ("trainer.precision=bf16", "trainer.precision=bf16: input should be 'auto', 'float32', 'tf32' or 'bfloat16'"),
        ("+recipe.lr=0.2", "recipe.lr: the config has this key already; leave out the plus"),
        ("attention=/etc/passwd", "attention=/etc/passwd: attention should be one of bam, "),
        ("hydra/sweeper=optun", "hydra/sweeper=optun: there is no such hydra/sweeper"),
        ("weights=nothing.safetensors", "weights=nothing.safetensors: there is no such file or folder"),
        ("images=[]", "images=[]: "),
    ],
)
def test_a_refusal_names_the_key(word: str, named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, err = ending([word], tmp_path, capfd)
    assert (code, len(err.splitlines())) == (2, 1)
    assert named in err


@pytest.mark.parametrize(
    "word", ["seed=range(0,0)", "seed=range(0,2,0)", "attention=glob(zzz*)", "recipe.lr=interval(0,1)"]
)
def test_a_sweep_without_values_is_refused(word: str) -> None:
    with config.composing():
        (override,) = config.parse_overrides([word], GlobalHydra.instance().config_loader())
    with pytest.raises(ConfigError, match=re.escape(word)):
        config.swept_values(override)


@pytest.mark.parametrize("word", ["seed=range(0,3),5", "attention=glob(bam*),se", "recipe.lr=choice(0.1,0.2),0.3"])
def test_a_sweep_within_a_sweep_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)):
        config.parse_overrides([word])


def right(chance: random.Random) -> list[str]:
    attention = chance.choice(CHOICES["attention"])
    words = [
        f"backbone={chance.choice(['resnet20', 'resnet18', 'wrn28_8', 'preresnet110'])}",
        f"attention={attention}",
        f"recipe={chance.choice(CHOICES['recipe'])}",
        f"data={chance.choice(CHOICES['data'])}",
        f"seed={chance.randrange(1000)}",
        f"recipe.lr={chance.choice((0.1, 0.05, 1, '1.0e-3'))}",
        f"recipe.batch_size={chance.choice((32, 64, 128, 100))}",
        f"trainer.checkpoint_minutes={chance.choice((1, 2.5))}",
    ]
    if attention.startswith("bam"):
        words.append(f"attention.dilation={chance.choice((1, 2, 4, 6))}")
        words.append(f"attention.reduction={chance.choice((4, 8))}")
        words.append(f"attention.combine={chance.choice(('sum', 'product', 'max'))}")
        words.append(f"attention.at={chance.choice(('bottleneck', 'block', 'block_output'))}")
    return chance.sample(words, len(words))


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.faults)])
def test_right_configs_are_never_refused(count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(count)
    refused = [
        (words, err) for words in (right(chance) for _ in range(count)) if (err := ending(words, tmp_path, capfd)[1])
    ]
    assert refused == []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("reductoin: 8", "reductoin"),
        ("reduction: eight", "reduction"),
        ("reduction: -8", "reduction"),
        ("combine: mean", "combine"),
        ("_target_: os.system", "os.system"),
        ("reduction: [", "bam.yaml"),
    ],
)
def test_mistakes_in_a_file_are_refused_too(
    line: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "conf"
    folder.mkdir()
    for path in config.config_dir().iterdir():
        if path.name != "attention":
            (folder / path.name).symlink_to(path)
    (folder / "attention").mkdir()
    text = (config.config_dir() / "attention" / "bam.yaml").read_text()
    key = line.partition(":")[0]
    kept = [one for one in text.splitlines() if not one.startswith(f"{key}:")]
    (folder / "attention" / "bam.yaml").write_text("\n".join([*kept, line]) + "\n")
    for module in (choices, composition):
        monkeypatch.setattr(module, "config_dir", lambda: folder)
    config.choice_file.cache_clear()
    try:
        code, err = ending([], tmp_path / "out", capfd)
    finally:
        config.choice_file.cache_clear()
    assert code == 2
    assert named in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["attntion=bam"],
        ["+recipe.lrr=0.1"],
        ["data=imagenet", "backbone=resnet50", "attention=bam", "recipe.lr=-1"],
        ["-m", "seed=0,-1"],
        ["plan", "table1a", "recipe.lr=-1"],
    ],
    ids=" ".join,
)
def test_a_refusal_does_not_wait_for_lightning(words: list[str]) -> None:
    """It and torchvision take most of a start's time, and nothing that is checked needs them."""
    script = """
import sys
from bam_exp.commands import train
from bam_exp.commands import tables
main = tables.main if "plan" in sys.argv else train.main
try:
    main()
except SystemExit as ended:
    print(ended.code, {"pytorch_lightning", "lightning_fabric", "torchvision"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 set()"
    assert done.stderr.count("\n") == 1
