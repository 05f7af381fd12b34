"""Metrics of all replicas as one page: summed under their usual names, and by replica under names of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families

PREFIX, BY_REPLICA = "greenroom_", "greenroom_replica_"
AVERAGED = ("_ratio", "_perc", "_balance")  # ends of names whose values are shares
HIDDEN = ("greenroom_expert_tokens",)  # one series for each expert: summed alone


def merge_metrics(pages: Mapping[str, bytes]) -> bytes:
    """Return the metrics of replicas in Prometheus' text format.

    Args:
        pages: the page of each replica, by its name.
    """
    helps: dict[str, tuple[str, str]] = {}  # type and help of each family
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]] = {}
    own: dict[str, list[str]] = {}
    for replica, page in pages.items():
        for family in text_string_to_metric_families(page.decode()):
            helps.setdefault(family.name, (family.type, family.documentation))
            by_labels = sums.setdefault(family.name, {})
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                by_labels.setdefault((sample.name, labels), []).append(float(sample.value))
                if not family.name.startswith(HIDDEN):
                    name = sample.name.replace(PREFIX, BY_REPLICA, 1)
                    line = _line(name, (("replica", replica), *labels), float(sample.value))
                    own.setdefault(family.name, []).append(line)
    lines: list[str] = []
    for name, by_labels in sums.items():
        kind, text = helps[name]
        lines += _head(name, kind, text)
        lines += [_line(each, labels, _merged(name, values)) for (each, labels), values in by_labels.items()]
        if name in own:
            lines += _head(name.replace(PREFIX, BY_REPLICA, 1), kind, f"{text} By replica.")
            lines += own[name]
    return ("\n".join(lines) + "\n").encode()


def _merged(family: str, values: list[float]) -> float:
    return sum(values) / len(values) if family.endswith(AVERAGED) else sum(values)


def _head(name: str, kind: str, text: str) -> list[str]:
    full = f"{name}_total" if kind == "counter" else name
    kind = "untyped" if kind == "unknown" else kind
    return [f"# HELP {full} {_escaped(text)}", f"# TYPE {full} {kind}"]


def _line(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text, quotes=True)}"' for label, text in labels)
    number = repr(value) if value != int(value) else str(int(value)) if abs(value) < 1 << 53 else repr(value)
    return f"{name}{{{inside}}} {number}" if inside else f"{name} {number}"


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
