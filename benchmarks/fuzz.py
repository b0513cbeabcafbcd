"""Damaged files through the command line, and fits that are killed at random moments (`benchmarks.kills`).

`maps`: saved maps with flipped bits, cut, spliced with other files, with lengths and headers
exchanged, made up, or changed behind a correct checksum. `inputs`: the same for files of points,
pictures and walls. Every case is a command in a process that watches for exceptions, exit statuses
other than 0, 1 and 2, and writing anywhere but to the output; another process watches it, and
counts a case that computes for more than ten seconds, or kills its process.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from select import select as readable
from typing import Any

import numpy as np

from benchmarks.harness import (
    ROOT,
    Options,
    Record,
    conditions,
    in_fresh_process,
    keep,
    load,
    markdown,
    number,
    select,
)
from benchmarks.mutations import damaged, forged, made_up

CASES, KILLS = 10_000, 100
PATIENCE = 10.0  # seconds of computing that a case may take; six times as many by the clock
_START = 600.0  # and a process to start and to run every command once
_FRESH = 500  # cases of a process: every accepted map compiles programs of its own
_SHOWN = 20  # failures that a record describes
_POINTS = ("x.npy", "x32.npy", "whole.npy", "x.npz", "x.csv", "named.tsv", "x.parquet", "x.h5ad")
_PICTURES = ("photo.png", "photo.jpg", "grey.png", "photo.gif", "photo.tif", "photo.webp")
_COUNTED = ("done", "failed", "rejected")


def run(options: Options) -> None:
    for seed in options.seeds:
        for target in ("maps", "inputs"):
            if options.wants({"target": target}):
                _fuzz(options, target, seed)
        if options.wants({"target": "kills"}):
            count = 2 if options.quick else max((options.cases or CASES) * KILLS // CASES, 1)
            found = in_fresh_process("benchmarks.kills", count, seed)
            keep(options, "fuzz", {"target": "kills"}, seed, **found)


def _fuzz(options: Options, target: str, seed: int) -> None:
    count = 20 if options.quick else options.cases or CASES
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            _command("prepare", folder, target), env=_environment(folder), cwd=ROOT, check=True
        )
        with _Watched(folder, target, seed) as worker:
            results = [worker.run(i) for i in range(count)]
    failures = [r for r in results if r["problem"]]
    for failure in failures:
        print(json.dumps(failure), file=sys.stderr)
    scores = {name: sum(r["status"] == i for r in results) for i, name in enumerate(_COUNTED)}
    keep(
        options,
        "fuzz",
        {"target": target},
        seed,
        scores={
            "cases": count,
            **scores,
            **{
                problem: sum(r["problem"] == problem for r in failures)
                for problem in ("exception", "status", "stray", "hang", "crash")
            },
        },
        seconds={
            "total": time.perf_counter() - began,
            "slowest": max(r["seconds"] for r in results),
        },
        failures=failures[:_SHOWN],
        failed=[r for r in results if r["status"] == 1][:_SHOWN],
    )


# The process that watches


class _Watched:
    """A worker that is started anew when it hangs, dies or has done its share."""

    def __init__(self, folder: str, target: str, seed: int):
        self.folder = folder
        self.command = _command("work", folder, target, seed)
        self.process: subprocess.Popen[bytes] | None = None
        self.done = 0

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def run(self, case: int) -> Record:
        if self.process is None or self.done % _FRESH == 0:
            self._stop()
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=_environment(self.folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            if self._answer(_START) is None:
                raise RuntimeError("The worker did not start.")
        self.done += 1
        began = time.perf_counter()
        assert self.process.stdin is not None
        self.process.stdin.write(b"%d\n" % case)
        self.process.stdin.flush()
        answer = self._answer(PATIENCE)
        seconds = time.perf_counter() - began
        if answer is None:
            problem = "hang" if self.process.poll() is None else "crash"
            self._stop()
            note = Path(self.folder, "case.json")
            about = json.loads(note.read_text()) if note.exists() else {}
            return {"case": case, "status": None, "problem": problem, "seconds": seconds, **about}
        return {"case": case, "seconds": seconds, **answer}

    def _answer(self, patience: float) -> Record | None:
        """What the worker says, or None if it dies or takes too long: other work on the machine is not its fault."""
        assert self.process is not None
        assert self.process.stdout is not None
        before, latest = self._computed(), time.perf_counter() + 6.0 * patience
        while not readable([self.process.stdout], [], [], 0.5)[0]:
            if self._computed() - before > patience or time.perf_counter() > latest:
                return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def _computed(self) -> float:
        """Seconds that the worker has computed; by the clock where the system does not tell."""
        assert self.process is not None
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.perf_counter()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "benchmarks.fuzz", *map(str, arguments)]


def _environment(folder: str) -> dict[str, str]:
    """Everything that a program may write beside its output lies in the folder, and is noticed."""
    home = {"HOME": folder, "TMPDIR": folder, "XDG_CACHE_HOME": f"{folder}/cache"}
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    quiet = {"BRENIER_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg"}
    return os.environ | home | quiet | {"PYTHONPATH": paths}


# The process that is watched


def _work(folder: str, target: str, seed: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.chdir(folder)
    guard = _Guard(Path(folder))
    for name, arguments in _commands(target):
        _invoke([*arguments[0], f"base/{name}", *arguments[1]])
        _empty(Path("out"))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        case = int(line)
        name, command = _case(target, np.random.default_rng([seed, len(target), case]))
        about = {"file": name, "command": " ".join(command)}
        Path("case.json").write_text(json.dumps(about))
        with guard:
            status, message, raised = _invoke(command)
        stray = guard.strays(command[command.index("--out") + 1] if "--out" in command else None)
        problem = ""
        if raised or "Traceback" in message or "error: Unexpected" in message:
            problem = "exception"
        elif status not in (0, 1, 2):
            problem = "status"
        elif stray:
            problem, message = "stray", f"{stray} {message}"
        answer = about | {"status": status, "problem": problem, "message": message[-400:]}
        _empty(Path("out"))
        print(json.dumps(answer), file=answers, flush=True)


class _Guard:
    """Notes what is written while it is entered: every path that Python opens or makes, and new files."""

    def __init__(self, folder: Path):
        self.folder, self.armed, self.written = folder.resolve(), False, set[str]()
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            path, mode, flags = arguments
            writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND)
            if (writing or set(mode or "") & set("wax+")) and not isinstance(path, int):
                self.written.add(os.fsdecode(path))
        elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate"):
            self.written |= {os.fsdecode(a) for a in arguments if isinstance(a, str | bytes)}

    def __enter__(self) -> None:
        self.written.clear()
        self.before = self._files()
        self.armed = True

    def __exit__(self, *_: Any) -> None:
        self.armed = False

    def strays(self, output: str | None) -> list[str]:
        """What was written elsewhere than to the output, whose temporary files lie beside it."""
        out = (self.folder / "out").resolve()
        paths = {Path(os.path.realpath(path)) for path in self.written}
        strays = [str(p) for p in paths if out not in (p, *p.parents) and p != Path(os.devnull)]
        strays += [str(p) for p in self._files() ^ self.before]
        allowed = () if output is None else (self.folder / output,)
        strays += [str(p) for p in out.iterdir() if p not in allowed]
        return sorted(strays)

    def _files(self) -> set[tuple[str, int, int]]:
        return {
            (entry.path, entry.stat().st_size, entry.stat().st_mtime_ns)
            for place in (".", "base", "shards")
            for entry in os.scandir(self.folder / place)
            if entry.is_file()
        }


@functools.cache
def _program() -> Any:
    """`brenier`, whose options take longer to make than to refuse a file."""
    import typer.main

    from brenier.cli import app

    return typer.main.get_command(app)


def _invoke(arguments: list[str]) -> tuple[int | None, str, bool]:
    """Exit status, what was said on stderr, and whether an exception came through."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            _program().main(arguments, prog_name="brenier")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0, said.getvalue(), False
    except BaseException as error:
        return None, f"{said.getvalue()}{error!r}", True
    return None, said.getvalue(), True


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


