"""Reading what is written about images: attribute tables and partitions, as CelebA, Kaggle or people write them.

CelebA's own text: a line with the count, a line of names, then `000001.jpg -1 1 ...`. Kaggle's: a CSV with the column `image_id`.
People's: a CSV whose first column is the file name and whose others are 0/1, -1/1, yes/no or true/false; a column `split` gives the splits.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mien.data.files import stem
from mien.data.store import SPLITS
from mien.errors import UserError

MINUS, OTHER = 2, 255       # codes of -1 and of what is no binary value
CODES = {"0": 0, "1": 1, "-1": MINUS, "0.0": 0, "1.0": 1, "-1.0": MINUS, "false": 0, "true": 1, "no": 0, "yes": 1}
SPLIT_WORDS = {"0": 0, "1": 1, "2": 2, **SPLITS, "valid": 1, "validation": 1, "training": 0, "testing": 2, "eval": 1}
SPLIT_COLUMNS = ("split", "partition")


@dataclass
class Table:
    """An attribute file: its columns, and the line of each image. Lines are taken apart when they are asked for: often few of many are."""

    label: str                          # the file, for messages
    names: tuple[str, ...]              # of the attribute columns
    places: tuple[int, ...]             # where these stand among the cells
    split_place: int | None             # where the column `split` stands
    width: int                          # cells in a line
    delimiter: str | None               # None: white space
    lines: dict[str, tuple[int, str]]   # {file name: (line number, the line)}
    disputed: dict[str, tuple[int, int]] = field(default_factory=dict)     # {file name: numbers of two lines that differ}

    def rows_of(self, files: Sequence[str]) -> list[str]:
        """The row of each of these files, as `match` finds them."""
        return match(files, self.lines, self.label)

    def select(self, rows: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
        """Of these rows, in order: the names of the binary columns, their values uint8 [N, A], their splits uint8 [N] or None.

        UserError with the line when one is malformed, or with two that describe one image and differ.
        """
        codes_of_rows, splits = [], []
        for key in rows:
            if key in self.disputed:
                earlier, later = self.disputed[key]
                raise UserError(f"lines {earlier} and {later} of {self.label} both describe {key}, and differ; remove one")
            number, line = self.lines[key]
            cells = cut(line, self.delimiter)
            if len(cells) != self.width:
                raise UserError(f"line {number} of {self.label} has {len(cells)} cells, {self.width} are needed; {_mend(self.label)}")
            if self.split_place is not None:
                splits.append(_split(cells[self.split_place], self.label, number))
            codes_of_rows.append(_codes([cells[place] for place in self.places]))
        codes = np.frombuffer(b"".join(codes_of_rows), np.uint8).reshape(len(rows), len(self.names))
        binary = [column for column in range(len(self.names)) if _is_binary(codes[:, column])]
        values = (codes[:, binary] == 1).astype(np.uint8)
        return tuple(self.names[column] for column in binary), values, None if self.split_place is None else np.array(splits, np.uint8)

    def leave_out(self, name: str) -> None:
        """Forget the column of this name, if there is one."""
        kept = [(each, place) for each, place in zip(self.names, self.places) if each != name]
        self.names, self.places = tuple(each for each, _ in kept), tuple(place for _, place in kept)

    def odd_cell(self, rows: Sequence[str], name: str) -> str:
        """Where the column `name` is not binary: "'' in line 7" for the first cell of these rows that is no 0 or 1."""
        place = self.places[self.names.index(name)]
        for key in rows:
            number, line = self.lines[key]
            cell = cut(line, self.delimiter)[place]
            if _codes([cell])[0] == OTHER:
                return f"{cell.strip()!r} in line {number}"
        return "-1, 0 and 1"


def _is_binary(codes: np.ndarray) -> bool:
    present = set(np.unique(codes).tolist())
    return OTHER not in present and not {0, MINUS} <= present      # -1, 0 and 1 together are three values, not two


def match(files: Sequence[str], rows: Mapping[str, object], label: str) -> list[str]:
    """The key in `rows` for each file: its whole path, else the longest tail of it that fits a row, with or without the suffix.

    So `faces/a/0.png` is found as `a/0.png`, `a/0.jpg` or `0.png`. A shortened name counts only where one file and one row have it.
    UserError that names two where a row could belong to several files, and that counts and names the files without a row.
    """
    found = {name: name for name in files if name in rows}
    if len(found) < len(files):
        _match_tails(files, rows, label, found)
    missing = [name for name in files if name not in found]
    if missing:
        by_lower = {_tail(row, 1, True).lower(): row for row in rows}
        twins = ((name, by_lower.get(_tail(name, 1, True).lower())) for name in missing)
        twin = next(((name, row) for name, row in twins if row and _tail(row, 1, True) != _tail(name, 1, True)), None)
        if twin:
            raise UserError(f"{label} has no row for {len(missing):,} of {len(files):,} images: {twin[0]} is {twin[1]} there; capital and "
                            "small letters must be the same")
    if missing and len(missing) == len(files) and rows:
        raise UserError(f"{label} has no row for any of the {len(files):,} images ({first(missing)}): its rows begin with "
                        f"{first(list(rows))}; the file names must be its first column")
    if missing:
        raise UserError(f"{label} has no row for {len(missing):,} of {len(files):,} images ({first(missing)}); complete it, remove "
                        "those images, or leave the attributes out with --attributes none")
    return [found[name] for name in files]


def _match_tails(files: Sequence[str], rows: Mapping[str, object], label: str, found: dict[str, str]) -> None:
    """Add to `found` {file: row} what shortened names find. From the longest tail down: the more folders agree, the surer it is."""
    taken = set(found.values())
    pending = [name for name in files if name not in found]
    # A part more than the shallower side has: its whole paths are told from the tails of longer ones.
    deepest = min(max(name.count("/") for name in files), max((row.count("/") for row in rows), default=0)) + 2
    for parts, suffix in [(parts, suffix) for parts in range(deepest, 0, -1) for suffix in (True, False)]:
        files_of, rows_of = _by_tail(files, parts, suffix), _by_tail(rows, parts, suffix)
        unknown = []
        for name in pending:
            tail = _tail(name, parts, suffix)
            fitting = [row for row in rows_of.get(tail, ()) if row not in taken]
            if not fitting:
                unknown.append(name)
            elif len(rows_of[tail]) == len(files_of[tail]) == 1:
                found[name] = fitting[0]
            else:
                _refuse_doubt(name, fitting, [each for each in files_of[tail] if each not in found], label)
                # Else the row is of another folder, and a namesake has its own: this file has none, and a shorter tail would mislead.
        taken.update(found.values())
        pending = unknown
        if not pending:
            return


def _refuse_doubt(name: str, rows: Sequence[str], files: Sequence[str], label: str) -> None:
    """UserError when several rows fit one file, or one row several files."""
    doubt = (f"the rows {rows[0]} and {rows[1]} of {label} both fit {name}" if len(rows) > 1 else
             f"the row {rows[0]} of {label} fits both {files[0]} and {files[1]}" if len(files) > 1 else None)
    if doubt:
        raise UserError(f"{doubt}; write the path of each image into the first column")


def _by_tail(names: Iterable[str], parts: int, suffix: bool) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_tail(name, parts, suffix), []).append(name)
    return groups


def _tail(name: str, parts: int, suffix: bool) -> str:
    """The last `parts` parts of a path, with or without the suffix."""
    tail = "/".join(name.split("/")[-parts:])
    return tail if suffix else tail[:len(tail) - len(name.rpartition("/")[2])] + stem(name)


def read_table(data: bytes, label: str) -> Table:
    """An attribute file: CelebA's text, or a CSV (told apart by commas in the first line). UserError with the line that is wrong."""
    lines = _text(data, label).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{label} is empty; {_mend(label)}")
    if _delimiter(lines[0]):
        return _read_csv(lines, label)
    if len(lines) < 2 or not lines[0].strip().isdigit():
        raise UserError(f"{label} is not an attribute file: it should be a CSV, or CelebA's text, which begins with the number of images")
    names = tuple(lines[1].split())
    by_name = {line.partition(" ")[0]: (number, line) for number, line in enumerate(lines[2:], 3)}
    return Table(label, names, tuple(range(1, len(names) + 1)), None, len(names) + 1, None, by_name)


