"""Finding the bottlenecks of any network: the last map before each shrink of its trunk.

A tensor is on the trunk if every path from the output to the image goes through it; the autograd graph of one forward
pass says so for modules and functional operations alike. Branches, gates and the interiors of residual blocks are not.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from bam_exp.attention.probe import Call, Map, Probe, Run

LEVELS = 3
"""The paper's number of bottlenecks in a network of four or more stages."""


@dataclass
class Level:
    """The maps of one size on the trunk, in the order in which modules yield them."""

    map: Map
    calls: list[Call]

    def __str__(self) -> str:
        return f"{self.map.height} x {self.map.width}"


@dataclass(frozen=True)
class Choice:
    """A map behind which an attention goes, and the names of the modules that yield it, the best one first."""

    map: Map
    call: Call
    names: tuple[str, ...]


def bottlenecks(probe: Probe) -> tuple[list[Choice], list[str]]:
    """The last map before each shrink, for the last three shrinks, and what was left out and why.

    Raises:
        ValueError: if the maps never shrink, if they shrink as tokens (N x L x C), or if there is no trunk.
    """
    run, owner = probe.run, type(probe.network).__name__
    order, cuts = trunk(_deepest(run), run.start)
    levels = _levels(run, cuts)
    if not levels:
        raise ValueError(
            f"at=auto: {owner} has no map that everything goes through (skips around it, or no map at all); "
            "name places with at=[...], or give attach the part without skips, such as model.encoder"
        )
    if len(levels) < 2:
        raise ValueError(f"at=auto: the maps of {owner} never shrink (all are {levels[0]}); name places with at=[...]")
    choices: list[Choice] = []
    left_out: list[str] = []
    begun = 0
    for level, following in pairwise(levels):
        choice = _before_the_shrink(run, level, following, [choice.names[0] for choice in choices])
        ended = order[choice.call.node]
        made_by = [call for call in run.calls if _is_weighted(call) and begun < order.get(call.node, -1) <= ended]
        of_this_size = [call for call in made_by if not _differs(run, call, level.map)]
        begun = ended
        if len(made_by) <= 2 and len(of_this_size) < 2:  # a stem's convolution, or an extra layer of a detector
            left_out.append(f"{choice.names[0]} ({level}): made by fewer than two layers with weights of this size")
        else:
            choices.append(choice)
            if tokens := _tokens(run, cuts, choice, following):
                raise ValueError(
                    f"at=auto: {owner} goes on as tokens, N x L x C ({tokens}), behind the map of {choice.names[0]}; "
                    "name places with at=[...]"
                )
    left_out += [f"{one.names[0]} ({one.map}): before the last {LEVELS}" for one in choices[:-LEVELS]]
    left_out.append(f"{levels[-1]}: nothing shrinks after it")
    if not choices:
        raise ValueError(f"at=auto: {owner} has no bottleneck: " + "; ".join(left_out))
    return choices[-LEVELS:], left_out


def trunk(output: Tensor, start: Node | None) -> tuple[dict[Node | None, int], dict[Node | None, int]]:
    """The autograd nodes between start and output in their order, and those through which every path goes."""
    order: list[Node] = []
    reaches: dict[Node | None, bool] = {None: False, start: True}
    opened: set[Node] = set()
    stack: list[tuple[Node | None, bool]] = [(output.grad_fn, False)]
    while stack:
        node, complete = stack.pop()
        if node in reaches or node is None:
            continue
        if complete:
            reaches[node] = any(reaches[following] for following, _ in node.next_functions)
            if reaches[node]:
                order.append(node)
        elif node not in opened:
            opened.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions]
    index: dict[Node | None, int] = {start: 0, **{node: number for number, node in enumerate(order, 1)}}
    steps = [0] * (len(index) + 1)  # edges that begin and end around a node jump over it
    for node, number in index.items():
        for following, _ in node.next_functions if node is not None and node is not start else ():
            if following in index:
                steps[index[following] + 1] += 1
                steps[number] -= 1
    cuts: dict[Node | None, int] = {}
    jumping = 0
    for node, number in sorted(index.items(), key=lambda item: item[1]):
        jumping += steps[number]
        if jumping == 0:
            cuts[node] = number
    return index, cuts


