"""An inspection as text that fits on a screen."""

from __future__ import annotations

from mask2former.data.inspection.findings import Inspection, Spread

# Of more than _MAX_ROWS classes a report shows the most and the least frequent ones.
_MAX_ROWS, _FREQUENT_ROWS, _RARE_ROWS = 30, 20, 8
_MAX_GAPS = 6


def report(found: Inspection) -> str:
    """An inspection as text: every error, the classes, a summary, and every warning.

    What follows the errors fits on a screen, however many classes there are.
    """
    parts = [_class_table(found), _summary(found)]
    if found.errors:
        parts.insert(0, "\n".join(["errors:", *found.errors]))
    if found.warnings:
        parts.append("\n".join(["warnings:", *found.warnings]))
    return "\n\n".join(parts)


def _class_table(found: Inspection) -> str:
    """A line per class. Of many classes only those that occur the most and the least often."""
    rows = list(enumerate(found.classes))
    if len(rows) > _MAX_ROWS:
        rows = [row for row in rows if row[1].segments]
        rows.sort(key=lambda row: -row[1].segments)
    if len(rows) > _MAX_ROWS:
        rows = rows[:_FREQUENT_ROWS] + rows[-_RARE_ROWS:]
    width = max(5, *(len(count.name) for count in found.classes))
    lines = [
        f"{'label':>5}  {'id':>5}  {'class':<{width}}  kind   {'images':>8}  {'segments':>8}"
        f"  {'crowds':>6}  {'pixels':>7}"
    ]
    for label, count in rows:
        share = count.pixels / max(1, found.pixels)
        lines.append(
            f"{label:>5}  {count.category_id:>5}  {count.name:<{width}}"
            f"  {'thing' if count.is_thing else 'stuff'}  {count.images:>8}  {count.segments:>8}"
            f"  {count.crowds:>6}  {share:>7.2%}"
        )
    if left_out := len(found.classes) - len(rows):
        unseen = sum(not count.segments for count in found.classes)
        row = _FREQUENT_ROWS if unseen < left_out else len(rows)
        lines.insert(row + 1, f"  ... {left_out} more classes, {unseen} of them without a segment")
    return "\n".join(lines)


def _summary(found: Inspection) -> str:
    segments = f"{found.segments}"
    if found.areas:
        segments += (
            f", area {_text(found.areas, ' pixels')}; {found.small_segments} smaller than 32x32, "
            f"{len(found.empty_masks)} without a pixel"
        )
    rows = [
        ("task", found.task),
        ("images", f"{found.images}"),
        ("errors", f"{len(found.errors)} (listed first)" if found.errors else "none"),
        ("classes", f"{len(found.classes)}, numbered {_numbers(found)}"),
        ("segments", segments),
        ("in no segment", f"{found.unlabelled_pixels / max(1, found.pixels):.2%} of all pixels"),
    ]
    if found.heights and found.widths:
        sizes = f"height {_text(found.heights)}, width {_text(found.widths)}"
        rows.insert(3, ("image size", sizes))
    return "\n".join(f"{name + ':':<15}{value}" for name, value in rows)


def _text(spread: Spread, unit: str = "") -> str:
    return f"{spread.min} to {spread.max}{unit} (median {spread.median:g})"


def _numbers(found: Inspection) -> str:
    """The numbers of the classes in the annotation files, and the first few gaps."""
    numbers = [count.category_id for count in found.classes]
    text = f"{min(numbers)} to {max(numbers)}"
    gaps = [str(a) if a == b else f"{a}-{b}" for a, b in found.category_gaps]
    if len(gaps) > _MAX_GAPS:
        gaps = [*gaps[:_MAX_GAPS], f"... ({len(gaps)} gaps)"]
    return f"{text} without {', '.join(gaps)}" if gaps else text
