"""IACycleGAN's data sets: a photo and a sketch of each person. CUFS, CUFSF, in several layouts."""
import re
from pathlib import Path

from lab import UserError
from lab.formats import folders_below, pictures_in, text_of

# About so many pairs: so many are held out by everybody. CUHK student, AR, XM2VTS, CUFSF
HELD_OUT = {188: 100, 123: 43, 295: 195, 1194: 944}
A_TEST = re.compile(r"(?<!la)test|(?<![a-z])val(id|idation)?(?![a-z])")          # test/AR; but not latest


def scan(root):
    """What is under root: `pairs` of files (photo, sketch), `test` (bool each), `images`, `bad`, `notes`.

    UserError where this is no data set.
    """
    root = Path(root)
    listed, (parts, halves) = listed_in(root), parts_of(root)
    split = any(map(A_TEST.search, parts))
    pairs, test, bad, counts = [], [], [], []
    for part, sides in parts.items():
        both, alone = matched(*sides)
        pairs += both
        if listed:
            test += [photo.relative_to(root).as_posix() in listed for photo, _ in both]
        elif split and (A_TEST.search(part) or "train" in part):
            test += [bool(A_TEST.search(part))] * len(both)
        else:
            test += held_out(both)
        bad += [f"{path}: no single partner of the same name; expected e.g. photos/f-005-01.jpg and "
                "sketches/f-005-01-sz1.jpg" for path in alone]
        counts.append(f"{part or '.'} ({len(both)})")
    if listed and pairs and not any(test):
        raise UserError(f"{root / 'list_test.txt'}: none of its {len(listed)} lines names a photo that was "
                        f"found, as {min(listed)!r}; expected names from {root} on, as "
                        f"{pairs[0][0].relative_to(root).as_posix()}||...")
    if not any(test) or all(test):
        raise UserError(f"{root}: {len(pairs)} pairs of photo and sketch, {sum(test)} of them held out; "
                        "expected photos/ and sketches/ in one folder, with at least four pairs, of which a "
                        "quarter is held out, or in train/ and test/, or in one for each part"
                        + (f"; {bad[0]}" if bad else ""))
    notes = {"pairs": f"{len(pairs)}, {sum(test)} of them held out", "parts": ", ".join(counts)}
    if unknown := listed - {photo.relative_to(root).as_posix() for photo, _ in pairs} - {""}:
        notes["list_test.txt"] = f"{len(unknown)} of its lines name no photo of a pair, as {min(unknown)!r}"
    if halves:
        notes["left out"] = ", ".join(f"{part or '.'} ({files} without {missing})"
                                      for part, (files, missing) in halves.items())
    return dict(pairs=pairs, test=test, images=[p for pair in pairs for p in pair], bad=bad, notes=notes)


def listed_in(root):
    """The photos that list_test.txt names: its lines are photo||sketch||... Empty without it."""
    file = root / "list_test.txt"
    lines = text_of(file).splitlines() if file.exists() else ()
    return {line.split("||")[0].strip().replace("\\", "/") for line in lines}


def held_out(pairs):
    """Which pairs of a part are tested on, where neither a list nor the folders say it. [bool]

    CUHK student's whose sketch is not named F2-... or M2-... (the official 100); else as many as HELD_OUT
    says of about so many pairs, or a quarter, evenly spread over the names (which sort by sex).
    """
    to_train = [re.match(r"[fm]2-", sketch.stem.lower()) is not None for _, sketch in pairs]
    if any(to_train) and not all(to_train):
        return [not it for it in to_train]
    total = len(pairs)
    n = next((held for about, held in HELD_OUT.items() if abs(total - about) < 4), total // 4)
    return [(k + 1) * n // total > k * n // total for k in range(total)]


def parts_of(root):
    """{part: (photos, sketches)}, lists of files; and {part: (what it has, what it lacks)} of halves.

    A folder counts as photos or sketches if its name, or one above it, says so. Of several such folders of a
    part one is taken: cropped ones before others.
    """
    found = {}
    for folder in folders_below(root):
        words, files = [part.lower() for part in folder.relative_to(root).parts], pictures_in(folder)
        kinds = [k for word in reversed(words) for k, kind in enumerate(("photo", "sketch")) if kind in word]
        if kinds and files:
            rest = [re.sub(r"photos?|sketch(es|s)?|cropped|original|[_\- ]", "", word) for word in words]
            sides = found.setdefault("/".join(filter(None, rest)), ([], []))
            sides[kinds[0]].append(("cropped" not in str(folder).lower(), files))
    whole = {part: tuple(min(side)[1] for side in sides) for part, sides in found.items() if all(sides)}
    halves = {part: ("photos", "sketches") if sides[0] else ("sketches", "photos")
              for part, sides in found.items() if part not in whole}
    return whole, halves


def matched(photos, sketches):
    """[(photo, sketch)] of the same people, and the files without a partner.

    By name; what is left over by CUHK student's sex and number: f-005-01 and f2-005-01. Ambiguous names stay
    alone.
    """
    pairs, alone = [], [list(photos), list(sketches)]
    for key in (pair_key, sex_and_number):
        found = [{}, {}]
        for side, paths in zip(found, alone, strict=True):
            for path in filter(key, paths):
                side.setdefault(key(path), []).append(path)
        both = {k for k in found[0] if len(found[0][k]) == len(found[1].get(k, ())) == 1}
        pairs += [(found[0][k][0], found[1][k][0]) for k in both]
        alone = [[p for p in paths if key(p) not in both] for paths in alone]
    return sorted(pairs), alone[0] + alone[1]


def pair_key(path):
    """What a photo and its sketch have in common: the name without the ending -sz1, in lower case."""
    return re.sub(r"-sz\d*$", "", path.stem.lower())


def sex_and_number(path):
    """f005 of f-005-01, f2-005-01 ...; None of other names."""
    match = re.fullmatch(r"([fm])\d?-(\d+)-\d+", pair_key(path))
    return match and match[1] + match[2]
