"""The rules that the source keeps, as tables and as functions over syntax trees; tests/test_floors.py applies them.

Every check returns (node, what is wrong) pairs and imports nothing of what it reads.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

Faults = list[tuple[ast.AST, str]]

# Which wings a wing may import, top floor first: a wing may name only wings below it, so none names its caller.
# Every wing may also import the ground. What is passed in as an argument needs no line here, so prefer an argument.
WINGS: dict[str, set[str]] = {
    "algorithms": {"generate", "model", "objectives"},
    "generate": {"model"},
    "runs": {"evaluation", "model", "feedback"},
    "evaluation": {"objectives", "feedback"},
    "model": set(),
    "objectives": set(),
    "feedback": set(),
    "playground": set(),
}
# The ground files, top first: each may import those after it, and no wing.
GROUND = ["sharding", "types", "masks", "errors"]

# Files held to less than their wing: PPO takes its forward function, its sampler and its scores as arguments.
STRICTER: dict[str, set[str]] = {
    "algorithms/ppo.py": {"objectives"},
    "algorithms/group.py": {"objectives"},
    "algorithms/update.py": set(),
}

# Only these, and the scripts in experiments/, may touch disk, network or stdout.
STARRED = [
    "runs/*",
    "model/hf/*",
    "model/peft*",
    "feedback/formats/*",
    "feedback/store/*",
    "feedback/server/*",
    "evaluation/win_rate*",
    "evaluation/benchmarks*",
]
IO_MODULES = {
    *("socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "webbrowser"),
    *("sqlite3", "dbm", "subprocess", "shutil", "tempfile", "glob", "fileinput", "logging", "tarfile", "zipfile"),
    *("huggingface_hub", "datasets", "safetensors", "orbax", "tensorstore", "tensorboard", "wandb"),
    *("matplotlib", "tqdm", "starlette", "uvicorn", "submitit", "mmap"),
}
IO_BUILTINS = {"open", "print", "input", "breakpoint"}
IO_METHODS = {
    *("read_text", "read_bytes", "write_text", "write_bytes", "open", "mkdir", "unlink", "rmdir", "touch", "iterdir"),
    *("glob", "rglob", "symlink_to", "hardlink_to", "is_file", "is_dir", "exists", "makedirs", "listdir", "tofile"),
    *("from_pretrained", "save_pretrained", "push_to_hub"),
}
IO_CALLS = {
    *("jax.debug.print", "jax.debug.breakpoint", "jax.profiler.start_trace", "jax.profiler.trace"),
    *("os.remove", "os.rename", "os.replace", "os.walk", "os.scandir", "os.stat", "os.write", "os.read"),
    *(f"{np}.{name}" for np in ("numpy", "jax.numpy") for name in ("load", "save", "savez", "savez_compressed")),
    *(f"numpy.{name}" for name in ("loadtxt", "savetxt", "genfromtxt", "fromfile", "memmap", "fromregex")),
    *("json.load", "json.dump", "sys.stdout.write", "sys.stderr.write", "sys.stdin.read"),
}

# Modules that run code when they read data.
BANNED_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BANNED_CALLS = {
    "eval": "run no text as code; a user's own function is named `file.py:function` in a config",
    "exec": "run no text as code; a user's own function is named `file.py:function` in a config",
    "__import__": "import by statement, or by importlib with a fixed name",
    "torch.load": "it unpickles; read safetensors",
    "torch.save": "it pickles; write safetensors",
    "numpy.lib.format.read_array": "it can unpickle; use numpy.load",
    "pandas.read_pickle": "it unpickles",
    "yaml.load": "it can build any object; use yaml.safe_load",
    "yaml.load_all": "it can build any object; use yaml.safe_load_all",
    "yaml.full_load": "it can build many objects; use yaml.safe_load",
    "yaml.unsafe_load": "it builds any object; use yaml.safe_load",
    "os.system": "it starts a shell; use subprocess with a list of arguments",
    "os.popen": "it starts a shell; use subprocess with a list of arguments",
    "subprocess.getoutput": "it starts a shell; use subprocess.run with a list of arguments",
    "subprocess.getstatusoutput": "it starts a shell; use subprocess.run with a list of arguments",
}
BANNED_KEYWORDS = {
    "allow_pickle": "unpickling runs code",
    "shell": "a shell reads its arguments as code; pass a list",
    "trust_remote_code": "it runs code from a checkpoint",
}

# Imported inside the one function that needs them, so that rlhf_jax and its wings load fast; torch is never imported.
HEAVY = {"transformers", "matplotlib", "torch", "qwix"}


def imported(module: ast.Module, package: str) -> Iterator[tuple[str, ast.stmt]]:
    """Every dotted name that a file imports, at any depth of its code, relative ones resolved against `package`.

    `from a import b` gives both a and a.b: only the import itself knows whether b is a module.
    """
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            yield base, node
            for name in node.names:
                yield f"{base}.{name.name}", node


def room(inside: str) -> str:
    """The wing or ground file that a path inside the package belongs to; "" for the package's own __init__.py."""
    first = Path(inside).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def aliases(module: ast.Module) -> dict[str, str]:
    """Local name -> the dotted name it stands for, from the import statements (np -> numpy)."""
    names = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for name in node.names:
                first = name.name.split(".")[0]
                names[name.asname or first] = name.name if name.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                names[name.asname or name.name] = f"{node.module}.{name.name}"
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of an expression such as np.load, or "" where it is not one."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def import_faults(inside: str, module: ast.Module) -> Faults:
    """Imports of the package file rlhf_jax/`inside` that do not point down."""
    own = room(inside)
    if own in WINGS:
        allowed = STRICTER.get(inside, WINGS[own]) | {own, *GROUND}
    elif own in GROUND:
        allowed = set(GROUND[GROUND.index(own) + 1 :])
    else:
        allowed = set()
    faults: Faults = []
    for name, node in imported(module, ".".join(["rlhf_jax", *Path(inside).parts[:-1]])):
        parts = name.split(".")
        if parts[0] in ("experiments", "benchmarks", "tests"):
            faults.append((node, f"imports {parts[0]}, which stands above the package"))
        if parts[0] == "rlhf_jax" and len(parts) > 1 and parts[1] in {*WINGS, *GROUND} - allowed:
            faults.append((node, f"imports rlhf_jax.{parts[1]}; this file may import only {sorted(allowed)}"))
    return faults