def _read_csv(lines: list[str], label: str) -> Table:
    delimiter = _delimiter(lines[0])
    header = [name.strip() for name in cut(lines[0], delimiter)]
    split_place = next((at for at, name in enumerate(header) if at and name.lower() in SPLIT_COLUMNS), None)
    places = tuple(at for at in range(1, len(header)) if at != split_place)
    repeated = {name for name in header[1:] if header[1:].count(name) > 1}
    if repeated:
        raise UserError(f"{label} has two columns called {min(repeated)!r}; rename one")
    by_name: dict[str, tuple[int, str]] = {}
    disputed: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            name = line.partition(delimiter or ",")[0] if '"' not in line else cut(line, delimiter)[0]
            name = name.strip().replace("\\", "/").removeprefix("./")
            if name in by_name and by_name[name][1] != line:
                disputed[name] = by_name[name][0], number
            by_name[name] = (number, line)
    return Table(label, tuple(header[at] for at in places), places, split_place, len(header), delimiter, by_name, disputed)


def cut(line: str, delimiter: str | None) -> list[str]:
    """The cells of a line; None cuts at white space."""
    return next(csv.reader([line], delimiter=delimiter)) if delimiter and '"' in line else line.split(delimiter)


def _delimiter(line: str) -> str | None:
    return next((mark for mark in (",", ";", "\t") if mark in line), None)