def _deepest(run: Run) -> Tensor:
    """The output, or of several maps the smallest one."""
    outputs = [leaf for leaf in tree_leaves(run.output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    if not outputs:
        raise ValueError(
            "at=auto: no tensor of the output, nor one in its tuples, lists and dictionaries, depends on the image by "
            "operations that can be differentiated; name places with at=[...]"
        )
    sizes = {leaf: here.height * here.width for leaf in outputs if (here := run.map_of(leaf)) is not None}
    return min(sizes, key=lambda leaf: sizes[leaf]) if sizes else outputs[0]


def _levels(run: Run, cuts: dict[Node | None, int]) -> list[Level]:
    levels: list[Level] = []
    on_it = [call for call in run.calls if call.node in cuts and call.name]
    for call in sorted(on_it, key=lambda call: (cuts[call.node], call.end)):
        here = run.map_of(call.output)
        if here is None or here.height == here.width == 1:
            continue
        if not levels or here.is_smaller_than(levels[-1].map):
            levels.append(Level(here, [call]))
        elif levels[-1].map.is_smaller_than(here):
            break  # a decoder
        else:
            levels[-1].calls.append(call)
    return levels


def _before_the_shrink(run: Run, level: Level, following: Level, taken: list[str]) -> Choice:
    """The input of the unit that shrinks this level, the outermost one that does not work at this size first."""
    nodes = {call.node for call in level.calls}
    last = max(call.end for call in level.calls)  # what ends before is a gate or a pooled key, not the trunk
    units = [call for call in run.calls if call.source_node in nodes and call.end > last and _shrinks(run, call)]
    shrunk = min(call.end for call in following.calls)
    node, before = level.calls[-1].node, shrunk
    for unit in sorted(units, key=lambda call: (call.start, -call.end)):
        inside = [call for call in run.calls if unit.start <= call.start and call.end <= min(unit.end, shrunk)]
        work = [call for call in inside if _is_weighted(call) and not _differs(run, call, level.map)]
        if len(work) <= 2 and not any(_is_dense(call.module) for call in work):
            node, before = unit.source_node, unit.start
            break
    same = [call for call in level.calls if call.node is node]
    if not same:  # an operation without a module made that map
        latest = max((call for call in level.calls if call.end < before), key=lambda call: call.end)
        same = [call for call in level.calls if call.node is latest.node]
    same.sort(key=lambda call: (call.source_node is call.node, -call.end))  # what only passes the map on comes last
    names = [call.name for call in same]
    names.sort(key=lambda name: any(one.startswith(f"{name}.") for one in taken))
    here = run.map_of(same[0].output)
    assert here is not None
    return Choice(here, min(same, key=lambda call: call.end), tuple(names))


def _shrinks(run: Run, call: Call) -> bool:
    source, output = run.map_of(call.source), run.map_of(call.output)
    return source is not None and output is not None and output.is_smaller_than(source)


def _is_weighted(call: Call) -> bool:
    return any(parameter.ndim >= 2 for parameter in call.module.parameters(recurse=False))


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == 1 and max(module.kernel_size) > 1


def _differs(run: Run, call: Call, here: Map) -> bool:
    """Whether a layer yields a map of another size, or a vector; tokens and windows count as being of this size."""
    output: Any = call.output
    if not isinstance(output, Tensor) or output.ndim < 3:
        return True
    there = run.map_of(output)
    if there is None:
        return output.ndim == 4 and output.shape[2] == output.shape[3] == 1
    return there.is_smaller_than(here) or here.is_smaller_than(there)


def _tokens(run: Run, cuts: dict[Node | None, int], choice: Choice, following: Level) -> str:
    """The first module between a map and the next level that yields tokens on the trunk."""
    end = min(call.end for call in following.calls)
    return next(
        (
            call.name
            for call in run.calls
            if call.node in cuts and choice.call.end < call.end < end
            if isinstance(call.output, Tensor) and call.output.ndim == 3
        ),
        "",
    )