def io_faults(module: ast.Module) -> Faults:
    """Everything in a file that touches disk, network or stdout."""
    names = aliases(module)
    faults: Faults = []
    for name, node in imported(module, "rlhf_jax"):
        if name.split(".")[0] in IO_MODULES:
            faults.append((node, f"imports {name.split('.')[0]}"))
    for call in ast.walk(module):
        if isinstance(call, ast.Call):
            name = dotted(call.func, names)
            method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            if name in IO_BUILTINS | IO_CALLS:
                faults.append((call, f"calls {name}"))
            elif method in IO_METHODS:
                faults.append((call, f"calls .{method}()"))
    return faults


def banned_faults(module: ast.Module) -> Faults:
    """Everything in a file that could run somebody else's data as code."""
    names = aliases(module)
    faults: Faults = []
    for name, node in imported(module, "rlhf_jax"):
        first = name.split(".")[0]
        if first in BANNED_MODULES:
            faults.append((node, f"imports {first}: reading its format runs code"))
        elif isinstance(node, ast.ImportFrom) and name in BANNED_CALLS:
            faults.append((node, f"imports {name}: {BANNED_CALLS[name]}"))
    for call in ast.walk(module):
        pairs: list[tuple[object, ast.expr]] = []
        if isinstance(call, ast.Call):
            name = dotted(call.func, names)
            if name in BANNED_CALLS:
                faults.append((call, f"calls {name}: {BANNED_CALLS[name]}"))
            pairs = [(keyword.arg, keyword.value) for keyword in call.keywords]
        elif isinstance(call, ast.Dict):
            pairs = [(key.value, value) for key, value in zip(call.keys, call.values) if isinstance(key, ast.Constant)]
        for key, value in pairs:
            plain = value.value if isinstance(value, ast.Constant) else True
            if key in BANNED_KEYWORDS and plain is not False and not isinstance(plain, str):
                faults.append((call, f"passes {key}={ast.unparse(value)}: {BANNED_KEYWORDS[str(key)]}"))
    return faults


def heavy_faults(module: ast.Module, *, package: bool) -> Faults:
    """Imports of torch anywhere, and in the package imports of transformers and matplotlib outside a function.

    `if TYPE_CHECKING:` is never run, so what stands under it is as good as inside a function.
    """
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    late = [
        node
        for node in ast.walk(module)
        if isinstance(node, functions)
        or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
    ]
    inner = {id(inside) for node in late for inside in ast.walk(node)}
    faults: Faults = []
    for name, node in imported(module, "rlhf_jax"):
        first = name.split(".")[0]
        if first == "torch":
            faults.append((node, "imports torch, which is never needed at run time; compare with it in a parity test"))
        elif package and first in HEAVY and id(node) not in inner:
            faults.append((node, f"imports {first} when loaded; import it inside the function that needs it"))
    return faults


def docstring_faults(module: ast.Module) -> Faults:
    """Public modules, classes, functions and methods without a docstring."""
    faults: Faults = [] if ast.get_docstring(module) else [(module, "has no module docstring")]

    def look(body: list[ast.stmt]) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                faults.append((node, f"`{node.name}` has no docstring"))
            if isinstance(node, ast.ClassDef):
                look(node.body)

    look(module.body)
    return faults


def postponed_faults(module: ast.Module) -> Faults:
    """`from __future__ import annotations`, which turns the shapes that the tests check into plain text."""
    text = "leave out `from __future__ import annotations`: the shape checker reads the annotations"
    return [(node, text) for name, node in imported(module, "rlhf_jax") if name == "__future__.annotations"]
