"""Two things that mkdocstrings must be told of code that uses Equinox and jaxtyping.

An `eqx.Module` is a dataclass, so that its signature has its fields; and the string in
`Float[Array, "batch noise"]` names axes and is no annotation to be evaluated.
"""

import ast
from typing import Any

import griffe


class EquinoxExtension(griffe.Extension):
    """An extension of griffe, which reads the code on behalf of mkdocstrings."""

    def on_function_instance(self, *, node: Any, func: griffe.Function, **kwargs: Any) -> None:
        arguments = node.args
        every = [
            *arguments.posonlyargs,
            *arguments.args,
            arguments.vararg,
            *arguments.kwonlyargs,
            arguments.kwarg,
        ]
        for argument in every:
            if argument is not None:
                parameter = func.parameters[argument.arg]
                parameter.annotation = _annotation(
                    argument.annotation, func.parent, parameter.annotation
                )
        func.returns = _annotation(node.returns, func.parent, func.returns)

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        if isinstance(node, ast.AnnAssign):
            attr.annotation = _annotation(node.annotation, attr.parent, attr.annotation)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        _mark_modules(pkg)


def _annotation(node: Any, parent: Any, otherwise: Any) -> Any:
    """The annotation of `node` with its strings as they are, if it is more than one string."""
    if node is None or isinstance(node, ast.Constant):
        return otherwise
    return griffe.get_expression(node, parent, parse_strings=False)


class _DataclassDecorator(griffe.Expr):
    canonical_path = "dataclasses.dataclass"

    def iterate(self, *, flat: bool = True):
        yield "dataclass"


def _mark_modules(obj: griffe.Module | griffe.Class) -> None:
    """Makes every concrete `eqx.Module` a dataclass, which griffe has support for."""
    for member in obj.members.values():
        if member.is_alias:
            continue
        if isinstance(member, griffe.Module):
            _mark_modules(member)
        elif isinstance(member, griffe.Class) and _is_equinox(member):
            attributes = [a for a in member.members.values() if isinstance(a, griffe.Attribute)]
            if any("AbstractVar" in str(attribute.annotation) for attribute in attributes):
                continue
            for attribute in attributes:
                _unwrap_default(attribute)
            decorator = griffe.Decorator(_DataclassDecorator(), lineno=None, endlineno=None)
            member.decorators.append(decorator)


def _is_equinox(cls: griffe.Class) -> bool:
    names = [base.canonical_path if isinstance(base, griffe.Expr) else base for base in cls.bases]
    if any(name.startswith("equinox.") for name in names):
        return True
    return any(_is_equinox(base) for base in cls.resolved_bases if isinstance(base, griffe.Class))


def _unwrap_default(attribute: griffe.Attribute) -> None:
    """Puts the default itself in the place of `eqx.field(..., default=...)`."""
    value = attribute.value
    if isinstance(value, griffe.ExprCall) and value.canonical_path == "equinox.field":
        arguments = {a.name: a.value for a in value.arguments if isinstance(a, griffe.ExprKeyword)}
        attribute.value = arguments.get("default")
        if "default_factory" in arguments:
            attribute.value = griffe.ExprCall(arguments["default_factory"], [])
