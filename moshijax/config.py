"""Recipes: the only module that imports gin. Text in gin's syntax -> one frozen dataclass tree, and back.

gin's own parser reads the text; what the text means is decided here, because gin constructs objects before anything
can check them, checks no types, ignores bindings that apply to nothing and keeps global state. The meaning is gin's
with dynamic registration: each file imports the modules whose classes it names, later bindings win,
`scope/module.Class.field` binds only objects made by `@scope/module.Class()`, `NAME = value` is a macro used as
`%NAME`, and `%module.NAME` is a constant of an imported module (a named model config, say). Everything is checked
before the first object is made.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util  # gin reads importlib.util without importing it
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gin import config_parser

from moshijax import files, shipped
from moshijax.annotations import Mismatch, checked, name_of, nearest
from moshijax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from moshijax.train.experiment import ExperimentConfig


def load(recipe: str | Path, overrides: Iterable[str] = (), root: type | None = None) -> ExperimentConfig:
    """Read a recipe into a frozen config.

    Args:
      recipe: a gin file, or the name of a shipped recipe (`moshi/finetuning.gin`, of `experiments/`).
      overrides: `path.to.field=VALUE` in the tree of the result, or `MACRO=VALUE`; applied together, before any
        object is made.
      root: the dataclass to build; `moshijax.train.experiment.ExperimentConfig` unless told.

    Raises:
      ConfigError: the file, a name, a type or a value is wrong; the message has the place, the rule and the remedy.
    """
    if root is None:
        from moshijax.train.experiment import ExperimentConfig as root
    text = _Recipe()
    text.read(_find(str(recipe), Path()))
    macros, fields = text.split_overrides(overrides)
    text.macros.update(macros)
    node = text.object_of(root, "")
    for path, value in fields:
        _override(node, path.split("."), value, path)
    made = _construct(node, "")
    text.refuse_unused()
    return made


def dump(config: Any, defaults: bool = True) -> str:
    """Write a resolved config as gin text; `load` of it gives an equal config.

    Args:
      config: what `load` returns, or another config of a recipe.
      defaults: write fields that hold the default of their class too, so that the text stays a full record when a
        later version has other defaults.

    Raises:
      ConfigError: a value that gin cannot express.
    """
    modules: dict[str, str] = {}
    blocks: list[str] = []
    _dump_object(config, "", modules, blocks, defaults)
    imports = []
    for module, alias in sorted(modules.items()):
        parent, _, name = module.rpartition(".")
        statement = f"from {parent} import {name}" if parent else f"import {name}"
        imports.append(statement if alias == name else f"{statement} as {alias}")
    return "\n".join(["from __gin__ import dynamic_registration", *imports, "", *blocks])


# Reading ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Reference:
    """`@scope/module.Class()`; target is the class or function it names."""

    target: Callable[..., Any]
    scope: str


@dataclasses.dataclass(frozen=True)
class _Macro:
    """`%NAME`."""

    name: str


@dataclasses.dataclass
class _Node:
    """An object that is not made yet: its class and the value and origin of every field that is set."""

    target: Callable[..., Any]
    fields: dict[str, tuple[Any, str]]


class _Names(config_parser.ParserDelegate):
    """Resolves `@...` and `%...` through the imports of the file being read."""

    def __init__(self) -> None:
        self.modules: dict[str, Any] = {}

    def resolve(self, selector: str) -> Any:
        first, *rest = selector.split(".")
        if first not in self.modules:
            imported = ", ".join(sorted(self.modules)) or "nothing"
            near = nearest(first, self.modules)
            raise ConfigError(
                f"{selector!r}: {first!r} is not imported (imported: {imported}); {near}import its module"
            )
        value, name = self.modules[first], first
        for part in rest:
            if isinstance(value, types.ModuleType) and not hasattr(value, part):
                try:
                    importlib.import_module(f"{value.__name__}.{part}")
                except ModuleNotFoundError:
                    pass
            if not hasattr(value, part):
                public = [key for key in vars(value) if not key.startswith("_")] if hasattr(value, "__dict__") else []
                raise ConfigError(f"{selector!r}: {name!r} has no {part!r}; {nearest(part, public)}check the spelling")
            value, name = getattr(value, part), f"{name}.{part}"
        return value

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> _Reference:
        scope, _, selector = scoped_selector.rpartition("/")
        target = self.resolve(selector)
        if not evaluate:
            raise ConfigError(f"@{scoped_selector} names a class, not an object; write @{scoped_selector}()")
        return _Reference(target, scope)

    def macro(self, name: str) -> Any:
        return self.resolve(name) if "." in name else _Macro(name)


class _Recipe:
    """All bindings of a recipe and of the files it includes."""

    def __init__(self) -> None:
        self.bindings: dict[tuple[str, Any], dict[str, tuple[Any, str]]] = {}
        self.macros: dict[str, tuple[Any, str]] = {}
        self.names: _Names | None = None  # of the recipe itself, for references in overrides
        self.own: set[tuple[str, Any]] = set()
        self.used: set[tuple[str, Any]] = set()

    def read(self, path: Path, including: tuple[Path, ...] = ()) -> None:
        if path in including:
            raise ConfigError(
                f"{path} includes itself: {' -> '.join(str(p) for p in (*including, path))}; break the circle"
            )
        names = _Names()
        if not including:
            self.names = names
        try:
            text = files.read_text(path, "recipe")
        except DataError as error:
            raise ConfigError(str(error)) from None
        try:
            parser = config_parser.ConfigParser(text, names)
            while True:
                try:
                    statement = parser.parse_statement()
                except ConfigError as error:  # of `names`, to which gin has appended the place
                    message, _, place = str(error).partition("\n  In ")
                    raise ConfigError(f"{path}:{place.split('line ')[1].split()[0]}: {message}") from None
                if statement is None:
                    return
                self._apply(statement, path, names, including)
        except SyntaxError as error:
            line = error.args[1][1] if len(error.args) > 1 else "?"
            message = " ".join(str(error.args[0]).split()).rstrip(".")
            raise ConfigError(f"{path}:{line}: {message}; correct the gin syntax") from None
        except tokenize.TokenError as error:
            raise ConfigError(f"{path}: {error.args[0]}; close every bracket and quote") from None

    def _apply(self, statement: Any, path: Path, names: _Names, including: tuple[Path, ...]) -> None:
        where = f"{path}:{statement.location.line_num}"
        if isinstance(statement, config_parser.ImportStatement):
            if statement.module != "__gin__.dynamic_registration":
                names.modules[statement.bound_name()] = _import(statement, where)
        elif isinstance(statement, config_parser.IncludeStatement):
            self.read(_find(statement.filename, path.parent), (*including, path))
        elif isinstance(statement, config_parser.BlockDeclaration):
            self._target(names, statement, where)
        elif not statement.arg_name:
            name = f"{statement.scope}/{statement.selector}" if statement.scope else statement.selector
            self.macros[name] = (statement.value, where)
        else:
            target = self._target(names, statement, where)
            _check_field(target, statement.arg_name, f"{where}: {statement.selector}")
            key = (statement.scope, target)
            self.bindings.setdefault(key, {})[statement.arg_name] = (statement.value, where)
            if not including:
                self.own.add(key)

    def _target(self, names: _Names, statement: Any, where: str) -> Any:
        try:
            return names.resolve(statement.selector)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def split_overrides(self, overrides: Iterable[str]) -> tuple[dict[str, tuple[Any, str]], list[tuple[str, tuple]]]:
        macros, fields = {}, []
        for override in overrides:
            path, equals, text = override.partition("=")
            path = path.strip()
            if not equals or not path:
                raise ConfigError(f"{override!r} sets nothing; write path.to.field=VALUE")
            entry = (self._value(text.strip()), f"--gin.{path}")
            if path in self.macros:
                macros[path] = entry
            else:
                fields.append((path, entry))
        return macros, fields

    def _value(self, text: str) -> Any:
        """Parse a value of the command line; what is no gin literal is the string itself, so paths need no quotes."""
        if text.startswith(("@", "%")):
            return config_parser.ConfigParser(text, self.names).parse_value()
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    def object_of(self, target: Callable[..., Any], scope: str, inside: tuple = ()) -> _Node:
        if (target, scope) in inside:
            name = f"{scope}/{target.__name__}" if scope else target.__name__
            raise ConfigError(f"@{name}() is part of itself; give the inner one a scope of its own")
        inside = (*inside, (target, scope))
        parts = scope.split("/") if scope else []
        fields: dict[str, tuple[Any, str]] = {}
        for depth in range(len(parts) + 1):
            key = ("/".join(parts[:depth]), target)
            if key in self.bindings:
                self.used.add(key)
                fields.update(self.bindings[key])
        resolved = {name: (self._resolve(value, scope, inside), where) for name, (value, where) in fields.items()}
        return _Node(target, resolved)

    def _resolve(self, value: Any, scope: str, inside: tuple) -> Any:
        """`value` with references as nodes and macros as their values; `inside`: the objects and macros around it."""
        if isinstance(value, _Reference):
            return self.object_of(value.target, value.scope or scope, inside)
        if isinstance(value, _Macro):
            if value.name not in self.macros:
                near = nearest(value.name, self.macros)
                raise ConfigError(f"macro %{value.name} is not set; {near}add {value.name} = ...")
            if value in inside:
                raise ConfigError(f"macro %{value.name} is defined by itself; give it a value")
            return self._resolve(self.macros[value.name][0], scope, (*inside, value))
        if isinstance(value, tuple | list):
            return type(value)(self._resolve(item, scope, inside) for item in value)
        if isinstance(value, dict):
            return {key: self._resolve(item, scope, inside) for key, item in value.items()}
        return value

    def refuse_unused(self) -> None:
        """Refuse a binding of the recipe itself that reaches no object; included files may hold more than is used."""
        for scope, target in self.own - self.used:
            field, (_, where) = next(iter(self.bindings[scope, target].items()))
            scopes = sorted({used for used, cls in self.used if cls is target})
            name = f"{scope}/{target.__name__}" if scope else target.__name__
            there = f"its scopes here are {scopes}" if scopes else f"no @{target.__name__}() is part of it"
            raise ConfigError(
                f"{where}: {name}.{field} reaches no object of this experiment: {there}; correct or delete it"
            )


def _find(name: str, folder: Path) -> Path:
    for candidate in (folder / name, shipped.folder("experiments") / name):
        if candidate.is_file():
            return candidate
    if (folder / name).is_dir():
        raise ConfigError(f"{folder / name} is a folder; give a gin recipe")
    experiments = shipped.folder("experiments")
    known = sorted(str(path.relative_to(experiments)) for path in experiments.rglob("*.gin"))
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    there = f"shipped recipes with a similar name: {', '.join(near)}" if near else f"shipped: {', '.join(known)}"
    raise ConfigError(f"no recipe {folder / name}; {there}")


def _import(statement: config_parser.ImportStatement, where: str) -> types.ModuleType:
    try:
        module = importlib.import_module(statement.module)
    except ModuleNotFoundError as error:
        if error.name is None or not statement.module.startswith(error.name):
            raise
        raise ConfigError(f"{where}: no module {error.name!r} for {statement.format()!r}; correct the import") from None
    if statement.is_from or statement.alias:
        return module
    return importlib.import_module(statement.module.partition(".")[0])


# Checking and making ------------------------------------------------------------------------------------------------


def _fields(target: Any) -> dict[str, dataclasses.Field]:
    if not (isinstance(target, type) and dataclasses.is_dataclass(target)):
        raise ConfigError(
            f"{getattr(target, '__name__', target)!r} is not a config class; recipes set fields of dataclasses"
        )
    return {field.name: field for field in dataclasses.fields(target) if field.init}


def _check_field(target: Any, name: str, of: str) -> None:
    known = _fields(target)
    if name not in known:
        raise ConfigError(f"{of} has no field {name!r}; {nearest(name, known)}its fields are {', '.join(known)}")


def _override(node: _Node, path: list[str], entry: tuple[Any, str], whole: str) -> None:
    name, *rest = path
    _check_field(node.target, name, f"--gin.{whole}: {node.target.__name__}")
    if not rest:
        node.fields[name] = entry
        return
    inner = node.fields[name][0] if name in node.fields else _default(_fields(node.target)[name])
    if not isinstance(inner, _Node):
        if not dataclasses.is_dataclass(inner):
            raise ConfigError(
                f"--gin.{whole}: {name} is {inner!r}, which has no fields; set {name} in the recipe first"
            )
        inner = _Node(type(inner), {key: (getattr(inner, key), name) for key in _fields(type(inner))})
    node.fields[name] = (inner, "")
    _override(inner, rest, entry, whole)


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _construct(node: Any, path: str) -> Any:
    if isinstance(node, tuple | list):
        return type(node)(_construct(item, f"{path}[{i}]") for i, item in enumerate(node))
    if isinstance(node, dict):
        return {key: _construct(item, f"{path}[{key!r}]") for key, item in node.items()}
    if not isinstance(node, _Node):
        return node
    known, hints, values = _fields(node.target), _hints(node.target), {}
    for name, field in known.items():
        inner = f"{path}.{name}" if path else name
        if name in node.fields:
            value, where = node.fields[name]
            value = _construct(value, inner)
            try:
                values[name] = checked(value, hints[name])
            except Mismatch as error:
                place = f"{where}: " if where else ""
                raise ConfigError(
                    f"{place}{inner} = {value!r}: the field takes {name_of(hints[name])}; {error}"
                ) from None
        elif not _has_default(field):
            raise ConfigError(
                f"{inner} has no value and {node.target.__name__} has no default for it; set it in the recipe"
            )
    try:
        return node.target(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _hints(target: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target)
    except NameError as error:
        raise ConfigError(
            f"{target.__name__}: cannot read its annotations ({error}); a config field needs a plain type"
        ) from None


# Writing ------------------------------------------------------------------------------------------------------------


def _dump_object(config: Any, scope: str, modules: dict[str, str], blocks: list[str], defaults: bool) -> str:
    target = type(config)
    alias = _alias(target.__module__, modules)
    selector = f"{alias}.{target.__name__}"
    position = len(blocks)
    lines = [f"{scope}/{selector}:" if scope else f"{selector}:"]
    for name, field in _fields(target).items():
        value = getattr(config, name)
        if defaults or not _has_default(field) or value != _default(field):
            inner = f"{scope}_{name}" if scope else name
            lines.append(f"  {name} = {_dump_value(value, inner, modules, blocks, defaults)}")
    if len(lines) > 1:
        blocks.insert(position, "\n".join(lines) + "\n")
    return f"@{scope}/{selector}()" if scope else f"@{selector}()"


def _dump_value(value: Any, scope: str, modules: dict[str, str], blocks: list[str], defaults: bool) -> str:
    def inner(item: Any, key: Any) -> str:
        return _dump_value(item, f"{scope}_{key}", modules, blocks, defaults)

    if dataclasses.is_dataclass(value):
        return _dump_object(value, scope, modules, blocks, defaults)
    if isinstance(value, tuple):
        items = [inner(item, i) for i, item in enumerate(value)]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {inner(item, key)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    raise ConfigError(f"{scope} = {value!r} cannot be written to a recipe; keep numbers, strings, tuples and configs")


def _alias(module: str, modules: dict[str, str]) -> str:
    """Return the last name of a module, with its parents in front where two modules would share it."""
    if module not in modules:
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            alias = "_".join(parts[-depth:])
            if alias not in modules.values():
                break
        modules[module] = alias
    return modules[module]
