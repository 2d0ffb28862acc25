"""The commands that train: demo, run, compare and resume.

PyTorch is imported inside the commands, so that everything else starts at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import click
import typer

from secfed.cli.output import print_json, remember_run, show, tell
from secfed.cli.progress import progress_for
from secfed.errors import RunDirectoryError, StudyError

if TYPE_CHECKING:
    from secfed.policy import SitePolicy
    from secfed.study import Study

__all__ = [
    "compare",
    "demo",
    "find_demo_study",
    "find_policy",
    "policy_file",
    "resume",
    "run",
]

_DEMO_METHODS: Final = ("ffa-lora", "fedavg")
_PACKAGE_DIR: Final = Path(__file__).resolve().parent.parent
_EXAMPLE: Final = Path("examples", "icd10_hospitals", "study.toml")

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml.")]
OutDir = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Where the run directory is made."),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--site-policy",
        metavar="FILE",
        help="The sites' policy; site.toml beside the study by default.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", min=1, help="Of a grid: cells at once."),
]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory",
        metavar="GB",
        min=0.1,
        help="Of a grid: for all cells; by default what the machine has free.",
    ),
]


def demo(ctx: typer.Context, out: OutDir = None, *, as_json: AsJson = False) -> None:
    """Compare two methods on four hospitals' diagnosis wordings; minutes on a CPU.

    Example: secfed demo --out runs/my-demo
    """
    study = find_demo_study()
    folder = out or Path("runs", f"demo-{_timestamp()}")
    _compare(ctx, study, _DEMO_METHODS, None, folder, None, (None, None), as_json)


def run(
    ctx: typer.Context,
    study: StudyFile,
    out: OutDir = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead of the study's training.method."),
    ] = None,
    site_policy: PolicyFile = None,
    engine: Annotated[
        Literal["local", "simulation"],
        typer.Option(help="local: one process; simulation: Flower's, for many sites."),
    ] = "local",
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Of the simulation; one a processor by default."
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Run one study with one method.

    The simulation engine plays a deployment with all sites on this machine, some
    sites in each process of Ray (pip install 'secfed[simulation]').

    Example: secfed run study.toml --method ffa-lora --out runs/first
    """
    if engine == "local" and processes is not None:
        raise click.BadParameter(
            "belongs to --engine simulation", param_hint="--processes"
        )
    from secfed.study import load_study  # noqa: PLC0415

    loaded = load_study(study)
    if method is not None:
        loaded = loaded.with_method(method)
    policy = find_policy(study, site_policy)
    folder = out or Path("runs", f"{loaded.name}-{_timestamp()}")
    base_dir = study.resolve().parent
    remember_run(ctx, folder)
    if engine == "simulation":
        from secfed.runtime.simulated import run_simulation  # noqa: PLC0415

        with progress_for() as progress:
            run_simulation(loaded, base_dir, folder, policy, progress, processes)
    else:
        from secfed.runtime.local import run_study  # noqa: PLC0415

        with progress_for() as progress:
            run_study(loaded, base_dir, folder, policy, progress)
    show_run(folder, as_json=as_json)
    _tell_alarms(policy)


def compare(
    ctx: typer.Context,
    study: StudyFile,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Methods; the study's [compare] by default."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="0,1,2", help="Seeds; three or more give intervals."),
    ] = None,
    out: OutDir = None,
    site_policy: PolicyFile = None,
    jobs: Jobs = None,
    memory: Memory = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Run several methods with the same epsilon, beside baselines.

    A study whose [compare] names epsilons, alphas or ranks is a grid: one comparison
    for each combination, each in a process of its own.

    Example: secfed compare study.toml --methods ffa-lora,fedavg --seeds 0,1,2
    """
    chosen = None if methods is None else _names(methods)
    numbers = None if seeds is None else _numbers(seeds)
    folder = out or Path("runs", f"compare-{_timestamp()}")
    use = (jobs, memory)
    _compare(ctx, study, chosen, numbers, folder, site_policy, use, as_json)


def resume(
    ctx: typer.Context,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    jobs: Jobs = None,
    memory: Memory = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Finish an interrupted run; a round that had begun is not repeated.

    Example: secfed resume runs/my-demo
    """
    if (run_dir / "private" / "serve.json").is_file():
        from secfed.cli.deployment import resume_serving  # noqa: PLC0415

        resume_serving(run_dir, as_json=as_json)
        return
    if not (run_dir / "private" / "run.json").is_file():
        raise RunDirectoryError(
            f"{run_dir}: no private/run.json, so this is not a run that can be "
            "continued; start one with `secfed run` or `secfed compare`"
        )
    remember_run(ctx, run_dir)

    from secfed.cli.grid import grid_display, limits_of, show_grid  # noqa: PLC0415
    from secfed.runtime.directory import open_run  # noqa: PLC0415
    from secfed.study.grid import grid_cells  # noqa: PLC0415

    study, record, policy = open_run(run_dir)
    if record.kind == "grid":
        from secfed.runtime.resume import resume_grid  # noqa: PLC0415

        with grid_display(len(grid_cells(study))) as events:
            resume_grid(run_dir, events, limits_of(jobs or 1, memory))
        show_grid(run_dir, as_json=as_json)
        return
    _refuse_limits((jobs, memory))
    from secfed.runtime.resume import resume_run  # noqa: PLC0415

    with progress_for() as progress:
        resume_run(run_dir, progress)
    show_run(run_dir, as_json=as_json)
    _tell_alarms(policy)


