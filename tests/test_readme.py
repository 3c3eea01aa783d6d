"""The README's example runs as it is written."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.strip().splitlines()) <= 15
    exec(compile(example, "README.md", "exec"), {})
    assert "loss" in capsys.readouterr().out


def test_commands_are_there():
    assert re.search(r"<!-- test -->\n```bash\n.*pytest.*\n```", README)
    assert re.search(r"```bash\n.*floq train\n```", README)
