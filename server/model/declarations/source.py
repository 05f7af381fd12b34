"""A declaration as the source of its family's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from server.model.declarations.declaration import Declaration, Layer, Router

CONFIG_KEYS: Mapping[str, Sequence[str]] = {  # that a field may have its number from
    "top_k": ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token"),
    "is_normalised": ("norm_topk_prob", "route_norm", "moe_router_norm_topk_prob"),
    "groups": ("n_group", "num_expert_group"),
    "top_groups": ("topk_group", "num_limited_groups"),
    "window": ("sliding_window", "attention_chunk_size"),
    "softcap": ("attn_logit_softcapping",),
    "num_streams": ("hc_mult", "hc_count"),
    "num_shared": ("n_shared_experts",),
    "scale": ("routed_scaling_factor", "router_scaling_factor", "route_scale", "moe_router_topk_scaling_factor"),
    "residual_scale": ("residual_multiplier",),
    "scaling": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "logits_scale": ("logit_scale", "output_multiplier"),
}
INVERSE_KEYS: Mapping[str, Sequence[str]] = {"logits_scale": ("logits_scaling",)}
ROOTS: Mapping[str, Sequence[Sequence[str]]] = {  # keys of whose sum a field may be the root, or its inverse
    "scaling": (("head_dim",), ("qk_nope_head_dim", "qk_rope_head_dim")),
    "embedding_scale": (("hidden_size",),),
}
PACKAGE, INDENT, WIDTH = "server.model.declarations", "    ", 120


def source_of(declared: Declaration, config: Any) -> str:
    """Return the source of a file of ``server/model/families``.

    Numbers that a config has under one of a few keys are read from it.

    Args:
        declared: of one model.
        config: of its text part.
    """
    return _Source(declared, config).text()


@dataclass(frozen=True)
class _Expression:
    """A text, or some expressions between two texts, which stand in lines of their own if they are long."""

    start: str
    inside: Sequence[str | _Expression] = ()
    end: str = ""
    opened: str = ""  # before the lines, if they are several
    closed: str = ""
    before: str = ""  # a statement that it needs

    def named(self, name: str, sign: str = "=") -> _Expression:
        return replace(self, start=f"{name}{sign}{self.start}")

    def rendered(self, depth: int, start: str = "", end: str = "") -> str:
        """Return lines that are indented by a depth, with a text before and one after the expression."""
        indent = INDENT * depth
        if self.before:
            return f"{indent}{self.before}\n" + replace(self, before="").rendered(depth, start, end)
        inside = [each if isinstance(each, _Expression) else _Expression(each) for each in self.inside]
        line = indent + start + self.start + ", ".join(each.rendered(0) for each in inside) + self.end + end
        if not inside or ("\n" not in line and len(line) <= WIDTH):
            return line
        lines = [each.rendered(depth + 1, end=",") for each in inside]
        return "\n".join([indent + start + self.start + self.opened, *lines, indent + self.closed + self.end + end])


class _Source:
    def __init__(self, declared: Declaration, config: Any):
        self._declared, self._config = declared, config
        self._types: set[type] = {Declaration}
        self._kinds: list[Layer] = []
        for layer in declared.layers:
            if layer not in self._kinds:
                self._kinds.append(layer)

    def text(self) -> str:
        names = ["layer"] if len(self._kinds) == 1 else [f"layer_{number}" for number in range(len(self._kinds))]
        body = [self._call(kind).rendered(1, f"{name} = ") for name, kind in zip(names, self._kinds, strict=True)]
        body.append(self._layers(names).rendered(1, "layers = "))
        given = self._given(self._declared, without="layers")
        body.append(_Expression("Declaration(", ["layers=layers", *given], ")").rendered(1, "return "))
        imported = sorted(each.__name__ for each in self._types)
        imports = _Expression(f"from {PACKAGE} import ", imported, "", opened="(", closed=")").rendered(0)
        head = [
            f'"""{self._config.model_type}."""',
            "from __future__ import annotations",
            "from typing import Any",
            imports,
        ]
        return "\n\n".join([*head, "\ndef declare(config: Any) -> Declaration:\n" + "\n".join(body)]) + "\n"

    def _layers(self, names: Sequence[str]) -> _Expression:
        order, count = [self._kinds.index(layer) for layer in self._declared.layers], "config.num_hidden_layers"
        if len(names) == 1:
            together = self._declared.layers_in_one
            return _Expression(f"[{names[0]}] * " + (f"({together} * {count})" if together > 1 else count))
        types = getattr(self._config, "layer_types", None)
        if types is not None and len(types) == len(order) and len({*zip(types, order, strict=True)}) == len({*types}):
            by_type = dict(zip(types, order, strict=True))
            choice = [f'"{kind}": {names[number]}' for kind, number in by_type.items()]
            kinds = _Expression("{", choice, "}").rendered(1, "by_type = ").lstrip()
            return _Expression("[by_type[kind] for kind in config.layer_types]", before=kinds)
        return _Expression("[", [names[number] for number in order], "]")

    def _call(self, part: Any) -> _Expression:
        self._types.add(type(part))
        return _Expression(f"{type(part).__name__}(", self._given(part), ")")

    def _given(self, part: Any, without: str = "") -> list[str | _Expression]:
        """Return the arguments of a part, but for those that are the defaults of its type in every config."""
        given: list[str | _Expression] = []
        for each in fields(part):
            value = getattr(part, each.name)
            may_be_chance = not isinstance(part, Router) or each.name not in CONFIG_KEYS  # such as a factor of 1
            is_left_out = _is_default(each, value) and (may_be_chance or not self._keys(each.name, value))
            if each.name != without and not is_left_out:
                found = self._value(each.name, value)
                given.append(found.named(each.name) if each.kw_only else found)
        return given

    def _value(self, name: str, value: Any) -> _Expression:
        if isinstance(value, Enum):
            self._types.add(type(value))
            return _Expression(f"{type(value).__name__}.{value.name}")
        if is_dataclass(value):
            return self._call(value)
        if isinstance(value, list | tuple):
            return _Expression("[", [self._value(name, each) for each in value], "]")
        if isinstance(value, Mapping):
            pairs = [self._value(name, own).named(f'"{key}"', ": ") for key, own in value.items()]
            return _Expression("{", pairs, "}")
        if isinstance(value, bool | int | float):
            found = [*self._keys(name, value), *self._roots(name, value), repr(value)]
            return _Expression(found[0])
        return _Expression(f'"{value}"' if isinstance(value, str) else repr(value))

    def _keys(self, name: str, value: Any) -> list[str]:
        """Return the keys of the config that a number may be from."""
        if not isinstance(value, bool | int | float):
            return []
        known = {key: own for key, own in vars(self._config).items() if isinstance(own, bool | int | float)}
        found = [f"config.{key}" for key in CONFIG_KEYS.get(name, ()) if key in known and _are_same(known[key], value)]
        inverse = [key for key in INVERSE_KEYS.get(name, ()) if known.get(key) and _are_same(1 / known[key], value)]
        return found + [f"1 / config.{key}" for key in inverse]

    def _roots(self, name: str, value: float) -> Iterator[str]:
        """Yield the expressions whose root, or its inverse, a number is."""
        known = vars(self._config)  # some configs refuse to read what differs by layer
        for keys in ROOTS.get(name, ()):
            numbers = [known[key] for key in keys if isinstance(known.get(key), int)]
            if len(numbers) < len(keys) or not sum(numbers):
                continue
            text = " + ".join(f"config.{key}" for key in keys)
            text = f"({text}) ** " if len(keys) > 1 else f"{text}**"
            yield from (f"{text}{power}" for power in (0.5, -0.5) if _are_same(sum(numbers) ** power, value))


def _are_same(one: float, other: float) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(np.float32(one) == np.float32(other))


def _is_default(field: Any, value: Any) -> bool:
    has_factory = field.default is MISSING and field.default_factory is not MISSING
    default = field.default_factory() if has_factory else field.default
    return bool(value == default or (value in ((), []) and default in ((), [])))
