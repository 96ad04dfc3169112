"""`lake`: thin over the same functions that the assets and the page use.

Tables where people look, `--json` where programs do; exit codes tell the truth: 0 done, 1 failed, 2 wrongly called.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from lake_assets.errors import LakeError
from lake_assets.settings import Settings, current_settings

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="A text lake in front of OpenSearch.")  # fmt: skip
node = typer.Typer(no_args_is_help=True, help="The local OpenSearch node.")
app.add_typer(node, name="opensearch")
quarantine = typer.Typer(no_args_is_help=True, help="What was refused: list it, look at it, run it again.")
app.add_typer(quarantine, name="quarantine")
index = typer.Typer(no_args_is_help=True, help="The index: compared with the lake, repaired, made anew.")
app.add_typer(index, name="index")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DEMO_SEARCH = ("bike | helmet | light", ["sentiment_score > 0.5"])
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OfReason = Annotated[str | None, typer.Option("--reason", help="Only this class of reasons, e.g. broken_json.")]
OfStage = Annotated[str | None, typer.Option("--stage", help="Only what this asset refused, e.g. raw/records.")]
OfPath = Annotated[str | None, typer.Option("--path", help="Only objects whose path begins so, or fits a pattern.")]


def main() -> None:
    """Runs the command line; a failure of ours is one sentence on standard error and exit code 1."""
    from pydantic import ValidationError

    warnings.filterwarnings("ignore", message=r".* is currently in (beta|preview)")  # Dagster's, for its developers
    try:
        app()
    except LakeError as error:
        err.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        sys.exit(1)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"])).upper()
            err.print(f"[red]The setting {name} cannot be used: {escape(problem['msg'])}.[/red]", soft_wrap=True)
        sys.exit(1)


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Runs real text down the whole road: lands it, indexes it, measures it, searches it."""
    from lake_assets.demo.texts import write_demo
    from lake_assets.ingest import ingest as run_ingest

    settings = current_settings()
    with _opensearch(settings), tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder))
        with _progress() as progress:
            done = run_ingest(settings, [Path(folder) / "demo"], progress)
        _refuse_failed(done.failures)
        found = _search(settings, *DEMO_SEARCH, 5)
        state = _status(settings)
    if as_json:
        _print_json({"status": state, "search": found})
        return
    _print_status(state)
    query, where = DEMO_SEARCH
    out.print(f"\n[bold]lake search {query!r} --where {where[0]!r}[/bold]")
    _print_hits(found)
    out.print(
        "\nWhere to look next:\n"
        "  make ui                          Dagster's page; drop a text file into the raw zone and watch\n"
        "  .venv/bin/lake opensearch start  keeps the node running for quick searches\n"
        "  .venv/bin/lake search 'coffee'   searches; --where 'language_code = de' narrows by any metric\n"
        f"  {settings.raw_root}",
        soft_wrap=True,
    )


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files, and folders with all below them.")],
    as_json: AsJson = False,
) -> None:
    """Copies files under the raw root and runs the whole road; what is there already is not done again."""
    from lake_assets.ingest import ingest as run_ingest

    settings = current_settings()
    with _opensearch(settings), _progress() as progress:
        done = run_ingest(settings, paths, progress)
    if as_json:
        _print_json({"objects": done.objects, "batches": done.batches, "failures": done.failures})
    elif not done.failures:
        what = f"batch {', '.join(map(str, done.batches))} done" if done.batches else "nothing new"
        out.print(f"{done.objects} object{'s' * (done.objects != 1)}: {what}.")
    _refuse_failed(done.failures)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help='Words; | for or, "a phrase", -without, begin*.')],
    where: Annotated[list[str] | None, typer.Option(help="For instance 'sentiment_score < -0.5'.")] = None,
    size: Annotated[int, typer.Option(min=1, max=1000, help="Most hits.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Searches titles and texts, and narrows by metrics."""
    settings = current_settings()
    with _opensearch(settings):
        found = _search(settings, query, where or [], size)
    _print_json(found) if as_json else _print_hits(found)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Counts the rows of each table, what was refused, and the documents of the index."""
    state = _status(current_settings())
    _print_json(state) if as_json else _print_status(state)


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port of 127.0.0.1.")] = 3000) -> None:
    """Serves Dagster's page, its daemon and the local node, until Ctrl-C."""
    from lake_assets.ui import run_ui

    sys.exit(run_ui(current_settings(), port))


@node.command("start")
def node_start(port: Annotated[int, typer.Option(help="Port of 127.0.0.1; 0 takes a free one.")] = 0) -> None:
    """Starts the local node, fetching it first where it is missing; it runs until `lake opensearch stop`."""
    from lake_assets.index.node import start

    with _progress() as progress:
        state = start(current_settings(), port=port, progress=progress)
    out.print(f"OpenSearch runs at {state.url} (process {state.pid}).")


@node.command("stop")
def node_stop() -> None:
    """Stops the local node."""
    from lake_assets.index.node import stop

    out.print("Stopped." if stop(current_settings()) else "No local node was running.")


@node.command("status")
def node_status(as_json: AsJson = False) -> None:
    """Tells whether the local node runs; exit code 3 when it does not."""
    from lake_assets.index.node import running

    state = running(current_settings())
    if as_json:
        _print_json({"running": state is not None, "url": state.url if state else None})
    else:
        out.print(f"OpenSearch runs at {state.url} (process {state.pid})." if state else "No local node is running.")
    sys.exit(0 if state else 3)


@quarantine.command("list")
def quarantine_list(
    reason: OfReason = None, stage: OfStage = None, path: OfPath = None, as_json: AsJson = False
) -> None:
    """Counts what is refused by stage, reason, owner and state, and lists the newest."""
    from lake_assets.quarantine import Wanted, list_refused

    found = list_refused(current_settings(), Wanted(reason, stage, path))
    _print_inert_json(found) if as_json else _print_refused(found)


@quarantine.command("show")
def quarantine_show(
    path: Annotated[str, typer.Argument(help="The object's path under the raw root, also as `list` prints it.")],
    record: Annotated[int | None, typer.Option(min=0, help="Its number in the object, from 0.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Also the beginning of the record's text, escaped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shows every refusal of an object, or of one record of it, and where its bytes are."""
    from lake_assets.quarantine import show

    found = show(current_settings(), path, record, text)
    if as_json:
        _print_inert_json(found)
        return
    for row in found:
        _print_refusal(row)


@quarantine.command("replay")
def quarantine_replay(
    reason: OfReason = None,
    stage: OfStage = None,
    path: OfPath = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be tried, and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Runs what was refused again, to the end of the road; exit code 1 when something asked for is still refused.

    Its batches run whole: what else their later stages refused is tried again too.
    """
    from lake_assets.quarantine import Wanted, plan, reasons, replay

    settings, wanted = current_settings(), Wanted(reason, stage, path)
    if dry_run:
        planned = plan(settings, wanted)
        found = {"batches": planned.batches, "records": planned.asked.height, "by_reason": reasons(planned.asked)}
        found["lost"] = planned.lost.height
        _print_inert_json(found) if as_json else _print_planned(found)
        return
    with _opensearch(settings), _progress() as progress:
        done = replay(settings, wanted, progress)
    _print_inert_json(vars(done)) if as_json else _print_replayed(vars(done))
    _refuse_failed(done.failures)
    sys.exit(1 if done.refused else 0)


@index.command("compare")
def index_compare(as_json: AsJson = False) -> None:
    """Names every document that differs in the index and the lake; ends with 1 where any does."""
    from lake_assets.index.repair import compare_with_baseline

    compared = _on_index(lambda client, alias, lake: compare_with_baseline(client, alias, lake))
    _print_compared(compared, as_json)
    if not compared.is_equal:
        raise typer.Exit(1)


@index.command("repair")
def index_repair(as_json: AsJson = False) -> None:
    """Sends what differs and nothing else, and deletes what the lake does not know."""
    from lake_assets.index.repair import repair

    _print_repaired(_on_index(repair), as_json)


@index.command("rebuild")
def index_rebuild(as_json: AsJson = False) -> None:
    """Writes everything into a new index, proves it equal to the lake, and moves the alias in one step."""
    from lake_assets.index.repair import rebuild

    _print_repaired(_on_index(rebuild), as_json)


@index.command("rollback")
def index_rollback(as_json: AsJson = False) -> None:
    """Moves the alias back to the index before the last rebuild, and repairs what that has missed."""
    from lake_assets.index.repair import rollback

    _print_repaired(_on_index(rollback), as_json)


def _on_index(work: Callable[[Any, str, Any], Any]) -> Any:
    from lake_assets.index.client import connect
    from lake_assets.index.node import opensearch_url
    from lake_assets.lake.tables import Lake

    settings = current_settings()
    with _opensearch(settings):
        return work(connect(settings, opensearch_url(settings)), settings.opensearch_alias, Lake(settings))


def _print_repaired(done: Any, as_json: bool) -> None:
    if not as_json:
        out.print(f"{done.sent} documents sent, {done.deleted} deleted.")
    _print_compared(done.left, as_json, {"sent": done.sent, "deleted": done.deleted})
    if not done.left.is_equal:
        raise typer.Exit(1)


def _print_compared(compared: Any, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    counts = dict(compared.differences["kind"].value_counts().sort("kind").rows())
    if as_json:
        rows = compared.differences.select("kind", "id", "batch", "path", "key").to_dicts()
        held = {"index": compared.index, "index_documents": compared.index_documents}
        told = {**held, "lake_documents": compared.lake_documents, "read": compared.read, "counts": counts}
        _print_inert_json({**(more or {}), **told, "differences": rows})
        return
    table = Table("kind", Column("documents", justify="right"), "for instance")
    for kind, count in counts.items():
        first = compared.differences.filter(compared.differences["kind"] == kind).head(3)
        table.add_row(kind, f"{count:,}", _inert(", ".join(first["id"])))
    if counts:
        out.print(table)
    out.print(
        f"{compared.index} holds {compared.index_documents:,} documents, the lake {compared.lake_documents:,}: "
        f"{'equal' if compared.is_equal else 'lake index repair sends what differs'}."
    )


@contextmanager
def _opensearch(settings: Settings) -> Iterator[None]:
    """Makes sure that OpenSearch can be reached; a node that was started for this command ends with it."""
    if settings.opensearch_url:
        yield
        return
    from lake_assets.index.node import local_node

    with _progress() as progress, local_node(settings, progress):
        progress("")
        yield


@contextmanager
def _progress() -> Iterator[Any]:
    """Shows what is being done, where people look; elsewhere nothing."""
    if not err.is_terminal:
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, share=None: bar.update(
            task, description=escape(text), completed=share or 0, total=None if share is None else 1
        )


def _search(settings: Settings, query: str, where: Sequence[str], size: int) -> dict[str, Any]:
    from lake_assets.index.client import connect
    from lake_assets.index.node import opensearch_url
    from lake_assets.index.search import search as run_search

    client = connect(settings, opensearch_url(settings))
    return dict(run_search(client, settings.opensearch_alias, query, where, size))


def _status(settings: Settings) -> dict[str, Any]:
    from lake_assets.status import status_of

    return status_of(settings)


def _refuse_failed(failures: Sequence[str]) -> None:
    if failures:
        raise LakeError("\n".join(failures))


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _print_status(state: Mapping[str, Any]) -> None:
    table = Table("table", "rows", "batches", title=None)
    for key, found in state["tables"].items():
        table.add_row(key, f"{found['rows']:,}", f"{found['batches']:,}")
    index = state["index"]
    table.add_row("[bold]index[/bold]", f"{index['documents']:,}" if index else "does not answer", "")
    out.print(table)
    for reason, count in state["refused"].items():
        out.print(f"  refused: {count:,} {escape(reason)}")


def _print_hits(found: Mapping[str, Any]) -> None:
    table = Table("score", Column("title or text", no_wrap=True, ratio=1), "language", "sentiment", "from", expand=True)
    for hit in found["hits"]:
        source = hit["source"]
        shown = " ".join(f"{source.get('title') or ''} {source.get('text') or ''}".split())
        sentiment = source.get("sentiment_score")
        table.add_row(
            f"{hit['score'] or 0:.1f}", escape(shown[:200]), source.get("language_code") or "–",
            "–" if sentiment is None else f"{sentiment:+.2f}", escape(source.get("path") or ""),
        )  # fmt: skip
    out.print(table)
    out.print(f"{found['total']:,} found in {found['took_ms']} ms")


def _print_inert_json(value: Any) -> None:
    """Prints JSON in ASCII: names and texts of others can do nothing in the terminal."""
    print(json.dumps(value, indent=2, default=str))


def _inert(value: Any) -> Text:
    """Makes what others have named inert, and no markup of ours."""
    from lake_assets.quarantine import inert

    return Text("–" if value is None else inert(str(value)), overflow="fold")


def _print_refused(found: Mapping[str, Any]) -> None:
    if not found["refused"]:
        out.print("Nothing that was asked for is in the quarantine.")
        return
    counts = Table("stage", "reason", "owner", "state", "records")
    for row in found["counts"]:
        counts.add_row(*(_inert(row[name]) for name in ("stage", "reason", "owner", "state")), f"{row['records']:,}")
    out.print(counts)
    newest = Table("refused", "reason", "batch", "record", Column("object", ratio=1), expand=True)
    for row in found["newest"]:
        newest.add_row(
            _moment(row["refused_at"]), *(_inert(row[name]) for name in ("reason", "batch", "record", "path"))
        )
    out.print(newest)
    if found["rest"]:
        out.print(f"and {found['rest']:,} more; --reason, --stage and --path narrow, `lake quarantine show` tells all.")


def _print_refusal(row: Mapping[str, Any]) -> None:
    which = "whole object" if row["record"] is None else f"record {row['record']}"
    size = row["size_bytes"] if row["length_bytes"] is None else row["length_bytes"]
    place = "" if row["offset_bytes"] is None else f", at byte {row['offset_bytes']:,} of the decompressed object"
    lines = [
        f"{row['path']}, {which}",
        f"{row['reason']} at {row['stage']}, {_moment(row['refused_at'])}, {row['owner']}, {row['state']}",
        f"{row['detail']}",
        f"batch {row['batch']}, etag {row['etag']}",
        f"{'?' if size is None else f'{size:,}'} bytes in {row['bytes_are_in']}{place}",
    ]
    if row.get("text") is not None:
        lines.append(f"text: {row['text']}")
    for number, line in enumerate(lines):
        out.print("  " * bool(number), _inert(line), sep="", soft_wrap=True)


def _print_planned(found: Mapping[str, Any]) -> None:
    named = ", ".join(map(str, found["batches"])) or "none"
    out.print(f"{found['records']:,} refusals would be tried again, in batches: {named}.")
    _print_reasons("would be tried", found)


def _print_replayed(done: Mapping[str, Any]) -> None:
    out.print(f"{done['left']:,} of {done['asked']:,} refusals have left the quarantine.")
    _print_reasons("refused", {**done, "by_reason": done["refused"]})


def _print_reasons(what: str, found: Mapping[str, Any]) -> None:
    for reason, count in found["by_reason"].items():
        out.print(Text(f"  {what}: {count:,} "), _inert(reason), sep="")
    if found["lost"]:
        out.print(f"  cannot be tried: {found['lost']:,}; the raw zone no longer holds that version of their object")


def _moment(value: Any) -> str:
    return "–" if value is None else f"{value:%Y-%m-%d %H:%M:%S}Z"


if __name__ == "__main__":
    main()
