"""The commands for releases and the model store. They do not change a target."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployer.cli import deps, printers
from deployer.cli.completion import release_ids
from deployer.cli.next_steps import command, tell_next
from deployer.cli.options import (
    Canary,
    LongConfigFile,
    Output,
    OutputFormat,
    ReleaseId,
    Sets,
    StrategyName,
    Strict,
    Unpack,
    WhereProject,
    WhereStored,
    Yes,
    spelled_out,
)
from deployer.cli.terminal import show, tell, warn
from deployer.errors import IntegrityError, StoreError

if TYPE_CHECKING:
    from deployer.archive import Archive


@spelled_out
def push(strict: Strict = False, output: OutputFormat = "name", **where: Unpack[WhereProject]) -> None:
    """Build the model archive and upload it to the model store. Prints the release ID."""
    release = deps.workspace(strict=strict, **where).push()
    printers.print_rows(output, ["release"], [[release.id]], release, [release.id])
    if output in ("table", "name"):
        tell_next(f"run {command('rollout', **where)} to roll out the release")


def archive(
    model_name: Annotated[
        str | None,
        typer.Option("--model-name", help="Name of the model. With this flag, kdeploy.toml is not read."),
    ] = None,
    version: Annotated[str | None, typer.Option("--version", "-v", help="Version of the model.")] = None,
    handler: Annotated[
        str | None,
        typer.Option("--handler", help="A file, file.py:function, or the name of a TorchServe handler."),
    ] = None,
    serialized_file: Annotated[
        str | None, typer.Option("--serialized-file", help="File with the weights.")
    ] = None,
    model_file: Annotated[
        str | None,
        typer.Option("--model-file", help="Python file with the class of the network, for a state dict."),
    ] = None,
    extra_files: Annotated[
        str | None,
        typer.Option(
            "--extra-files", help="More files, globs or folders (their contents), separated by commas."
        ),
    ] = None,
    requirements_file: Annotated[
        str | None,
        typer.Option("--requirements-file", "-r", help="File with the requirements of the handler."),
    ] = None,
    config_file: Annotated[
        str | None, typer.Option("--config-file", "-c", help="The model-config.yaml of TorchServe.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option("--runtime", metavar="<python|python3>", help="Value of `runtime` in the manifest."),
    ] = None,
    archive_format: Annotated[
        str | None,
        typer.Option(
            "--archive-format",
            metavar="<zip-store|default|tgz|no-archive>",
            help="Format of the archive: default is a compressed ZIP file, no-archive a folder.",
        ),
    ] = None,
    export_path: Annotated[Path, typer.Option("--export-path", help="Folder for the archive.")] = Path(),
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite an existing archive.")] = False,
    list_only: Annotated[
        bool,
        typer.Option("--list", help="List the files of the archive with their sizes, and write nothing."),
    ] = False,
    output: Annotated[
        Output,
        typer.Option("--output", "-o", help="Output format. json and yaml list the files of the archive."),
    ] = "table",
    strict: Strict = False,
    config: LongConfigFile = None,
    sets: Sets = None,
) -> None:
    """Write the model archive to a folder. Accepts the flags of torch-model-archiver, or a kdeploy.toml."""
    import json

    flags = {
        "name": model_name,
        "version": version,
        "handler": handler,
        "serialized-file": serialized_file,
        "model-file": model_file,
        # torch-model-archiver takes the contents of a folder with or without a / at the end.
        "extra-files": json.dumps([one.rstrip("/") or one for one in extra_files.split(",")])
        if extra_files
        else None,
        "requirements-file": requirements_file,
        "config-file": config_file,
        "runtime": runtime,
        "archive-format": archive_format,
    }
    given = [f"model.{key}={value}" for key, value in flags.items() if value is not None]
    sets = [*(sets or []), *given]
    work = deps.workspace(strict=strict, config=config, sets=sets, search=model_name is None)
    path = None if list_only else str(work.project.export(export_path, force=force))
    if path and output == "table":
        show(path)
        return
    _print_contents(work.project.contents(), work.settings.root, path, output)


def _print_contents(planned: "Archive", root: Path, path: str | None, output: Output) -> None:
    """Print the files of an archive. `path` is that of the archive, or None if it is not written."""
    files, rows = [], []
    for member in planned.members:
        source = None if isinstance(member.source, bytes) else member.source
        inside = source and source.is_relative_to(root)
        shown = source.relative_to(root) if source and inside else source or "made by kdeploy"
        rows.append((member.name, printers.size_text(member.size), shown))
        from_file = str(source) if source else None
        files.append(
            {"name": member.name, "bytes": member.size, "sha256": member.sha256, "source": from_file}
        )
    names = [path] if path else [member.name for member in planned.members]
    printers.print_rows(output, ["name", "size", "source"], rows, {"path": path, "files": files}, names)
    if output == "table":
        tell(f"{len(planned.members)} files, {printers.size_text(planned.size)}")


@spelled_out
def plan(
    canary: Canary = 100,
    strategy: StrategyName = None,
    strict: Strict = False,
    output: OutputFormat = "table",
    **where: Unpack[WhereProject],
) -> None:
    """Show what a rollout would do."""
    from deployer.rollout.plan import Strategy

    rollouts = deps.workspace(strict=strict, **where).rollouts
    chosen = Strategy(strategy) if strategy else None
    decision = rollouts.decide(percent=canary, strategy=chosen, check=True)
    rollouts.report(decision)
    release, archive = decision.release, decision.release.archive
    stored, live = rollouts.is_stored(release), decision.live
    upload = "nothing: the release is in the model store" if stored else printers.size_text(archive.size)
    if stored is None:
        upload += ", unless the release is in the model store"
    answers, wanted = (live.status.serving, live.status.wanted) if live else (None, None)
    documents = decision.bundle.documents
    rows = [
        ("release", release.id),
        ("archive", f"{archive.file_name}, {len(archive.members)} files, {archive.digest}"),
        ("upload", upload),
        ("serving now", answers or "no release"),
        ("wanted now", wanted or "no release"),
        ("traffic", f"{decision.traffic.percent}% {release.id}"),
        ("documents", ", ".join(f"{d['kind']} {d['metadata']['name']}" for d in documents)),
    ]
    data = {
        "release": release,
        "stored": stored,
        "serving": answers,
        "wanted": wanted,
        "traffic": decision.traffic,
        "strategy": decision.strategy,
        "unchanged": decision.unchanged,
        "findings": decision.findings,
        "documents": documents,
    }
    printers.print_rows(output, ["field", "value"], rows, data, [release.id])


@spelled_out
def render(
    release: ReleaseId = None,
    canary: Canary = 100,
    rbac: Annotated[
        bool,
        typer.Option("--rbac", help="Print the ServiceAccount, Role and RoleBinding for a CI job instead."),
    ] = False,
    monitoring: Annotated[
        bool, typer.Option("--monitoring", help="Print a PodMonitor and a Grafana dashboard instead.")
    ] = False,
    output: OutputFormat = "yaml",
    **where: Unpack[WhereProject],
) -> None:
    """Print the Kubernetes documents of a rollout, for GitOps."""
    work = deps.workspace(**where)
    if monitoring:
        from deployer.monitoring import render_monitoring

        documents = render_monitoring(work.reference(), work.settings.config.model.name)
        printers.print_documents(documents, output)
        return
    rollouts = work.rollouts
    if rbac:
        printers.print_documents(rollouts.role(release), output)
        return
    decision = rollouts.decide(release, percent=canary, look=False)
    bundle = decision.bundle
    rollouts.report(decision)
    if bundle.secret:
        name = bundle.secret.document["metadata"]["name"]
        warn(
            f"Secret {name} is left out because it contains credentials; `kdeploy rollout` applies it",
            label="",
        )
    printers.print_documents(bundle.documents, output)


@spelled_out
def releases(output: OutputFormat = "table", **where: Unpack[WhereStored]) -> None:
    """List the releases of this model in the model store. The oldest is first."""
    import msgspec

    from deployer.prune import read_use

    work = deps.workspace(**where)
    found = work.store.dated(work.settings.config.model.name)
    use = read_use(deps.open_targets(**where))
    for name, error in use.unreachable.items():
        warn(f"cannot find out which releases target {name} needs: {error}")
    rows = [
        (
            release.id,
            printers.time_text(pushed),
            printers.size_text(release.archive.size),
            "yes" if release.id in use.releases else "",
        )
        for pushed, release in found
    ]
    data = [
        {
            **msgspec.to_builtins(release),
            "pushed": printers.iso_time(pushed),
            "in_use": release.id in use.releases,
        }
        for pushed, release in found
    ]
    columns = ["release", "pushed", "size", "in use"]
    printers.print_rows(output, columns, rows, data, [release.id for _, release in found])


@spelled_out
def verify(
    release: Annotated[
        str | None,
        typer.Argument(
            help="Release ID, or its start. Default: all releases of this model.", autocompletion=release_ids
        ),
    ] = None,
    **where: Unpack[WhereStored],
) -> None:
    """Verify that releases in the model store are unchanged. Reads every byte."""
    work = deps.workspace(**where)
    config, store = work.settings.config, work.store
    name, damaged = config.model.name, []
    stored = [work.project.find(release, store)] if release else store.releases(name)
    if not stored:
        tell(f"no releases of {name} in {config.store.uri}")
    for found in stored:
        try:
            store.verify(found)
            tell(f"verified {found.id}")
        except (IntegrityError, StoreError) as error:  # noqa: PERF203 - the others are still verified
            if not release and not store.find(name, found.id):
                continue  # another process deleted it
            if isinstance(error, StoreError):
                raise
            damaged.append(error)
    for more in damaged[1:]:
        tell(f"damaged: {more}")
    if damaged:
        raise damaged[0]


@spelled_out
def copy(
    release: Annotated[str, typer.Argument(help="Release ID.")],
    to: Annotated[str, typer.Option("--to", metavar="STORE", help="URI of the other model store.")],
    **where: Unpack[WhereStored],
) -> None:
    """Copy a release to another model store. Compares every byte, and overwrites nothing."""
    from deployer.store.copy import copy_release

    work = deps.workspace(**where)
    found = work.project.find(release, work.store)
    where["store"] = to
    stored = copy_release(found, work.store, deps.workspace(**where).store)
    if stored.bytes_written:
        tell(f"copied release {found.id}: {printers.size_text(stored.bytes_written)} to {stored.uri}")
    else:
        tell(f"unchanged: release {found.id} is in {stored.uri}")
    show(found.id)


@spelled_out
def prune(
    keep: Annotated[
        int, typer.Option("--keep", min=1, metavar="N", help="Number of newest releases to keep.")
    ],
    min_age: Annotated[
        str, typer.Option("--min-age", help="Keep releases that are younger, such as 90s, 5m, 1h or 7d.")
    ] = "1h",
    ignore_target: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-target", metavar="NAME", help="Delete releases even if this target uses them."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the releases that would be deleted.")
    ] = False,
    yes: Yes = False,
    **where: Unpack[WhereStored],
) -> None:
    """Delete old releases from the model store. Keeps those that a target serves or has in its history."""
    from deployer import prune as pruning

    age = deps.duration(min_age, "--min-age", longest=deps.DECADE)
    work = deps.workspace(**where)
    name, store = work.settings.config.model.name, work.store
    targets = deps.open_targets(ignore_target or [], **where)

    def find() -> list[pruning.Dated]:
        use = pruning.read_use(targets)
        return pruning.find_old(store.dated(name), use, keep=keep, min_age=age, now=time.time())

    old = find()
    if not old:
        tell(
            f"nothing to delete: every release is in use, one of the newest {keep}, or younger than {min_age}"
        )
        return
    rows = [
        (release.id, printers.size_text(release.archive.size), printers.time_text(pushed))
        for pushed, release in old
    ]
    printers.print_table(["to delete", "size", "pushed"], rows, tell)
    if dry_run:
        show("\n".join(release.id for _, release in old))
        return
    if not yes:
        deps.confirm(f"delete {len(old)} release(s)")
    still = {release.id for _, release in find()}  # a release can be in use by now
    for release in pruning.remove(store, [release for _, release in old if release.id in still]):
        show(release.id)
