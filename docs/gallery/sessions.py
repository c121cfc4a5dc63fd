"""Serving with sessions.

The state of a conversation is saved under a name and restored later, so a long text is read once and not again.
"""

import json
import time
import urllib.request

from figure import BLUE, ORANGE, new, save, trained

from fastsnn import FastSNN

path = FastSNN.export(trained(), "talks.snn")
lengths, fresh, restored = (200, 400, 800, 1600), [], []


def post(handle, route, **body):
    """One request; its answer, and the seconds it took."""
    request = urllib.request.Request(handle.url + route, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    begin = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        return json.load(answer), time.perf_counter() - begin


def ask(handle, text):
    """Eight tokens after a text."""
    found, seconds = post(handle, "/v1/completions", model="talks", prompt=text, max_tokens=8, temperature=0)
    return found["choices"][0]["text"], seconds


for length in lengths:
    story = ("A neuron was silent, and nobody read its row. " * 40)[:length]
    answers = []
    for times, known in ((fresh, False), (restored, True)):
        handle = FastSNN.serve(path, port=0, block=False, sessions="sessions")  # a new server: its cache is empty
        try:
            ask(handle, "Warm up. ")
            if known:
                post(handle, "/sessions/restore", name=f"talk{length}")
            text, seconds = ask(handle, story)
            times.append(1e3 * seconds)
            answers.append(text)
            post(handle, "/sessions/save", name=f"talk{length}", prompt=story)
        finally:
            handle.close()
    assert answers[0] == answers[1]
figure = new()
axes = figure.add_subplot(xlabel="bytes of the text so far", ylabel="ms until eight more have come")
axes.plot(lengths, fresh, "o-", color=ORANGE, label="a new server reads the text")
axes.plot(lengths, restored, "o-", color=BLUE, label="a new server restores the session")
axes.set_ylim(bottom=0)
axes.legend(frameon=False)
save(figure, __file__)