def find_demo_study() -> Path:
    """The example's study file: in the installed package or in the repository.

    Raises:
        StudyError: It is in neither place.
    """
    for root in (_PACKAGE_DIR, _PACKAGE_DIR.parent):
        if (root / _EXAMPLE).is_file():
            return root / _EXAMPLE
    raise StudyError(_EXAMPLE, "", "the example is not installed; install secfed again")


def policy_file(study: Path, site_policy: Path | None) -> Path:
    """The named file, or ``site.toml`` beside the study.

    Raises:
        StudyError: There is none. A site without a policy allows nothing.
    """
    beside = study.resolve().parent / "site.toml"
    if site_policy is None and not beside.is_file():
        raise StudyError(
            beside,
            "",
            "there is no policy, and a site without one allows nothing; write it or "
            "name one with --site-policy (examples/icd10_hospitals/site.toml is one)",
        )
    return site_policy or beside


def find_policy(study: Path, site_policy: Path | None) -> SitePolicy:
    """The sites' policy, from its file.

    Raises:
        StudyError: As ``policy_file``; or it cannot be read.
    """
    from secfed.policy import load_policy  # noqa: PLC0415

    return load_policy(policy_file(study, site_policy))


def show_run(folder: Path, *, as_json: bool) -> None:
    """Print the result of a finished run: JSON as written, or tables and words."""
    from secfed.report.conclusion import conclude  # noqa: PLC0415
    from secfed.report.reading import read_run  # noqa: PLC0415
    from secfed.report.tables import terminal_tables  # noqa: PLC0415
    from secfed.report.whole_site import beside_epsilon  # noqa: PLC0415
    from secfed.signing import format_fingerprint  # noqa: PLC0415

    record = read_run(folder)
    if as_json:
        print_json(record.comparison.source)
        return
    show(terminal_tables(record.comparison))
    if record.comparison.simulation_seed is not None:
        show("NOT PRIVATE: the simulation seed is public, so the noise can be removed.")
    if note := beside_epsilon(record):
        show("", note)
    show("", conclude(record.comparison), "")
    if (folder / "report.html").is_file():
        show(f"report:  {folder / 'report.html'}")
    quoted = shlex.quote(str(folder))
    if record.fingerprint is None:
        show(f"check:   secfed verify {quoted}")
    else:
        show(f"key:     {format_fingerprint(record.fingerprint)}")
        show("         tell it to those who check, by another way than the directory")
        show(f"check:   secfed verify {quoted} --trust {record.fingerprint}")


def _compare(
    ctx: click.Context,
    study_file: Path,
    methods: Sequence[str] | None,
    seeds: Sequence[int] | None,
    folder: Path,
    site_policy: Path | None,
    use: tuple[int | None, float | None],
    as_json: bool,  # noqa: FBT001
) -> None:
    from secfed.study import load_study  # noqa: PLC0415
    from secfed.study.grid import is_grid  # noqa: PLC0415

    study = load_study(study_file)
    policy = find_policy(study_file, site_policy)
    methods = methods or _compared_methods(study)
    for method in methods:
        study.with_method(method)  # Refused here, before PyTorch is loaded.
    if seeds is None:
        seeds = study.compare.seeds if study.compare else (0,)
    remember_run(ctx, folder)
    if is_grid(study):
        from secfed.cli.grid import compare_grid, limits_of  # noqa: PLC0415

        limits = limits_of(use[0] or 1, use[1])
        compare_grid(
            study,
            study_file,
            folder,
            tuple(methods),
            tuple(seeds),
            policy,
            limits,
            as_json=as_json,
        )
        return
    _refuse_limits(use)
    tell(
        f"{study.study.title}: {', '.join(methods)}, {study.training.rounds} rounds, "
        f"epsilon {study.privacy.epsilon:g}, run directory {folder}"
    )

    from secfed.runtime.compare import run_comparison  # noqa: PLC0415

    with progress_for() as progress:
        run_comparison(
            study,
            study_file.resolve().parent,
            folder,
            tuple(methods),
            tuple(seeds),
            policy,
            progress,
        )
    show_run(folder, as_json=as_json)
    _tell_alarms(policy)


def _tell_alarms(policy: SitePolicy) -> None:
    """Of budgets that outlive the run; a rehearsal's own mean nothing to the next."""
    if policy.budget_dir is not None:
        from secfed.cli.budgets import tell_alarms  # noqa: PLC0415

        tell_alarms(Path(policy.budget_dir))


def _refuse_limits(use: tuple[int | None, float | None]) -> None:
    for name, value in zip(("--jobs", "--memory"), use, strict=True):
        if value is not None:
            raise click.BadParameter(
                "belongs to a grid: a study whose [compare] names epsilons, alphas or "
                "ranks",
                param_hint=name,
            )


def _compared_methods(study: Study) -> tuple[str, ...]:
    return study.compare.methods if study.compare else (study.training.method,)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise click.BadParameter(
            f"{text!r} is not a list of different names, like ffa-lora,fedavg",
            param_hint="--methods",
        )
    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) != len(numbers):
        raise click.BadParameter(
            f"{text!r} is not a list of different whole numbers, like 0,1,2",
            param_hint="--seeds",
        )
    return numbers


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
