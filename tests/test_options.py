"""The typed dicts of `FastSNN`'s keyword arguments name what the functions behind them take, all of it and no more."""

from __future__ import annotations

import inspect
import typing

import attrs
import pytest

from fastsnn import options


def parameters(function, *without):
    found = inspect.signature(function).parameters.values()
    return {p.name for p in found if p.kind != p.VAR_KEYWORD} - set(without)


def fields(kind, *without):
    return {f.name for f in attrs.fields(kind)} - set(without)


def taken(name):
    if name == "ConvertOptions":
        from fastsnn_convert import convert
        from fastsnn_convert.language.convert import Options
        from fastsnn_convert.modules import convert_module, from_weights

        assert "spec" in inspect.signature(from_weights).parameters
        modules = parameters(convert_module, "model", "must_save")
        return parameters(convert, "source") | fields(Options) | modules | {"spec", "dt"}
    if name == "ScopeOptions":
        from fastsnn_scope import scope

        return parameters(scope, "model")
    if name == "ServeOptions":
        from fastsnn_serve import serve
        from fastsnn_serve.http.server import Engine, make_app

        return (
            parameters(serve, "bundle", "port") | parameters(make_app, "model_or_bundle") | parameters(Engine, "model")
        )
    if name == "GenerateOptions":
        from fastsnn_text import Sampling

        return fields(Sampling) | {"stop"}
    if name == "ExtendOptions":
        from fastsnn_train import extend_context

        return parameters(extend_context, "model", "trainer", "new_seq_len", "max_steps")
    from fastsnn_train import TrainConfig

    return fields(TrainConfig, "max_steps")


DICTS = [name for name, kind in vars(options).items() if typing.is_typeddict(kind)]


@pytest.mark.parametrize("name", DICTS)
def test_every_option_has_a_name_for_editors(name):
    assert set(getattr(options, name).__annotations__) == taken(name)


def test_every_method_with_options_says_which():
    from fastsnn.api import FastSNN

    said = {
        name: method.__annotations__[p.name]
        for name, method in vars(FastSNN).items()
        if isinstance(method, staticmethod)
        for p in inspect.signature(method.__wrapped__).parameters.values()
        if p.kind == p.VAR_KEYWORD
    }
    free = {"build": "a preset's changes", "export": "an exporter's own parameters"}
    assert {name for name, hint in said.items() if hint == "Any"} == set(free)
    assert {hint for hint in said.values() if hint != "Any"} == {f"Unpack[{name}]" for name in DICTS}
