"""What was measured: figures with their aims, in one table per topic, for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

Unit = Literal["us", "ms", "x", "/s", "MB", "KB", "%", ""]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value.

    Attributes:
        value: In the unit; a small value is a good one.
        aim: The most that it should be, ``None`` where nothing was aimed at.
    """

    value: float
    unit: Unit
    aim: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the value, as it is printed, is within its aim; ``None`` without one."""
        return None if self.aim is None else float(_number(self.value, self.unit)) <= self.aim

    def __str__(self) -> str:
        text = _with_unit(self.value, self.unit)
        return text if self.met is None else f"{text} {'met' if self.met else 'missed'}"


def _number(value: float, unit: Unit) -> str:
    if unit == "":
        return f"{value:g}"
    text = f"{value:.1f}" if unit in {"MB", "KB", "%"} or abs(value) >= 20 else f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def _with_unit(value: float, unit: Unit) -> str:
    return f"{_number(value, unit)}{'' if unit in {'', '/s', 'x', '%'} else ' '}{unit}"


def milliseconds(seconds: float, aim: float | None = None) -> Figure:
    """A duration in seconds as a figure; its aim is in milliseconds."""
    return Figure(value=seconds * 1000, unit="ms", aim=aim)


@final
@dataclass(slots=True, kw_only=True)
class Table:
    """The figures of one topic.

    Attributes:
        topic: The name it is asked for by.
        title: What was measured, and how.
        rows: A label and its figures by column; a row may lack columns.
        notes: What one has to know to read it.
    """

    topic: str
    title: str
    rows: dict[str, Mapping[str, Figure]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        lines = [["", *columns]]
        for label, row in self.rows.items():
            lines.append([label, *(str(row[column]) if column in row else "-" for column in columns)])
        aims = {
            column: figure for row in self.rows.values() for column, figure in row.items() if figure.aim is not None
        }
        if aims:
            lines.append(["aim", *(_aim(aims.get(column)) for column in columns)])
        return "\n".join([self.title, *_aligned(lines), *(f"  {note}" for note in self.notes)])

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        rows = {
            label: {
                column: {"value": figure.value, "unit": figure.unit, "aim": figure.aim, "met": figure.met}
                for column, figure in row.items()
            }
            for label, row in self.rows.items()
        }
        return {"topic": self.topic, "title": self.title, "rows": rows, "notes": self.notes}


def _aim(figure: Figure | None) -> str:
    return "" if figure is None or figure.aim is None else f"{figure.aim:g} {figure.unit}".replace(" x", "x")


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