# Cases


Command = tuple[list[str], list[str]]  # what comes before the damaged file, and after it

_MAP_COMMANDS: list[Command] = [
    (["info"], []),
    (["transport"], ["base/x.npy", "--out", "out/y.npy"]),
    (["transport"], ["base/x.npy", "--out", "out/y.csv", "--inverse", "--time", "0.5"]),
    (["trajectories"], ["base/x.npy", "--out", "out/p.npz", "--times", "3"]),
]
# Ends that refuse every file alike, the whole ones too: reading is what is tried.
_POINT_COMMANDS: list[Command] = [
    (["transport", "base/exact.brenier"], ["--out", "out/y.npy"]),
    (["transport", "base/exact.brenier"], ["--out", "out/y.csv", "--json"]),
    (["trajectories", "base/exact.brenier"], ["--out", "out/p.csv", "--times", "3"]),
    (["fit"], ["base/three.npy", "--out", "out/m.brenier"]),
    (["evaluate", "base/exact.brenier"], ["base/three.npy"]),
]
_WALL_COMMAND: Command = (
    ["trajectories", "base/exact.brenier", "base/x.npy", "--state-cost"],
    [*("--extent", "-4", "4", "-4", "4"), *("--out", "out/p.npz", "--times", "3")],
)
_PICTURE_COMMANDS: list[Command] = [(["color"], ["base/flat.png", "--out", "out/c"]), _WALL_COMMAND]
_MAPS = ("exact.brenier", "ncf.brenier", "diotm.brenier", "hota.brenier")


