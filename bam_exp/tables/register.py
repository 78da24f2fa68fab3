"""Registering tables with Hydra: `+row/<table>=<row>` and `+experiment=<table>`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bam_exp.config import GROUPS, nearest, swept_values
from bam_exp.errors import ConfigError
from bam_exp.tables.read import load_table, table_names
from bam_exp.tables.table import Row

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def register(overrides: "Sequence[Override]" = (), tables: Sequence[str] = ()) -> None:
    """Put rows (`+row/<table>=<row>`) and tables (`+experiment=<table>`) into Hydra's ConfigStore.

    An experiment sweeps over the rows and the seeds of its table, unless the overrides set seeds. Only the tables that
    are named by `overrides` or `tables` are registered, if any are: Hydra copies the whole store for each config it composes.

    Raises:
        ConfigError: if an override names a table that does not exist.
    """
    from hydra.core.config_store import ConfigStore

    named = dict.fromkeys([*tables, *named_by(overrides)])
    own_seeds = any(override.key_or_group == "seed" for override in overrides)
    store = ConfigStore.instance()
    for name in named or table_names():
        table = load_table(name)
        for row in table.rows:
            register_row(row)
        params = {f"+row/{name}": ",".join(row.name for row in table.rows)}
        if not own_seeds:
            params["seed"] = ",".join(str(seed) for seed in table.seeds)
        node = {"hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}}}
        store.store(group="experiment", name=name, node=node, package="_global_")


def register_row(row: Row) -> None:
    """Put one row (`+row/<table>=<row>`) into Hydra's ConfigStore."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group=f"row/{row.table}", name=row.name, node=_node(row), package="_global_")


def named_by(overrides: "Sequence[Override]") -> list[str]:
    """The tables that overrides name."""
    named = []
    for override in overrides:
        group, _, table = str(override.key_or_group).partition("/")
        if group == "row":
            named.append(table)
        elif group == "experiment" and not override.is_delete():
            named += swept_values(override)
    for name in named:
        if name not in table_names():
            raise ConfigError(
                f"{name}: there is no such table{nearest(name, table_names())} (there are {', '.join(table_names())})"
            )
    return named


def _node(row: Row) -> dict[str, Any]:
    """The row as a config: groups become overrides of the defaults list, dotted keys become values."""
    node: dict[str, Any] = {"defaults": []}
    for key, value in row.set.items():
        group, _, rest = key.partition(".")
        if not rest and group in GROUPS:
            node["defaults"].append({f"override /{group}": value})
        elif rest:
            node.setdefault(group, {})[rest] = value
        else:
            node[group] = value
    node["defaults"].append("_self_")
    return node