def _codes(cells: list[str]) -> bytes:
    try:
        return bytes([CODES[cell] for cell in cells])       # the official files pass here; people's spellings below
    except KeyError:
        return bytes([CODES.get(cell.strip().lower(), OTHER) for cell in cells])


def _split(cell: str, label: str, number: int) -> int:
    code = SPLIT_WORDS.get(cell) if cell in SPLIT_WORDS else SPLIT_WORDS.get(cell.strip().lower())
    if code is None:
        raise UserError(f"line {number} of {label} has the split {cell!r}; say train, val or test (0, 1 or 2)")
    return code


def read_partition(data: bytes, label: str, files: Sequence[str]) -> np.ndarray:
    """list_eval_partition, as text (`000001.jpg 0`) or CSV: uint8 [N], the split of each of these files. UserError as `match`, and
    with the line when one is malformed."""
    lines = _text(data, label).splitlines()
    delimiter = _delimiter(lines[0]) if lines else None
    start = 1 if delimiter else 0       # a CSV has a line of column names
    by_name = {line.partition(delimiter or " ")[0]: (number, line) for number, line in enumerate(lines[start:], start + 1)}
    splits = np.empty(len(files), np.uint8)
    for at, key in enumerate(match(files, by_name, label)):
        number, line = by_name[key]
        cells = line.split(delimiter)
        if len(cells) != 2:
            raise UserError(f"line {number} of {label} should be a file name and a 0, 1 or 2; {_mend(label)}")
        splits[at] = _split(cells[1], label, number)
    return splits


def official_split(name: str) -> int | None:
    """CelebA's partition as a rule, for want of the file: 1 to 162,770 train, to 182,637 val, to 202,599 test. None for other names."""
    digits = stem(name)
    number = int(digits) if digits.isascii() and digits.isdigit() else 0
    if not 1 <= number <= 202_599:
        return None
    return 0 if number <= 162_770 else 1 if number <= 182_637 else 2


def _text(data: bytes, label: str) -> str:
    try:
        return data.decode("utf-8-sig")     # spreadsheets write a byte order mark
    except UnicodeDecodeError:
        raise UserError(f"{label} is not text in UTF-8; save it again as UTF-8") from None


def find_file(names: Iterable[str], wanted: Sequence[str], read: Callable[[str], bytes]) -> tuple[str, bytes] | None:
    """The first of `wanted` file names that is among `names` (in any folder), and its bytes. None when there is none."""
    by_last = {name.rsplit("/", 1)[-1]: name for name in names}
    found = next((by_last[name] for name in wanted if name in by_last), None)
    return None if found is None else (found, read(found))


def _mend(label: str) -> str:
    """What to do about a damaged file: only CelebA's own lists can be had again."""
    return "download it again, or mend it" if label.replace("\\", "/").rpartition("/")[2].startswith("list_") else "mend it"


def counted(count: int, noun: str) -> str:
    """'1 image', '2,000 images'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first(names: Sequence[str], count: int = 3) -> str:
    """'a, b, c, ...': the first few of a list, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