def _commands(target: str) -> Iterator[tuple[str, Command]]:
    """Every command once, on a file that is whole."""
    if target == "maps":
        yield from ((name, command) for name in _MAPS for command in _MAP_COMMANDS)
        return
    yield from ((name, _POINT_COMMANDS[0]) for name in _POINTS if Path("base", name).exists())
    yield from (("x.npy", command) for command in _POINT_COMMANDS)
    yield from (("photo.png", command) for command in _PICTURE_COMMANDS)


def _case(target: str, rng: np.random.Generator) -> tuple[str, list[str]]:
    """Writes a damaged file; its name, and the command that meets it."""
    if target == "maps":
        name, commands = str(rng.choice(_MAPS)), _MAP_COMMANDS
    else:
        kinds = [(_POINTS, _POINT_COMMANDS), (_PICTURES, _PICTURE_COMMANDS)]
        kinds += [(("walls.npy", "walls.png"), [_WALL_COMMAND])]
        kinds += [(("part-0.npy", "part-0.parquet"), _POINT_COMMANDS[3:4])]
        names, commands = kinds[rng.choice(4, p=[0.55, 0.25, 0.1, 0.1])]
        # Parquet and AnnData are extras.
        name = str(rng.choice([name for name in names if Path("base", name).exists()]))
    before, after = commands[rng.integers(len(commands))]
    source, others = Path("base", name), sorted(Path("base").iterdir())
    damaged_file = Path(f"damaged{source.suffix}")
    how = rng.random()
    if target == "maps" and how < 0.25:
        forged(source, damaged_file, rng)
    elif how < 0.35 and source.suffix in (".npy", ".csv", ".png", ".brenier"):
        damaged_file.write_bytes(made_up(source.suffix, rng))
    else:
        other = others[rng.integers(len(others))].read_bytes()
        damaged_file.write_bytes(damaged(source.read_bytes(), other, rng))
    given = str(damaged_file)
    if name.startswith("part-"):  # a folder of shards, one of them damaged
        _empty(Path("shards"))
        damaged_file.rename(Path("shards", name))
        whole = f"part-1{source.suffix}"
        shutil.copy(source, Path("shards", whole))
        given = "shards"
    return name, [*before, given, *after]


