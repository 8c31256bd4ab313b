"""What looks wrong in a data set although every file can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mask2former.data.inspection.findings import ClassCount, Inspection

# Without underscores before and after, which labelme and others put there.
_BACKGROUND_NAMES = {
    *("background", "bg", "void", "ignore", "ignored", "unlabeled", "unlabelled", "none"),
}
_VOID_SHARE = 0.5  # of all pixels: more is suspicious where every pixel should have a class
_ONE_CLASS_SHARE = 0.98  # of the labelled pixels
_FULL_SHARE = 0.1  # of a class's things
_CROWD_SHARE = 0.5  # of all things


def suspicions(found: Inspection) -> list[str]:
    """Sentences, each of which names what looks wrong and the remedy."""
    return [*_file_suspicions(found), *_label_suspicions(found), *_pixel_suspicions(found)]


def _file_suspicions(found: Inspection) -> Iterator[str]:
    if found.duplicate_names:
        yield (
            f"{_some(found.duplicate_names, 'image')} listed more than once; "
            "keep one record of each, or they count twice."
        )
    if found.empty_masks:
        yield (
            f"{_some(found.empty_masks, 'segment')} without a pixel; "
            "training leaves them out; remove or redraw them."
        )
    if found.wrong_areas:
        yield (
            f"{_some(found.wrong_areas, 'segment')} not half or more than twice as large as the "
            "annotation file says; check that it was made for images of this size, and that its "
            "areas are not the areas of boxes."
        )
    if found.unlabelled_images:
        yield (
            f"{_some(found.unlabelled_images, 'image')} without any segment; "
            "fine if there is nothing to find in them, else their annotation is missing."
        )


def _label_suspicions(found: Inspection) -> Iterator[str]:
    seen = [count for count in found.classes if count.segments]
    unseen = [count for count in found.classes if not count.segments]
    if not seen:
        if found.images:
            yield "No class ever occurs; check that the annotations belong to these images."
        return
    first, last = found.classes[0], found.classes[-1]
    if unseen == [last]:
        unseen.remove(last)
        yield (
            f"Every class occurs but the last, {_name(last)}: the labels may be one too low; "
            "check the order of the names and that labels were not reduced twice."
        )
    is_map = found.task == "semantic"
    if first in unseen and (unseen == [first] or is_map) and not _is_background(first):
        unseen.remove(first)
        yield (
            f"The first class, {_name(first)}, never occurs: the labels may be one too high; "
            f"if they count from 1, {'give --reduce-labels or ' if is_map else ''}subtract one."
        )
    if unseen:
        yield (
            f"{_some([count.name for count in unseen], 'class')} never seen; "
            "remove them from the list of classes, or annotate some."
        )
    things = [count for count in seen if count.is_thing]
    total, crowds = sum(c.segments for c in things), sum(c.crowds for c in things)
    if crowds > _CROWD_SHARE * total:
        yield (
            f"{crowds} of the {total} things are crowds, which training leaves out; give an "
            "iscrowd of 0 to single objects (some tools write 1 for every painted mask)."
        )
    binary = is_map and len(found.classes) == 2  # one class and its background
    for count in seen:
        if _is_background(count) and not binary:
            remedy = "make it void (--reduce-labels if it is label 0)" if is_map else "leave it out"
            yield (
                f"{_name(count)} is a class of its own, which the model would learn to find; if "
                f"it means that nothing is annotated there, {remedy}."
            )


def _pixel_suspicions(found: Inspection) -> Iterator[str]:
    seen = [count for count in found.classes if count.pixels]
    labelled = sum(count.pixels for count in seen)
    void = found.unlabelled_pixels / max(1, found.pixels)
    covers_all = found.task != "instance"
    if covers_all and len(seen) == 1 and void:
        yield (
            f"Only {_name(seen[0])} occurs beside void: if these are binary masks of 0 and 255, "
            "write 1 for 255, which means void, and name both classes."
        )
    elif covers_all and seen and void > _VOID_SHARE:
        yield (
            f"{void:.0%} of all pixels are void; check that every class is in the list of classes "
            "and that the labels were not reduced by mistake."
        )
    if covers_all and (len(seen) > 1 or not void):
        for count in seen:
            if count.pixels > _ONE_CLASS_SHARE * labelled:
                yield (
                    f"{_name(count)} fills {count.pixels / labelled:.0%} of the labelled pixels; "
                    "check the label values of the other classes."
                )
    for count in seen:
        if count.is_thing and count.full > _FULL_SHARE * count.segments:
            yield (
                f"{count.full} of the {count.segments} segments of {_name(count)} cover their "
                "whole image; check that masks and background are not swapped."
            )


def _is_background(count: ClassCount) -> bool:
    return count.name.strip(" _").lower() in _BACKGROUND_NAMES


def _name(count: ClassCount) -> str:
    return f"{count.name!r} (number {count.category_id})"


def _some(names: Sequence[str], noun: str) -> str:
    """'2 images (a.png, b.png) are', with at most three names."""
    plural = noun if len(names) == 1 else noun + ("es" if noun.endswith("s") else "s")
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {plural} ({shown}) {'is' if len(names) == 1 else 'are'}"
