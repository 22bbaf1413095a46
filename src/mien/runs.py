"""A run directory: what is in it and how it is named, read and appended to. Formats: docs/architecture.md. No torch."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mien.errors import UserError
from mien.whole import write_text

FORMAT = "mien-run/1"
REALS_OWN = "the reals' own"  # conditions drawn as the reference has them
SAME_PROTOCOL = ("store", "crop", "size", "split", "n_real", "n_fake", "features", "weights_sha256", "ema", "truncation", "conditions",
                 "trained_on", "precision")  # fmt: skip
_STARTED_S = time.time()
STALE_AFTER_S = 600  # a "running" status older than this on another machine is taken for dead


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that a reader sees the old file or the whole new one, never a part."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is no such file. Raises UserError when it is not JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it was damaged or edited by hand.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; it was damaged or edited by hand.")
    return value


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, oldest first. A line cut short by a crash is passed over; no file means no lines."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            yield value


class Run:
    """A run directory. `Run.open(path)` reads one that exists; `Run.create(path, ...)` begins one."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: IO[bytes] | None = None

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Raises UserError when `path` is no run directory or one of another format version."""
        run = cls(path)
        if not run.path.is_dir():
            raise UserError(f"No such run directory: {path}.")
        config = read_json(run.path / "config.json")
        if config is None:
            raise UserError(f"{path} is not a run directory (it has no config.json).")
        if config.get("format") != FORMAT:
            raise UserError(f"{path} has format {config.get('format')!r}; this version of mien reads {FORMAT}.")
        return run

    @classmethod
    def create(cls, path: str | Path, *, config: dict[str, Any], architecture: dict[str, Any]) -> Run:
        """Begin a run: make the folder and write config.json and architecture.json (config.json last: it makes the folder a run)."""
        run = cls(path)
        for folder in ("samples", "snapshots", "checkpoints", "control"):
            (run.path / folder).mkdir(parents=True, exist_ok=True)
        write_json(run.path / "architecture.json", architecture)
        write_json(run.path / "config.json", {"format": FORMAT, **config})
        return run

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json") or {}

    @property
    def architecture(self) -> dict[str, Any] | None:
        return read_json(self.path / "architecture.json")

    @property
    def status(self) -> dict[str, Any]:
        """status.json, with state 'interrupted' in place of 'running' when its process is gone. Empty before the first tick."""
        status = read_json(self.path / "status.json") or {}
        if status.get("state") == "running" and not self._alive(status):
            status["state"] = "interrupted"
        return status

    def _alive(self, status: dict[str, Any]) -> bool:
        if status.get("host") not in (None, _host()):  # another machine's process cannot be asked
            return time.time() - status.get("updated_s", 0) < STALE_AFTER_S
        if status.get("locked"):  # the system lets go of a lock when its holder dies, so this cannot be wrong as a number can
            return self._lock is not None or not self._can_lock()
        if os.name == "nt":  # there os.kill(pid, 0) does not ask, it interrupts
            return time.time() - status.get("updated_s", 0) < STALE_AFTER_S
        if status.get("pid") == os.getpid():  # a number that came round again, as in a container: this process is not training
            return status.get("updated_s", 0) >= _STARTED_S
        try:
            os.kill(int(status["pid"]), 0)
        except PermissionError:
            return True
        except (OSError, KeyError, ValueError):
            return False
        return True

    def write_status(self, **fields: Any) -> None:
        who = {"pid": os.getpid(), "host": _host(), "locked": self._lock is not None}
        write_json(self.path / "status.json", {**fields, **who, "updated_s": time.time()})

    # --- one process at a time ----------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Keep the run for this process until `unlock` or its death. Raises UserError when another process has it.

        Two that write one run would spoil it, and a status file cannot keep them apart: both may read it before either writes.
        """
        path = self.path / "control" / "lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115 (open as long as the run is kept)
        for attempt in range(10):
            try:
                if try_lock(file):
                    self._lock = file
                else:
                    file.close()  # a file system without locks: the status must do
                return
            except BlockingIOError:
                if attempt < 9:
                    time.sleep(0.05)  # 'mien runs' holds it for an instant, to see whether it can
        file.close()
        pid = (read_json(self.path / "status.json") or {}).get("pid", "another")
        raise UserError(f"{self.path} is being trained by process {pid}; 'mien stop {self.path}' stops it after a checkpoint.")

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _can_lock(self) -> bool:
        try:
            with open(self.path / "control" / "lock", "r+b") as file:
                return try_lock(file)
        except BlockingIOError:
            return False
        except OSError:  # no such file, or not ours to write: nothing holds it that we could know of
            return True

    # --- JSON lines ---------------------------------------------------------------------------------------------------

    def append(self, file: str, nimg: int, **fields: Any) -> None:
        """Append one line to `file` ('scalars', 'events' or 'metrics'). Numbers that JSON cannot hold are written as null."""
        record = {"nimg": nimg, "time_s": round(time.time(), 3), **fields}
        with open(self.path / f"{file}.jsonl", "a+b") as out:
            if out.seek(0, os.SEEK_END):
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    out.write(b"\n")  # a crash cut the last line short: keep the damage to that line
            out.write(json.dumps(_finite(record)).encode() + b"\n")

    def event(self, nimg: int, kind: str, message: str, **fields: Any) -> None:
        self.append("events", nimg, kind=kind, message=message, **fields)

    def scalars(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.path / "scalars.jsonl"))

    def events(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.path / "events.jsonl"))

    def metrics(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.path / "metrics.jsonl"))

    def rewind(self, nimg: int, *, scores: bool = False) -> None:
        """Drop scalars past `nimg`: a resumed run says again what it had said after its last checkpoint.

        With `scores`, snapshots and grids past it and all that was scored go too: a run that was rolled back goes another way from there.
        """
        self._keep_until("scalars", nimg)
        if scores:
            self._keep_until("metrics", nimg)
            for at_nimg, weights in self.snapshots():
                if at_nimg > nimg:
                    weights.with_suffix(".json").unlink(missing_ok=True)
                    weights.unlink(missing_ok=True)
            for at_nimg, grid in self.samples():
                if at_nimg > nimg:
                    grid.unlink(missing_ok=True)
            for at_nimg, averages in self.posthoc():
                if at_nimg > nimg:
                    averages.unlink(missing_ok=True)

    def _keep_until(self, name: str, nimg: int) -> None:
        path = self.path / f"{name}.jsonl"
        told = list(read_jsonl(path))
        kept = [record for record in told if record.get("nimg", 0) <= nimg]
        if len(kept) < len(told):
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    # --- knobs turned by hand -----------------------------------------------------------------------------------------

    def request_control(self, changes: dict[str, float | str | None], over_nimg: int = 0) -> Path:
        """Ask the process that trains this run, or the next one, to turn knobs ({'lr_g': 1e-4}), at once or gradually.

        The request stays for the life of the run: a resume or a rollback to before it meets it again at the same image.
        """
        folder = self.path / "control"
        folder.mkdir(exist_ok=True)
        path = folder / f"{time.time_ns():020d}-{os.getpid()}.json"
        write_json(path, {"changes": changes, "over_nimg": over_nimg})
        return path

    def control_requests(self) -> list[tuple[Path, dict[str, Any]]]:
        """(file, request) of each, oldest first; `at_nimg` is in it once it was met. Damaged ones are passed over."""
        found = []
        for path in (self.path / "control" / name for name in self.control_names()):
            with contextlib.suppress(UserError):
                request = read_json(path)
                if request and _is_request(request):
                    found.append((path, request))
        return found

    def control_names(self) -> list[str]:
        """The requests' file names, oldest first: cheap enough to ask before every step."""
        try:
            return sorted(name for name in os.listdir(self.path / "control") if name[0].isdigit() and name.endswith(".json"))
        except FileNotFoundError:
            return []

    def note_control(self, path: Path, request: dict[str, Any]) -> None:
        """Write down at which image a request was met."""
        write_json(path, request)

    # --- files named by image count -----------------------------------------------------------------------------------

    def samples(self) -> list[tuple[int, Path]]:
        """(nimg, grid) of each sample grid, oldest first."""
        return self._by_kimg("samples", ".png")

    def snapshots(self) -> list[tuple[int, Path]]:
        """(nimg, .safetensors) of each generator snapshot, oldest first."""
        return self._by_kimg("snapshots", ".safetensors")

    def posthoc(self) -> list[tuple[int, Path]]:
        """(nimg, .safetensors) of the averages that others can be made from (`mien ema`), oldest first."""
        return self._by_kimg("posthoc", ".safetensors")

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(nimg, folder) of each checkpoint, oldest first; whether one is whole is for engine.checkpoint to say."""
        folder = self.path / "checkpoints"
        return sorted((int(path.name), path) for path in folder.glob("[0-9]*") if path.name.isdigit()) if folder.is_dir() else []

    def best_score(self) -> dict[str, Any] | None:
        """The line of metrics.jsonl that the run stands for: the `best_distance` of the snapshots that are there. None without one."""
        there = dict(self.snapshots())
        return best_distance(line for line in self.metrics() if line.get("nimg") in there)

    def best_snapshot(self) -> Path | None:
        """The snapshot of the best score; the newest where there is no score, None where there is no snapshot."""
        there, best = dict(self.snapshots()), self.best_score()
        return there[best["nimg"] if best else max(there)] if there else None

    def _by_kimg(self, folder: str, suffix: str) -> list[tuple[int, Path]]:
        found = []
        for path in (self.path / folder).glob(f"*kimg{suffix}"):
            digits = path.name.removesuffix(f"kimg{suffix}")
            if digits.replace("p", "", 1).isdigit():
                found.append((round(float(digits.replace("p", ".")) * 1000), path))
        return sorted(found)


def kimg_name(nimg: int) -> str:
    """'000320kimg' for 320,000 images; '000000p064kimg' where thousands alone would not tell two files apart."""
    whole, rest = divmod(nimg, 1000)
    return f"{whole:06d}kimg" if rest == 0 else f"{whole:06d}p{rest:03d}kimg"


def _is_request(request: dict[str, Any]) -> bool:
    counts = (request.get("over_nimg"), request.get("at_nimg", 0))
    return isinstance(request.get("changes"), dict) and all(isinstance(count, int) and count >= 0 for count in counts)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def is_frechet(metric: str) -> bool:
    """Whether it is a Frechet distance: 'fid', 'fd-face', 'fd-inception-768'."""
    return metric.startswith(("fd-", "fid"))


def best_distance(lines: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Of lines of metrics.jsonl, oldest first, the least Frechet distance by the protocol that tells the most image counts apart.

    Of protocols that tell as many the newest, of equal distances too. None when there is no distance: nothing is chosen by the test split.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        protocol = given if isinstance(given := line.get("protocol"), dict) else {}
        told = _is_number(line.get("value")) and _is_number(line.get("nimg")) and protocol.get("split") != "test"
        if told and is_frechet(str(line.get("metric"))):
            key = score_key(line["metric"], protocol)
            groups[key] = [*groups.pop(key, []), line]  # the newest protocol last
    if not groups:
        return None
    most = max(reversed(groups.values()), key=lambda group: len({line["nimg"] for line in group}))
    return min(most, key=lambda line: (line["value"], -line["nimg"]))


def score_key(metric: str, protocol: Mapping[str, Any]) -> str:
    """Scores with the same key may be ranked."""
    return json.dumps([metric, protocol_key(protocol)], sort_keys=True, default=str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def protocol_key(protocol: Mapping[str, Any]) -> list[Any]:
    """What must agree for two scores to be ranked. Two snapshots' own names and dates may differ. No precision means fp32.

    A model without conditions is scored on the law it has learnt, a conditional one on the reals' own: both against the same reals.
    """
    asked = {"precision": "fp32", **protocol, **({"conditions": REALS_OWN} if protocol.get("conditions") == "none" else {})}
    return [asked.get(key) for key in SAME_PROTOCOL]


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; False where the file system has no locks. Raises BlockingIOError when another has it."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise BlockingIOError(*error.args) from None
        return False
    return True


def _host() -> str:
    import platform

    return platform.node()
