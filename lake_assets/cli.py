"""`lake`: thin over the same functions that the assets and the page use.

Tables where people look, `--json` where programs do; exit codes tell the truth: 0 done, 1 failed, 2 wrongly called.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from lake_assets.errors import LakeError
from lake_assets.settings import Settings

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="A text lake in front of OpenSearch.")  # fmt: skip
node = typer.Typer(no_args_is_help=True, help="The local OpenSearch node.")
app.add_typer(node, name="opensearch")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DEMO_SEARCH = ("bike | helmet | light", ["sentiment_score > 0.5"])
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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

    settings = Settings()
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

    settings = Settings()
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
    settings = Settings()
    with _opensearch(settings):
        found = _search(settings, query, where or [], size)
    _print_json(found) if as_json else _print_hits(found)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Counts the rows of each table, what was refused, and the documents of the index."""
    state = _status(Settings())
    _print_json(state) if as_json else _print_status(state)


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port of 127.0.0.1.")] = 3000) -> None:
    """Serves Dagster's page, its daemon and the local node, until Ctrl-C."""
    from lake_assets.ui import run_ui

    sys.exit(run_ui(Settings(), port))


@node.command("start")
def node_start(port: Annotated[int, typer.Option(help="Port of 127.0.0.1; 0 takes a free one.")] = 0) -> None:
    """Starts the local node, fetching it first where it is missing; it runs until `lake opensearch stop`."""
    from lake_assets.index.node import start

    with _progress() as progress:
        state = start(Settings(), port=port, progress=progress)
    out.print(f"OpenSearch runs at {state.url} (process {state.pid}).")


@node.command("stop")
def node_stop() -> None:
    """Stops the local node."""
    from lake_assets.index.node import stop

    out.print("Stopped." if stop(Settings()) else "No local node was running.")


@node.command("status")
def node_status(as_json: AsJson = False) -> None:
    """Tells whether the local node runs; exit code 3 when it does not."""
    from lake_assets.index.node import running

    state = running(Settings())
    if as_json:
        _print_json({"running": state is not None, "url": state.url if state else None})
    else:
        out.print(f"OpenSearch runs at {state.url} (process {state.pid})." if state else "No local node is running.")
    sys.exit(0 if state else 3)


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


if __name__ == "__main__":
    main()
