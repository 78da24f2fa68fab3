"""Inserting a module behind another one in any network so that every name stays, and removing it again."""

from collections.abc import Iterator

from torch import Tensor, nn


class ChannelsLast(nn.Module):
    """An attention for maps of N x H x W x C."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


def is_sequential(module: nn.Module) -> bool:
    """Whether the module runs its children one after the other, as nn.Sequential itself does."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def ways(network: nn.Module, name: str) -> Iterator[str]:
    """The ways in which a module can be put behind the module of that name, the best one first.

    "append": into an nn.Sequential, as its last child `attention`;
    "hook": as a child `attention` of any other module, with a hook that passes the output through it;
    "after": as a new child `<name>_attention` of the nn.Sequential that holds the module, for modules whose forward runs
    all of their children itself.
    """
    module = network.get_submodule(name)
    if not hasattr(module, "attention"):
        yield "append" if is_sequential(module) else "hook"
    parent, _, child = name.rpartition(".")
    if child and is_sequential(network.get_submodule(parent)):
        yield "after"


def insert(network: nn.Module, name: str, way: str, attention: nn.Module, record: object = None) -> str:
    """Put the attention behind the module of that name, with a record of it; returns the attention's own name."""
    attention.__dict__["_attached"] = record
    place = network.get_submodule(name)
    if way == "after":
        parent_name, _, child = name.rpartition(".")
        parent = network.get_submodule(parent_name)
        children = list(parent._modules.items())
        for key, _ in children:
            del parent._modules[key]
        for key, module in children:
            parent.add_module(key, module)
            if key == child:
                parent.add_module(f"{child}_attention", attention)
        return f"{name}_attention"
    place.add_module("attention", attention)
    if way == "hook":
        place.register_forward_hook(_refine)
    return f"{name}.attention"


def attentions(network: nn.Module) -> list[str]:
    """The names of the attentions that `insert` has put into the network."""
    return [name for name, module in network.named_modules() if "_attached" in module.__dict__]


def record_of(attention: nn.Module) -> object:
    """The record with which `insert` has put this attention into a network."""
    return attention.__dict__["_attached"]


def place_of(attention: str) -> str:
    """The name of the module behind which an attention of that name stands; empty for the network itself."""
    parent, _, child = attention.rpartition(".")
    return parent if child == "attention" else attention.removesuffix("_attention")


def runs(network: nn.Module, attention: str) -> bool:
    """Whether the attention of that name is still run: what replaces a module by another one may drop its hooks."""
    if attention.rpartition(".")[2] != "attention":
        return True  # it stands after its place, in the nn.Sequential around both
    place = network.get_submodule(place_of(attention))
    return is_sequential(place) or _refine in place._forward_hooks.values()


def run_again(network: nn.Module) -> None:
    """Register the hooks of attentions that are not run."""
    for name in attentions(network):
        if not runs(network, name):
            network.get_submodule(place_of(name)).register_forward_hook(_refine)


def remove(network: nn.Module, name: str) -> None:
    """Take out the attention of that name, which `insert` has put into the network."""
    parent_name, _, child = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    del parent._modules[child]
    for number, hook in list(parent._forward_hooks.items()):
        if hook is _refine and child == "attention":
            del parent._forward_hooks[number]


def _refine(self: nn.Module, input: tuple[Tensor], output: Tensor) -> Tensor:
    # A function of the module rather than a closure: copies of the network run their own attention, and pickle finds it.
    # torch.jit.script wants these names and types, and an attribute rather than get_submodule.
    refined: Tensor = self.attention(output)  # type: ignore[operator]
    return refined
