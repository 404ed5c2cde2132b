"""What a load did with every tensor of the file."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LoadReport:
    """Every tensor of a file accounted for; `str()` is a readable text.

    Args:
        source: what was opened.
        family: the family of the checkpoint.
        which: the part that was asked for.
        loaded: full names of the tensors that are in the networks now.
        reshaped: one line for each tensor that changed its shape or was joined with others.
        dropped: one line for each tensor that the networks do not need, and why.
        left_over: full names of tensors of parts that were not asked for and of the training's state.
        missing: our names of tensors that the file does not have; a file with such is refused.
        unexplained: full names that no rule knows; a file with such is refused.
        notes: what was inferred or assumed.
    """

    source: str
    family: str
    which: str
    loaded: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.summary()]
        for title in ("missing", "unexplained", "dropped", "reshaped", "left_over"):
            names = getattr(self, title)
            if names:
                lines.append(f"  {title.replace('_', ' ')}: {len(names)}")
                lines += [f"    {name}" for name in names]
        return "\n".join(lines)

    def summary(self) -> str:
        """The text without the lists of names."""
        counts = [
            f"{len(getattr(self, title))} {title.replace('_', ' ')}"
            for title in ("loaded", "reshaped", "dropped", "left_over")
        ]
        head = f"{self.source}: {self.which} of {self.family}; tensors: {', '.join(counts)}"
        return "\n".join([head, *(f"  note: {note}" for note in self.notes)])

    def with_notes(self, notes: tuple[str, ...]) -> LoadReport:
        """The same report with more to say."""
        return replace(self, notes=self.notes + notes)

    def refuse_gaps(self) -> None:
        """Refuse a file that lacks tensors, or has some that nothing explains.

        Raises:
            ValueError: names the first five.
        """
        for verb, names in {"lacks": self.missing, "has, and nothing explains,": self.unexplained}.items():
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                raise ValueError(
                    f"load: {self.source}, read as {self.family}, {verb} {len(names)} tensors: "
                    f"{', '.join(names[:5])}{more}; nothing was loaded. Pass family=... if it is another family."
                )
