"""Load on the server: one stream against many, latency percentiles, and beside llama-server on the same weights.

    python benchmarks/serve_load.py [BUNDLE] [--streams 16] [--tokens 64] [--seconds 10] [--rounds 3] [--gguf FILE]
        [--long 8192] [--soak 600]

Without a bundle: a random W8A decoder of 8 layers of 512. Every answer has exactly `tokens` tokens (`ignore_eos`),
every prompt is its own. Rows: tokens per second of one stream and of all together, p50, p95 and p99 of the time to the
first token and between tokens, also while another client's long prompt is read; errors; memory at both ends.
``--soak`` asks for all streams at once for so many seconds, and nothing else; memory is that of its minutes.
With ``--gguf`` the same is asked of llama-server (of the xllamacpp wheel). All rows are measured in turns, `rounds`
times, by a client that is a process of its own; what is printed at the end are medians over the rounds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import psutil

PROMPT = "Report {n}: the river rose in the night, and by morning the lower fields were under water. "


class Client:
    """Asks one server for streams and notes when each token came."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.first, self.between, self.tokens, self.errors = list[float](), list[float](), 0, 0
        self.lock = threading.Lock()

    def ask(self, number: int, tokens: int, words: int = 1) -> None:
        """One streamed completion."""
        body = {
            "prompt": PROMPT.format(n=number) * words, "max_tokens": tokens, "stream": True, "ignore_eos": True,
            "temperature": 0.8, "seed": number,
        }  # fmt: skip
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        begun = last = time.perf_counter()
        first, between, count = None, list[float](), 0
        try:
            link.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = link.getresponse()
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                now = time.perf_counter()
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise OSError(chunk["error"])
                if not chunk.get("choices") or not chunk["choices"][0].get("text"):
                    continue
                count += 1
                if first is None:
                    first = now - begun
                else:
                    between.append(now - last)
                last = now
            if answer.status != 200 or first is None:
                raise OSError(answer.status)
        except (OSError, ValueError, http.client.HTTPException):
            with self.lock:
                self.errors += 1
            return
        finally:
            link.close()
        with self.lock:
            self.first.append(first)
            self.between += between
            self.tokens += tokens


