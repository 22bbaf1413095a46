"""The import rule of docs/architecture.md, as a test. Standard library only."""
import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "src" / "mien"
PARTS = ("data", "models", "losses", "augment")
MAY_IMPORT = {
    "errors": (), "whole": (), "intervals": (), "combinations": ("errors",),
    "config": ("errors", "fields", "sections"), "sections": ("errors", "fields"), "fields": ("errors", "combinations"),
    "rules": ("sections",), "runs": ("errors", "whole"),
    "data": ("errors", "combinations"), "models": ("errors",), "losses": ("errors",), "augment": ("errors",),
    "engine": ("errors", "config", "fields", "rules", "sections", "runs", "whole", "combinations", *PARTS),
    "explore": ("errors", "intervals", "combinations", "runs", "models", "engine.checkpoint"),
    "metrics": ("errors", "whole", "intervals", "combinations", "data", "models", "explore"),
    "reports": ("errors", "config", "runs"),
    "presets": (), "__main__": ("apps",),   # data files; `python -m mien`
    "apps": ("errors", "config", "fields", "rules", "sections", "runs", "whole", "combinations", *PARTS, "engine",
             "explore", "metrics", "reports"),
}
LIGHT = ("__init__", "errors", "whole", "combinations", "fields", "rules", "sections", "config", "runs", "reports",     # without torch
         "apps.__init__", "apps.cli")
HEAVY = ("torch", "torchvision", "scipy")


def nodes(tree, skip_functions):
    for child in ast.iter_child_nodes(tree):
        if skip_functions and (isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
                               or isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            continue
        yield child
        yield from nodes(child, skip_functions)


def imports(path, at_load_time=False):
    """(absolute name, line) of every import in a file, e.g. ('mien.data.formats', 3)."""
    for node in nodes(ast.parse(path.read_text(), str(path)), skip_functions=at_load_time):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.relative_to(PACKAGE.parent).parts[:-node.level] if node.level else ()
            stem = ".".join([*base, *filter(None, [node.module])])
            yield from ((f"{stem}.{alias.name}", node.lineno) for alias in node.names)


def ours(name):
    """'mien.data.formats' -> 'data.formats'; None for another package's name."""
    root, _, rest = name.partition(".")
    return rest if root == PACKAGE.name and rest.split(".")[0] in MAY_IMPORT else None


def under(name, parts):
    return any(name == part or name.startswith(part + ".") for part in parts)


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield path, dotted, dotted.split(".")[0]


def test_every_module_has_a_place():
    assert not [dotted for _, dotted, here in files() if here not in MAY_IMPORT and dotted != "__init__"]


def test_imports_flow_one_way():
    wrong = [f"{dotted}:{line} imports {name}"
             for path, dotted, here in files() for name, line in imports(path)
             if here in MAY_IMPORT and ours(name) and not under(ours(name), (here, *MAY_IMPORT[here]))]
    assert not wrong, "\n".join(wrong)


def test_light_modules_load_without_torch():
    wrong = [f"{dotted}:{line} imports {name}"
             for path, dotted, _ in files() if under(dotted, LIGHT)
             for name, line in imports(path, at_load_time=True)
             if name.split(".")[0] in HEAVY or ours(name) and not under(ours(name), LIGHT)]
    assert not wrong, "\n".join(wrong)
