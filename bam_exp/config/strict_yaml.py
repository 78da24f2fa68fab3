"""Reading YAML files strictly: no key twice in a mapping, and no aliases."""

from pathlib import Path
from typing import Any

import yaml

from bam_exp.errors import ConfigError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C if PyYAML was built with it


class _UniqueKeys(_LOADER):  # type: ignore[misc, valid-type]
    """The safe loader, which also refuses a key that occurs twice in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key}: occurs twice in one mapping, in line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> object:
    """The content of a YAML file.

    Raises:
        ConfigError: if it cannot be read, is not YAML, or has a key twice or an alias.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # A few lines of nested aliases can expand to gigabytes, and no config needs any.
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER)):
            raise ConfigError(f"{path}: YAML aliases (*name) are not allowed")
        return yaml.load(text, _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
