"""Base of every service's settings: frozen, read from the environment once, shown once at start."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Any, NoReturn, Self

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from tandem.rpc.exits import ExitCode


class Settings(BaseSettings):
    """Subclass it with `env_prefix`, units in the names, and a range on every number."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="TANDEM_", hide_input_in_errors=True)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Reads the environment; `overrides` win. A bad value ends the process with one line each and exit code 2."""
        try:
            return cls(**overrides)
        except ValidationError as error:
            for line in cls.explain(error):
                print(line, file=sys.stderr)
            _exit()

    @classmethod
    def env_name(cls, field: str) -> str:
        """The environment variable of a field."""
        alias = cls.model_fields[field].validation_alias
        return alias if isinstance(alias, str) else f"{cls.model_config.get('env_prefix', '')}{field}".upper()

    @classmethod
    def explain(cls, error: ValidationError) -> list[str]:
        """One line per bad value: field, environment variable, what is wrong, what is allowed."""
        lines = []
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            info = cls.model_fields.get(name)
            where = f"setting {name} ({cls.env_name(name)})" if info else f"setting {name or cls.__name__}"
            given = "" if info is None or _is_secret(info) else f", given {item.get('input')!r}"
            allowed = f"; allowed: {_allowed(info)}" if info and _allowed(info) else ""
            lines.append(f"{where}: {item['msg']}{given}{allowed}")
        return lines

    def describe(self) -> str:
        """`ENV_VAR=value` per line, secrets masked."""
        return "\n".join(f"{variable}={value}" for variable, value in self.shown().items())

    def shown(self) -> dict[str, str]:
        """Environment variable to value as text, secrets masked."""
        fields = type(self).model_fields
        return {self.env_name(name): _shown(info, getattr(self, name)) for name, info in fields.items()}


def _exit() -> NoReturn:
    raise SystemExit(int(ExitCode.BAD_SETTINGS))


def _is_secret(info: FieldInfo) -> bool:
    return "Secret" in repr(info.annotation)


def _shown(info: FieldInfo, value: object) -> str:
    if _is_secret(info) and value:
        return "********" if not isinstance(value, SecretStr) or value.get_secret_value() else ""
    return "" if value is None else str(value.value if isinstance(value, Enum) else value)


def _allowed(info: FieldInfo) -> str:
    bounds = {
        key: getattr(item, key) for item in info.metadata for key in ("ge", "gt", "le", "lt") if hasattr(item, key)
    }
    if "ge" in bounds and "le" in bounds:
        return f"{bounds['ge']}..{bounds['le']}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    if bounds:
        return ", ".join(f"{signs[key]} {value}" for key, value in bounds.items())
    annotation = info.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(str(member.value) for member in annotation)
    return info.description or ""
