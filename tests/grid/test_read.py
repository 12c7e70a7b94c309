import subprocess
import sys
from pathlib import Path

from benches import PATIENCE

import fedsim

QUICKSTART = Path(fedsim.__file__).parents[1] / "benchmarks/quickstart.yaml"


def test_reading_a_grid_imports_neither_torch_nor_a_plug_in(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "g.yaml").write_text("algorithms: [mine.py:Mine]\nencoder: facebook/dinov2-small\n")
    script = f"""
import sys
from pathlib import Path
import fedsim.grid.read
for path in ("g.yaml", {str(QUICKSTART)!r}):
    fedsim.grid.read.load_grid(Path(path))
print(*sorted(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "fedsim.grid.models" in imported
    assert not {"torch", "ray", "sklearn", "mine"} & imported
    assert not {name for name in imported if name.startswith(("algorithms", "baselines", "fedsim.methods"))}
