"""A table of named implementations: built in, registered by the running program, or entry points of packages."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from nfsd3d.errors import InputError, did_you_mean

Row = TypeVar("Row")


@dataclass(frozen=True, eq=False)
class Table(Generic[Row]):
    """Implementations of one kind by name.

    ``setting`` chooses one and ``noun`` names the kind, both for messages. ``group`` is the entry-point group in which
    installed packages offer further rows of ``row_type``; an entry point is imported only when its row is asked for.
    Built-in and registered names take precedence. ``remedy`` ends the message about an unknown name;
    ``reserved`` names have no row here.
    """

    setting: str
    noun: str
    group: str
    builtin: Mapping[str, Row]
    row_type: type[Row]
    remedy: str = ""
    reserved: tuple[str, ...] = ()
    _registered: dict[str, Row] = field(default_factory=dict)

    def register(self, name: str, row: Row) -> None:
        """Adds a row for this process.

        Raises:
            ValueError: the name exists already, or cannot be written on a command line.
            TypeError: not a row of this table.
        """
        if not re.fullmatch(r"[A-Za-z]\w*(-\w+)*", name):
            raise ValueError(f"{self.noun} {name!r}: a name has letters, digits, dashes and underscores")
        if name in self or name in self.reserved:
            raise ValueError(f"{self.noun} {name!r} exists already: choose another name, or unregister({name!r}) first")
        if not isinstance(row, self.row_type):
            raise TypeError(f"{self.noun} {name!r}: of type {type(row).__name__}, not a {self.row_type.__name__}")
        self._registered[name] = row

    def unregister(self, name: str) -> None:
        """Takes `register` back.

        Raises:
            KeyError: no such registered name.
        """
        del self._registered[name]

    def __contains__(self, name: str) -> bool:
        known = name in self.builtin or name in self._registered
        return known or (name not in self.reserved and bool(self._entry_points(name)))

    def names(self) -> list[str]:
        """All names, built-in ones first."""
        offered = (point.name for point in entry_points(group=self.group))
        return list(dict.fromkeys([*self.builtin, *self._registered, *offered]))

    def find(self, name: str) -> Row:
        """The row of this name.

        Raises:
            InputError: there is none, or the package that offers it is broken; the message names the package.
        """
        for rows in (self.builtin, self._registered):
            if name in rows:
                return rows[name]
        points = self._entry_points(name)
        if not points:
            names = [*self.reserved, *self.names()]
            choice = f"choose {', '.join(names)}{self.remedy}"
            raise InputError(f"{self.setting}={name}: no such {self.noun}{did_you_mean(name, names)}; {choice}")
        return self._load(points)

    def _entry_points(self, name: str) -> list[EntryPoint]:
        return list(entry_points(group=self.group, name=name))

    def _load(self, points: list[EntryPoint]) -> Row:
        packages = " and ".join(point.dist.name if point.dist is not None else "?" for point in points)
        asked = f"{self.setting}={points[0].name}: the package {packages}"
        if len(points) > 1:
            raise InputError(f"{asked} offer it both; uninstall one")
        try:
            row = points[0].load()
        except Exception as error:  # another package's code may raise anything when it is imported
            reason = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"{asked} offers it, but {points[0].value} cannot be imported ({type(error).__name__}: {reason}); "
                "repair or uninstall the package"
            ) from error
        if not isinstance(row, self.row_type):
            raise InputError(
                f"{asked} offers {points[0].value}, of type {type(row).__name__}, not a "
                f"{self.row_type.__name__}; repair or uninstall the package"
            )
        return row
