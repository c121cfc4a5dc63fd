"""Serving.

The OpenAI API over a model of one's own: each of some clients at once gets the text it would get alone.
"""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from figure import BLUE, new, save, trained

from fastsnn import FastSNN

FastSNN.export(trained(), "served.snn")
handle = FastSNN.serve("served.snn", port=0, block=False)


def ask(number):
    """One completion, and the seconds it took."""
    body = {"model": "served", "prompt": "The ", "max_tokens": 12, "temperature": 0}
    request = urllib.request.Request(handle.url + "/v1/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    begin = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["text"], time.perf_counter() - begin


try:
    alone, _ = ask(0)
    seconds = {}
    for clients in (1, 2, 4, 8):
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients)))  # the first of each number makes room for so many
            begin = time.perf_counter()
            answers = list(pool.map(ask, range(clients)))
            seconds[clients] = 12 * clients / (time.perf_counter() - begin)
        assert all(text == alone for text, _ in answers)
finally:
    handle.close()
figure = new()
axes = figure.add_subplot(xlabel="clients at once", ylabel="tokens per second, all together")
axes.plot(list(seconds), list(seconds.values()), "o-", color=BLUE)
save(figure, __file__)
