"""`import torchjepa` is light: little time beyond torch, nothing heavy."""

import json
import subprocess
import sys

CODE = """
import json, sys, time
import torch
start = time.perf_counter()
import torchjepa
spent = time.perf_counter() - start
heavy = [name for name in ("lightning_fabric", "kornia", "sklearn", "matplotlib", "rich") if name in sys.modules]
print(json.dumps({"spent": spent, "heavy": heavy}))
"""


def test_import_is_light() -> None:
    # The best of three: a busy machine can only make it slower, never faster than it is.
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", CODE], text=True)) for _ in range(3)]
    assert runs[0]["heavy"] == []
    assert min(run["spent"] for run in runs) <= 0.3


def test_rooms_load_when_touched() -> None:
    code = (
        "import torchjepa, sys; assert 'torchjepa.collapse' not in sys.modules; torchjepa.collapse.VICReg()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_room_is_named() -> None:
    code = "import torchjepa\ntry:\n    torchjepa.colapse\nexcept AttributeError as error:\n    print(error)"
    text = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "'colapse'" in text
    assert "collapse" in text.split("has no attribute")[1]


def test_no_room_loads_the_compiler() -> None:
    rooms = "import sys, torchjepa.engine, torchjepa.hub, torchjepa.recipes;"
    code = rooms + "sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
