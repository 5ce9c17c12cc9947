"""Layers of packages: what imports what, read from the code, lazy imports included."""

import ast

from tests.runs import ROOT

LAYERS = [
    ["utils.common"], ["data"], ["models"], ["pruning"], ["utils"], ["baselines"], ["utils.evaluation"],
    ["utils.report"], ["utils.plan"], ["utils.stages"], ["utils.sweep"], ["utils.compare"],
    ["RestoreLCC_train", "benchmarks"],
]  # fmt: skip
"""Lowest first. Packages of one layer don't import each other; `utils` is without its subpackages."""

LEVEL = {package: number for number, packages in enumerate(LAYERS) for package in packages}


def package_of(module: str) -> str | None:
    """The longest package that holds the module; None for modules that are not ours."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in (2, 1) if length <= len(parts))
    return next((name for name in names if name in LEVEL), None)


def imported(text: str) -> set[str]:
    """Names of all modules that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def upward(module: str, text: str) -> list[str]:
    """Imports of `module` that lead to its own layer's other packages, or up."""
    home = package_of(module)
    packages = {name: package_of(name) for name in sorted(imported(text))}
    return [name for name, package in packages.items() if package not in (None, home) and LEVEL[package] >= LEVEL[home]]


def test_every_file_has_a_package_and_imports_lead_down_from_an_entry_point_of_a_page():
    assert len((ROOT / "RestoreLCC_train.py").read_text(encoding="utf-8").splitlines()) <= 200
    assert len(list((ROOT / "utils").glob("*.py"))) <= 15  # the method's own
    assert upward("models.merge", "def f():\n    from baselines.lora import dora"), "one that leads up is seen"
    files = [ROOT / "RestoreLCC_train.py"]
    for package in {name.partition(".")[0] for name in LEVEL}:
        files += (ROOT / package).rglob("*.py")
    for file in files:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert package_of(module) and upward(module, file.read_text(encoding="utf-8")) == [], module
