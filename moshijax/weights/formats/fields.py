"""Fields of published configs, checked one by one before anything is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from moshijax.annotations import Between, Factor, Size
from moshijax.config_json import from_json

#: Temperature of sampling; 0 is greedy.
Temperature = Annotated[float, Between(0, 1000)]
#: What the config.json of an adapter says of it.
ADAPTER_FIELDS: dict[str, Any] = {"lora": bool, "lora_scaling": Factor, "lora_rank": Size | None}


def checked(fields: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `fields` with those that `hints` describes checked and converted (a list to a tuple, for one).

    Raises:
      ConfigError: a field has another type, or is outside its range; `where` names the place.
    """
    return {
        name: from_json(hints[name], value, f"{where}: {name}") if name in hints else value
        for name, value in fields.items()
    }