def load(port: int, streams: int, tokens: int, seconds: float, long: int = 0) -> dict[str, Any]:
    """`streams` clients, one answer after the other, for `seconds`; `long`: another one that sends so many words."""
    client, end = Client(port), time.perf_counter() + seconds
    first = random.randrange(10**9)  # another text in every round: a cached prompt costs nothing
    begun, numbers, lock = time.perf_counter(), iter(range(first, first + 10**9)), threading.Lock()

    def work() -> None:
        while time.perf_counter() < end:
            with lock:
                number = next(numbers)
            client.ask(number, tokens)

    threads = [threading.Thread(target=work) for _ in range(streams)]
    if long:
        other = Client(port)
        threads.append(threading.Thread(target=other.ask, args=(-1, 1, long // 20)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    return {
        "streams": streams, "tokens_per_second": client.tokens / took, "errors": client.errors,
        "first_ms": percentiles(client.first), "between_ms": percentiles(client.between),
    }  # fmt: skip


def percentiles(values: list[float]) -> list[float]:
    """p50, p95, p99 in milliseconds."""
    if len(values) < 2:
        return [round(1e3 * v, 1) for v in values * 3]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return [round(1e3 * cuts[i - 1], 1) for i in (50, 95, 99)]


def bundle_or_random(path: str | None) -> Any:
    """The bundle, or a random W8A decoder."""
    if path:
        return path
    import torch

    from fastsnn_core import build, create
    from fastsnn_integer.quantization import quantise
    from fastsnn_text import ByteTokenizer, attach

    torch.manual_seed(0)
    model: Any = quantise(build(create("model", "decoder", d_model=512, n_layers=8, n_heads=8)).eval())
    attach(model, ByteTokenizer())
    return model


def llama_server(gguf: str, streams: int, long: int = 0) -> tuple[Any, int]:
    """llama-server of the xllamacpp wheel, with as many slots, each of 1,024 tokens and a long prompt."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel, params.n_ctx = streams, streams * (1024 + long)
    params.cpuparams.n_threads, params.port = psutil.cpu_count(logical=False) or 2, 0
    server = xllamacpp.Server(params)
    return server, int(server.listening_address.rsplit(":", 1)[1])


def asked(port: int, streams: int, tokens: int, seconds: float, long: int = 0) -> dict[str, Any]:
    """`load` by another process: its Python shares no lock with the server's."""
    numbers = [str(v) for v in (port, streams, tokens, seconds, long)]
    done = subprocess.run([sys.executable, __file__, "--client", *numbers], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def soak(port: int, streams: int, tokens: int, seconds: float) -> None:
    """One long load; what memory was in each minute, and after the last one."""
    asked(port, streams, 8, 1.0)
    ended, rows = threading.Event(), list[tuple[float, int]]()

    def watch() -> None:
        begun = time.perf_counter()
        while not ended.wait(2.0):
            rows.append((time.perf_counter() - begun, psutil.Process().memory_info().rss >> 20))

    watcher = threading.Thread(target=watch)
    watcher.start()
    print(json.dumps(asked(port, streams, tokens, seconds)))
    ended.set()
    watcher.join()
    for minute in range(int(rows[-1][0] // 60) + 1):
        held = [mib for at, mib in rows if at // 60 == minute]
        print(f"minute {minute + 1}: {min(held)} to {max(held)} MiB")


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of one scenario as one: medians, and the sum of errors."""
    speeds = [row["tokens_per_second"] for row in rows]
    times = {
        key: [round(statistics.median(row[key][i] for row in rows), 1) for i in range(3)]
        for key in ("first_ms", "between_ms")
    }
    same = {key: rows[0][key] for key in ("server", "streams", "long")}
    errors = sum(row["errors"] for row in rows)
    return same | {"tokens_per_second": round(statistics.median(speeds), 1), "errors": errors} | times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=0)
    parser.add_argument("--soak", type=float, default=0.0)
    parser.add_argument("--cache-mb", type=int, default=256, help="of the prefix cache")
    parser.add_argument("--max-model-len", type=int, help="0: longer than the model was made for")
    parser.add_argument("--gguf")
    parser.add_argument("--client", nargs=5, type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        port, streams, tokens, seconds, long = args.client
        print(json.dumps(load(int(port), int(streams), int(tokens), seconds, int(long))))
        return
    from fastsnn_serve import serve

    options = {"max_streams": args.streams, "max_model_len": args.max_model_len, "cache_bytes": args.cache_mb << 20}
    if args.soak:
        with serve(bundle_or_random(args.bundle), port=0, block=False, **options) as handle:
            soak(handle.port, args.streams, args.tokens, args.soak)
        return
    scenarios = [(1, 0), (args.streams, 0), *([(args.streams, args.long)] if args.long else [])]
    with serve(bundle_or_random(args.bundle), port=0, block=False, **options) as handle:
        servers = {"fastsnn": handle.port}
        keep: Any = None
        if args.gguf:
            keep, servers["llama-server"] = llama_server(args.gguf, args.streams, args.long)
        for port in servers.values():
            asked(port, args.streams, 8, 1.0)  # compiles, warms
        before = psutil.Process().memory_info().rss
        rows: dict[Any, list[dict[str, Any]]] = {}
        for number in range(args.rounds):
            for streams, long in scenarios:
                for name, port in servers.items():
                    row = {"server": name, "long": long} | asked(port, streams, args.tokens, args.seconds, long)
                    rows.setdefault((name, streams, long), []).append(row)
                    print(f"round {number + 1}: {json.dumps(row)}", flush=True)
        grown = psutil.Process().memory_info().rss - before
        del keep
    print(f"memory after warm-up {before >> 20} MiB, at the end {(before + grown) >> 20} MiB")
    for found in rows.values():
        print(json.dumps(median(found)))
    for name in servers:
        pairs = zip(rows[name, args.streams, 0], rows[name, 1, 0], strict=True)
        ratio = statistics.median(many["tokens_per_second"] / one["tokens_per_second"] for many, one in pairs)
        print(f"{name}: {args.streams} streams give {ratio:.2f} x the tokens per second of one")


if __name__ == "__main__":
    main()