def _prepare(folder: str, target: str) -> None:
    """Files that are whole: points, pictures, walls and an exact map; where maps are tried, fitted ones too."""
    import jax
    from PIL import Image

    import brenier
    from brenier.coordinates import Frame
    from brenier.points import write_points
    from brenier.solution import Metadata, Solution

    base = Path(folder, "base")
    for place in ("base", "out", "shards"):
        Path(folder, place).mkdir()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 64, 2)) * [[[1.0]], [[2.0]]]
    moments = np.zeros(2), np.eye(2), np.ones(2), np.diag([4.0, 0.25])
    potential = brenier.GaussianPotential.from_moments(*moments)
    arrays = jax.tree.map(jax.numpy.asarray, potential)
    transport = brenier.CharacteristicTransport(
        arrays, Frame.identity(2), brenier.costs.Quadratic()
    )
    exact = Solution(transport, {}, "completed", "Done.", Metadata({}), Metadata({}))
    brenier.save(base / "exact.brenier", exact)
    if target == "maps":
        _fit_maps(base, brenier.TransportProblem(x, y))

    for name in ("x.npy", "x.npz", "x.csv"):
        write_points(base / name, x)
    for name in ("x.parquet", "x.h5ad"):
        with contextlib.suppress(brenier.InputError):  # an extra that is not installed
            write_points(base / name, x)
    np.save(base / "x32.npy", x.astype(np.float32))
    np.save(base / "whole.npy", (10 * x).astype(int))
    np.save(base / "three.npy", rng.normal(size=(64, 3)))
    np.savetxt(base / "named.tsv", x, delimiter="\t", header="first\tsecond", comments="")
    np.save(base / "part-0.npy", x)
    if (base / "x.parquet").exists():
        shutil.copy(base / "x.parquet", base / "part-0.parquet")
    pixels = rng.integers(256, size=(12, 16, 3), dtype=np.uint8)
    for name in _PICTURES:
        picture = Image.fromarray(pixels)
        (picture.convert("I;16") if name == "grey.png" else picture).save(base / name)
    walls = np.zeros((8, 8))
    walls[3:5, 2:6] = 1.0
    np.save(base / "walls.npy", walls)
    Image.fromarray(np.uint8(255 * (1 - walls))).save(base / "walls.png")
    Image.new("RGB", (4, 4), (9, 9, 9)).save(base / "flat.png")


def _fit_maps(base: Path, problem: Any) -> None:
    """A map of every method, small and of two steps."""
    import brenier

    small: dict[str, Any] = {"widths": (8,), "steps": 2, "batch_size": 32}
    methods = {
        "ncf": brenier.NCF(network="mlp", **small),
        "diotm": brenier.DIOTM(network="mlp", **small),
        "hota": brenier.HOTA(network="mlp", pool=32, improved=8, refreshed=4, **small),
    }
    for name, method in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = brenier.fit(problem, method, validation=0.0)
        brenier.save(base / f"{name}.brenier", solution)


def table(results: Path) -> str | None:
    records = load("fuzz", results)
    if not records:
        return None
    header = ["", "cases", "exit status 0 / 1 / 2", "exceptions", "other statuses"]
    header += ["files elsewhere", "over 10 s", "crashes"]
    rows = []
    for target, title in (("maps", "maps"), ("inputs", "points, pictures, walls")):
        found = select(records, target=target)
        if found:
            total = {name: sum(r["scores"][name] for r in found) for name in found[0]["scores"]}
            statuses = " / ".join(f"{total[name]:.0f}" for name in _COUNTED)
            counts = (total[n] for n in ("exception", "status", "stray", "hang", "crash"))
            rows.append([title, f"{total['cases']:.0f}", statuses, *(f"{c:.0f}" for c in counts)])
    text = markdown(header, rows)
    killed = select(records, target="kills")
    if killed:
        total = {name: sum(r["scores"][name] for r in killed) for name in killed[0]["scores"]}
        text += (
            f"\n\n{total['kills']:.0f} kills at random moments of {total['fits']:.0f} fits of "
            f"{number(killed[0]['seconds']['fit'], 2)} s: {total['identical']:.0f} ended with the bits of "
            "one that was left alone."
        )
    return f"{text}\n\n{conditions(records, sums=True)}"


if __name__ == "__main__":
    task, *given = sys.argv[1:]
    if task == "prepare":
        _prepare(given[0], given[1])
    else:
        _work(given[0], given[1], int(given[2]))
